"""Take ditc's own kernel of attention where it is faster than torch's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from dit_compile.analysis.machine import has_avx512_bf16
from dit_compile.ir.fake import same_size
from dit_compile.ir.program import Program
from dit_compile.ir.schema import argument
from dit_compile.kernels.attention import MASK_TYPES, flash_attention
from dit_compile.passes.lower.attention import attentions_on_cpu, measured_speedup, operands_of
from dit_compile.pipeline.base import Kind, Pass
from dit_compile.pipeline.rewriter import Rewriter


@dataclass(frozen=True, kw_only=True)
class SelectAttention(Pass):
    """Take ditc's own kernel of attention where it is faster than torch's.

    Before:  %o = aten.scaled_dot_product_attention(%q, %k, %v, %mask)
    After:   %o = ditc.flash_attention(%q, %k, %v, %mask)
    Fires only if: on a CPU that multiplies pairs of bfloat16, in bfloat16, neither causal nor with
    dropout, and attention of this size and layout was measured to be ``min_speedup`` times as
    fast. Logits, sums and the rounding of weights are as precise as torch's.

    Attributes:
        min_speedup: how much faster attention must be.
    """

    name: ClassVar[str] = "select-attention"
    kind: ClassVar[Kind] = Kind.LOWER
    min_speedup: float = 1.1

    def run(self, program: Program, rw: Rewriter) -> None:
        """Look at each attention of the graphs that serve steps."""
        if not has_avx512_bf16():
            return
        for node, hints in attentions_on_cpu(rw):
            if any(operand.meta["val"].dtype != torch.bfloat16 for operand in operands_of(node)):
                continue
            if reason := _objection(node):
                rw.miss(node, reason)
                continue
            gain = measured_speedup("flash attention", node, hints, flash_attention)
            if gain >= self.min_speedup:
                _select(node, rw)
            else:
                rw.miss(node, f"ditc's kernel is {gain:.2f}x as fast")


def _select(node: fx.Node, rw: Rewriter) -> None:
    rw.begin(node)
    mask, scale = argument(node, "attn_mask"), argument(node, "scale")
    given = (*operands_of(node), mask, scale)
    rw.replace(node, rw.call(flash_attention, *given, before=node, replaces=[node]))


def _objection(node: fx.Node) -> str:
    """Why the kernel cannot take an attention's place; empty if it can."""
    query, key, value = (operand.meta["val"] for operand in operands_of(node))
    mask = argument(node, "attn_mask")
    width = query.shape[-1]
    if argument(node, "is_causal") or argument(node, "dropout_p"):
        return "ditc's kernel is neither causal nor has dropout"
    if not isinstance(width, int) or width % 2 or not same_size(width, value.shape[-1]):
        return "ditc's kernel takes keys and values of one even width"
    if any(operand.stride(-1) != 1 for operand in (query, key, value)):
        return "channels lie apart, and then torch is more precise"
    if mask is not None and mask.meta["val"].dtype not in MASK_TYPES:
        return f"ditc's kernel takes no mask of {mask.meta['val'].dtype}"
    if not same_size(query.shape[0], key.shape[0]) or not same_size(key.shape[1], value.shape[1]):
        return "ditc's kernel takes keys and values for each sample and head"
    heads, key_heads = query.shape[1], key.shape[1]
    if not isinstance(heads, int) or not isinstance(key_heads, int) or heads % key_heads:
        return "ditc's kernel takes a known number of heads"
    made, wanted = torch.empty_like(query), node.meta["val"]
    if not all(map(same_size, made.stride(), wanted.stride())):
        return "the result would be laid out in another way"
    return ""
