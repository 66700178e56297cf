"""Linears over weights that are laid out for the processor, as operators of the ``ditc::`` kind.

A product of oneDNN lays its weight out anew at each call unless it is given one that is laid out
already. Inductor does that for constants of one graph alone; here a packed weight is a value like
any other, so all graphs of a Program read one copy.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from dit_compile.analysis.machine import onednn_multiplies
from dit_compile.analysis.measured import Ways, speedup_of
from dit_compile.ir.fake import dtype_name

aten = torch.ops.aten

_LIBRARY = torch.library.Library("ditc", "FRAGMENT")  # type: ignore[no-untyped-call]

#: Rows that a weight is laid out for; the same layout served from 1 to 4096 as well as their own.
_ROWS = 512
#: Products are measured on at most so many multiply-adds, and so many rows.
_PROBE_WORK = 1 << 30
_PROBE_ROWS = 256


def _define(schema: str) -> None:
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))  # type: ignore[no-untyped-call]


_define("pack_weight(Tensor weight) -> Tensor")
_define("packed_linear(Tensor x, Tensor weight, Tensor? bias=None) -> Tensor")


@torch.library.impl(_LIBRARY, "pack_weight", "CPU")
def _pack_weight(weight: Tensor) -> Tensor:
    """``weight``, ``[out, in]``, laid out for the processor; a plain copy where it cannot be."""
    if not onednn_multiplies(weight.dtype):
        return weight.clone()
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _ROWS)
    return packed


@torch.library.impl(_LIBRARY, "pack_weight", "Meta")
def _packed_shape(weight: Tensor) -> Tensor:
    return torch.empty_like(weight, memory_format=torch.contiguous_format)


def _packed_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``aten.linear`` with a weight from ``pack_weight``."""
    result: Tensor
    if weight.is_mkldnn:
        result = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    else:
        result = aten.linear.default(x, weight, bias)
    return result


for _key in ("CPU", "MkldnnCPU"):  # with a packed weight, and without
    torch.library.impl(_LIBRARY, "packed_linear", _key)(_packed_linear)


@torch.library.impl(_LIBRARY, "packed_linear", "Meta")
def _linear_shape(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


pack_weight = torch.ops.ditc.pack_weight.default
packed_linear = torch.ops.ditc.packed_linear.default


def speedup(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> float:
    """How many times as fast a linear is with a packed weight, measured once on this machine.

    Many rows are measured by fewer, which flatters a little, since what packing saves is the same
    for any number of rows; it never made a loss look like a gain.

    Args:
        rows: of the input.
        inputs: columns of the weight.
        outputs: its rows.
        dtype: of both.

    Returns:
        0 if this build of torch, or this processor, cannot do it.
    """
    if not onednn_multiplies(dtype):
        return 0.0
    rows = max(1, min(rows, _PROBE_ROWS, _PROBE_WORK // (inputs * outputs)))
    rows = 1 << round(math.log2(rows))  # neighbours in size are alike
    name = f"packed linear {rows}x{inputs}x{outputs} {dtype_name(dtype)}"
    return speedup_of(name, partial(_ways, rows, inputs, outputs, dtype))


def _ways(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> Ways:
    x = torch.ones(rows, inputs, dtype=dtype)
    weight = torch.ones(outputs, inputs, dtype=dtype)
    bias = torch.ones(outputs, dtype=dtype)
    packed = pack_weight(weight)
    return (
        lambda: aten.linear.default(x, weight, bias),
        lambda: packed_linear(x, packed, bias),
    )
