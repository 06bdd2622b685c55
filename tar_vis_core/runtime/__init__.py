"""Devices, memory and compiled kernels."""
