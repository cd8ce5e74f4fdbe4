"""Engines that run the networks: PyTorch, ONNX Runtime, TensorRT (hook `ea_engines`)."""
