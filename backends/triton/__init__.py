"""Triton kernels for the operators of ditc, on NVIDIA GPUs."""
