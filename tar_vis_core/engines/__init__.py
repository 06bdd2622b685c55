"""The image encoder in other runtimes than PyTorch: exported as a graph, and run by ONNX Runtime or OpenVINO."""
