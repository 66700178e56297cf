"""Backends: each turns the graphs of a Program into callables."""

from dit_compile.backends.eager import Eager
from dit_compile.backends.inductor import Inductor
from dit_compile.backends.onnxruntime import OnnxRuntime

ALL = (Inductor(), Eager(), OnnxRuntime())
