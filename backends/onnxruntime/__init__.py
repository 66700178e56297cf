"""The ONNX Runtime backend, and the graphs of a Program as ONNX models."""
