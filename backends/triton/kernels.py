"""The kernels. Each program instance works on whole rows; sums and products are in float32.

Arguments that end in ``_b``, ``_n``, ``_h`` and ``_d`` are strides: batch, token, head, channel.
"""

# The annotations of a kernel's arguments are Triton's own.
# ruff: noqa: ANN001, ANN201, ANN202, N803
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _load(pointer, b, n, channel, by_b, by_n, by_d, inside):
    """A tile of rows, in float32; zero outside."""
    place = pointer + b * by_b + n * by_n + channel * by_d
    return tl.load(place, inside, 0.0).to(tl.float32)


@triton.jit
def _modulated(value, by, add, inside, channels, eps):
    """The layer norm of rows, times ``1 + by``, plus ``add``."""
    mean = tl.sum(value, 1)[:, None] / channels
    centered = tl.where(inside, value - mean, 0.0)
    variance = tl.sum(centered * centered, 1)[:, None] / channels
    return centered * (1 / tl.sqrt(variance + eps)) * (1 + by) + add


@triton.jit
def adaln_norm_kernel(
    x, scale, shift, normed,
    rows, tokens, channels, eps,
    x_b, x_n, x_d, scale_b, scale_n, scale_d, shift_b, shift_n, shift_d,
    BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """``normed = layer_norm(x) * (1 + scale) + shift``, contiguous."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (channel < channels)
    b, n = row // tokens, row % tokens
    value = _load(x, b, n, channel, x_b, x_n, x_d, inside)
    by = _load(scale, b, n, channel, scale_b, scale_n, scale_d, inside)
    add = _load(shift, b, n, channel, shift_b, shift_n, shift_d, inside)
    made = _modulated(value, by, add, inside, channels, eps)
    tl.store(normed + row * channels + channel, made.to(normed.dtype.element_ty), inside)


@triton.jit
def gated_residual_norm_kernel(
    x, y, gate, scale, shift, total, normed,
    rows, tokens, channels, eps,
    x_b, x_n, x_d, y_b, y_n, y_d, gate_b, gate_n, gate_d,
    scale_b, scale_n, scale_d, shift_b, shift_n, shift_d,
    BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """``total = x + gate * y`` and its layer norm, modulated; both contiguous."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (channel < channels)
    b, n = row // tokens, row % tokens
    value = _load(x, b, n, channel, x_b, x_n, x_d, inside)
    branch = _load(y, b, n, channel, y_b, y_n, y_d, inside)
    by = _load(gate, b, n, channel, gate_b, gate_n, gate_d, inside)
    rounded = (value + by * branch).to(total.dtype.element_ty)
    place = row * channels + channel
    tl.store(total + place, rounded, inside)
    by = _load(scale, b, n, channel, scale_b, scale_n, scale_d, inside)
    add = _load(shift, b, n, channel, shift_b, shift_n, shift_d, inside)
    made = _modulated(rounded.to(tl.float32), by, add, inside, channels, eps)
    tl.store(normed + place, made.to(normed.dtype.element_ty), inside)


@triton.jit
def norm_rotary_kernel(
    x, weight, bias, cos, sin, out,
    rows, tokens, heads, width, eps,
    x_b, x_n, x_h, x_d, out_b, out_n, out_h, out_d, weight_d, bias_d,
    cos_b, cos_n, cos_h, cos_d, sin_b, sin_n, sin_h, sin_d,
    WEIGHTED: tl.constexpr, BIASED: tl.constexpr, CENTERED: tl.constexpr,
    ACROSS_HEADS: tl.constexpr, INTERLEAVED: tl.constexpr, BY_CHANNEL: tl.constexpr,
    BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The norm of ``x``, then each pair of channels turned.

    A row is what is normed: the ``width`` channels of a head, or those of all heads of a token. A
    column is a pair of channels; ``BY_CHANNEL`` says that cos and sin have a value for each
    channel, and not for each pair.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    pairs = width // 2
    if ACROSS_HEADS:
        head, pair = column // pairs, column % pairs
        token, columns = row, heads * pairs
    else:
        head, pair = row % heads, column
        token, columns = row // heads, pairs
    b, n = token // tokens, token % tokens
    inside = (row < rows) & (column < columns)
    first = pair * 2 if INTERLEAVED else pair
    second = pair * 2 + 1 if INTERLEAVED else pair + pairs

    start = x + b * x_b + n * x_n + head * x_h
    left = tl.load(start + first * x_d, inside, 0.0).to(tl.float32)
    right = tl.load(start + second * x_d, inside, 0.0).to(tl.float32)
    count = columns * 2
    if CENTERED:
        mean = (tl.sum(left, 1) + tl.sum(right, 1))[:, None] / count
        left = tl.where(inside, left - mean, 0.0)
        right = tl.where(inside, right - mean, 0.0)
    squares = (tl.sum(left * left, 1) + tl.sum(right * right, 1))[:, None] / count
    factor = 1 / tl.sqrt(squares + eps)
    left, right = left * factor, right * factor
    at = head * width if ACROSS_HEADS else head * 0
    known = column < columns
    if WEIGHTED:
        left *= tl.load(weight + (at + first) * weight_d, known, 0.0).to(tl.float32)
        right *= tl.load(weight + (at + second) * weight_d, known, 0.0).to(tl.float32)
    if BIASED:
        left += tl.load(bias + (at + first) * bias_d, known, 0.0).to(tl.float32)
        right += tl.load(bias + (at + second) * bias_d, known, 0.0).to(tl.float32)

    near_cos = cos + b * cos_b + n * cos_n + head * cos_h
    near_sin = sin + b * sin_b + n * sin_n + head * sin_h
    one = first if BY_CHANNEL else pair
    two = second if BY_CHANNEL else pair
    cos_left = tl.load(near_cos + one * cos_d, inside, 0.0).to(tl.float32)
    sin_left = tl.load(near_sin + one * sin_d, inside, 0.0).to(tl.float32)
    cos_right = tl.load(near_cos + two * cos_d, inside, 0.0).to(tl.float32)
    sin_right = tl.load(near_sin + two * sin_d, inside, 0.0).to(tl.float32)
    place = out + b * out_b + n * out_n + head * out_h
    turned = left * cos_left - right * sin_left
    tl.store(place + first * out_d, turned.to(out.dtype.element_ty), inside)
    turned = right * cos_right + left * sin_right
    tl.store(place + second * out_d, turned.to(out.dtype.element_ty), inside)
