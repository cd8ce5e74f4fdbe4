"""Networks as graphs: ONNX bundles, TensorRT engines, and the checks before and after (docs/export.md)."""
