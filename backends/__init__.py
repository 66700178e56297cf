"""Backends: each turns the graphs of a Program into callables."""

from dit_compile.backends.eager import Eager
from dit_compile.backends.inductor import Inductor
from dit_compile.backends.onnxruntime import OnnxRuntime
from dit_compile.backends.triton import Triton

ALL = (Inductor(), Triton(), Eager(), OnnxRuntime())
