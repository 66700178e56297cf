"""Operators that run a kernel: the namesakes of those that they stand for, in ``ditc_triton::``.

They have no derivative, and no decomposition: a graph that has one runs the kernel.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime.jit import JITFunction

from dit_compile.backends.triton.kernels import (
    adaln_norm_kernel,
    gated_residual_norm_kernel,
    norm_rotary_kernel,
)


def launch_adaln_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """``ditc::adaln_norm``; the result is contiguous."""
    dtype = torch.promote_types(torch.promote_types(x.dtype, scale.dtype), shift.dtype)
    normed = torch.empty(x.shape, dtype=dtype, device=x.device)
    tiles = [_rows(value, x) for value in (x, scale, shift)]
    _, tokens, channels = tiles[0].shape
    rows = math.prod(x.shape[:-1])
    _launch(
        adaln_norm_kernel, rows, channels, *tiles, normed,
        rows, tokens, channels, eps, *_strides(tiles),
    )  # fmt: skip
    return normed


def launch_gated_residual_norm(
    x: Tensor, y: Tensor, gate: Tensor, scale: Tensor, shift: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """``ditc::gated_residual_norm``; both results are contiguous."""
    total, normed = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(2))
    tiles = [_rows(value, x) for value in (x, y, gate, scale, shift)]
    _, tokens, channels = tiles[0].shape
    rows = math.prod(x.shape[:-1])
    _launch(
        gated_residual_norm_kernel, rows, channels, *tiles, total, normed,
        rows, tokens, channels, eps, *_strides(tiles),
    )  # fmt: skip
    return total, normed


def launch_norm_rotary(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    centered: bool,
    across_heads: bool,
    interleaved: bool,
    contiguous: bool,
) -> Tensor:
    """``ditc::norm_rotary``; the result is contiguous, or laid out as ``x``."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not contiguous:
        out = torch.empty_like(x)
    like = x.shape[:-1]
    tiles = [_heads(value.expand(*like, value.shape[-1])) for value in (x, cos, sin)]
    _, tokens, heads, width = tiles[0].shape
    rows = math.prod(like) // (heads if across_heads else 1)
    vectors = [x if vector is None else vector for vector in (weight, bias)]
    by_channel = [0 if vector is None else vector.stride(0) for vector in (weight, bias)]
    # What is written is passed itself: of a view, torch would make the base again from its values.
    _launch(
        norm_rotary_kernel, rows, heads * width // 2 if across_heads else width // 2,
        tiles[0], *vectors, *tiles[1:], out,
        rows, tokens, heads, width, eps,
        *tiles[0].stride(), *_heads(out).stride(), *by_channel, *_strides(tiles[1:]),
        WEIGHTED=weight is not None, BIASED=bias is not None, CENTERED=centered,
        ACROSS_HEADS=across_heads, INTERLEAVED=interleaved, BY_CHANNEL=cos.shape[-1] == width,
    )  # fmt: skip
    return out


def _rows(value: Tensor, like: Tensor) -> Tensor:
    """``value``, broadcast to ``like``, as ``[batch, tokens, channels]``; a view if possible."""
    value = value.expand(like.shape)
    if value.dim() == 3:
        return value
    if value.dim() < 3:
        return value.reshape(1, -1, value.shape[-1])
    return value.reshape(value.shape[0], -1, value.shape[-1])


def _heads(value: Tensor) -> Tensor:
    """``value`` as ``[batch, tokens, heads, channels]``; a view if possible."""
    while value.dim() < 4:
        value = value.unsqueeze(0)
    return value if value.dim() == 4 else value.flatten(1, -3)


def _strides(tiles: list[Tensor]) -> list[int]:
    return [stride for tile in tiles for stride in tile.stride()]


def _launch(kernel: Any, rows: Any, columns: int, *args: Any, **constants: Any) -> None:
    """Run a kernel on all rows: several narrow rows, or one wide one, a program instance."""
    block = triton.next_power_of_2(columns)
    together = max(1, min(16, 1024 // block))
    warps = 4 if block * together <= 2048 else 8 if block <= 8192 else 16
    # Under Triton's interpreter, kernels are plain Python.
    wrapped = torch.library.wrap_triton(kernel) if isinstance(kernel, JITFunction) else kernel
    wrapped[(triton.cdiv(rows, together),)](
        *args, **constants, BLOCK=block, ROWS=together, num_warps=warps
    )


adaln_norm = torch.library.triton_op("ditc_triton::adaln_norm", mutates_args=())(launch_adaln_norm)
gated_residual_norm = torch.library.triton_op("ditc_triton::gated_residual_norm", mutates_args=())(
    launch_gated_residual_norm
)
norm_rotary = torch.library.triton_op("ditc_triton::norm_rotary", mutates_args=())(
    launch_norm_rotary
)
