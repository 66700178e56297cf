"""The ONNX Runtime backend, and the graphs of a Program as ONNX models."""

from dit_compile.backends.onnxruntime.backend import OnnxRuntime

__all__ = ["OnnxRuntime"]
