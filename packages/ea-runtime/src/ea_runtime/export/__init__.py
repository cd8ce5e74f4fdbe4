"""Networks as graphs: ONNX bundles, TensorRT engines, what is checked before and after (docs/export.md)."""
