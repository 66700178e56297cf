"""Triton kernels for the operators of ditc, on NVIDIA GPUs."""

from dit_compile.backends.triton.backend import Triton

__all__ = ["Triton"]
