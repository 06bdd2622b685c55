"""Checks of input files, and atomic writing of result files."""
