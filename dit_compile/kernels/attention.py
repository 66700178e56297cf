"""Attention in bfloat16 for CPUs that multiply pairs of bfloat16, as an operator.

Where a processor has such instructions but no AMX, torch's own attention multiplies as fast as in
float32, a third of what its linears reach.
"""

from __future__ import annotations

import ctypes
import itertools
from typing import Any

import torch
from torch import Tensor

from dit_compile.analysis.machine import has_avx512_bf16
from dit_compile.errors import BackendError
from dit_compile.kernels import library

SDPA = torch.ops.aten.scaled_dot_product_attention.default

_LIBRARY = torch.library.Library("ditc", "FRAGMENT")  # type: ignore[no-untyped-call]

#: What a mask may hold: numbers to add to the logits, or false where a key does not count.
MASK_TYPES = {torch.bfloat16: 1, torch.float32: 2, torch.bool: 3}

_INSTRUCTIONS = (*(f"-mavx512{name}" for name in ("f", "bw", "dq", "vl", "bf16")), "-mfma")

_LIBRARY.define(  # type: ignore[no-untyped-call]
    "flash_attention(Tensor query, Tensor key, Tensor value, Tensor? mask=None,"
    " float? scale=None) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def torch_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Torch's attention, of grouped heads too."""
    grouped = query.shape[1] != key.shape[1]
    mixed: Tensor = SDPA(query, key, value, mask, scale=scale, enable_gqa=grouped)
    return mixed


@torch.library.impl(_LIBRARY, "flash_attention", "CPU")
def _flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """``aten.scaled_dot_product_attention`` in bfloat16, laid out like ``query``.

    Other types, and processors without the instructions, take torch's own. On all of them the
    numbers are the same for every layout of the operands.

    Args:
        query: ``[batch, heads, queries, width]``, of an even width.
        key: ``[batch, key heads, keys, width]``; heads are a multiple of key heads.
        value: like ``key``.
        mask: broadcasts to ``[batch, heads, queries, keys]``; see ``MASK_TYPES``.
        scale: of the logits; by default ``width ** -0.5``.
    """
    result = torch.empty_like(query)
    if query.stride(-1) != 1:
        return result.copy_(_flash_attention(query.contiguous(), key, value, mask, scale))
    key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (key, value))
    if query.dtype != torch.bfloat16 or not has_avx512_bf16():
        return result.copy_(torch_attention(query, key, value, mask, scale))
    batch, heads, queries, width = query.shape
    _, key_heads, keys, _ = key.shape
    if mask is not None:
        mask = mask.expand(batch, heads, queries, keys)
        mask = mask if mask.stride(-1) == 1 else mask.contiguous()
    tensors = (query, key, value, result, mask)
    strides = [x.stride()[:3] if x is not None else (0, 0, 0) for x in tensors]
    failed = load().ditc_attention(
        *(ctypes.c_void_p(x.data_ptr()) if x is not None else None for x in tensors),
        MASK_TYPES[mask.dtype] if mask is not None else 0,
        (ctypes.c_int64 * 6)(batch, heads, key_heads, queries, keys, width),
        (ctypes.c_int64 * 15)(*itertools.chain(*strides)),
        ctypes.c_float(width**-0.5 if scale is None else scale),
        torch.get_num_threads(),
    )
    if failed:
        raise BackendError(f"no memory for attention of {keys} keys")
    return result


@torch.library.impl(_LIBRARY, "flash_attention", "Meta")
def _result(query: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(query)


flash_attention = torch.ops.ditc.flash_attention.default


def load() -> ctypes.CDLL:
    """The kernel's library.

    Raises:
        BackendError: it cannot be compiled here.
    """
    return library.load("attention", *_INSTRUCTIONS)
