"""What running a node does besides computing its result: nothing, writing, or drawing numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from dit_compile.ir.fake import is_getitem

aten = torch.ops.aten

#: What reads nothing of a tensor but its sizes.
SIZES = {aten.sym_size.int, aten.sym_numel.default}


def is_pure(node: fx.Node) -> bool:
    """Whether ``node`` may be merged with an equal one, or dropped when nobody uses it."""
    if node.op != "call_function":
        return False
    if is_getitem(node):
        return True
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload):
        asserts = not target._schema.returns
        return not (mutates(node) or is_random(node) or asserts)
    return getattr(target, "__module__", "") in ("_operator", "torch", "math")


def mutates(node: fx.Node) -> bool:
    """Whether ``node``'s operator writes to one of its arguments."""
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable


def is_random(node: fx.Node) -> bool:
    """Whether two runs of ``node`` on equal arguments may differ."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return False
    if torch.Tag.nondeterministic_seeded not in target.tags:
        return False
    return not (is_idle_dropout(node) or _draws_no_mask(node))


def is_idle_dropout(node: fx.Node) -> bool:
    """Whether ``node`` is a dropout outside training, or of nothing."""
    if node.target is not aten.dropout.default:
        return False
    probability, training = node.args[1:3]
    return bool(probability == 0) or training is False


def _draws_no_mask(node: fx.Node) -> bool:
    """Attention with a dropout probability of zero."""
    if node.target is not aten.scaled_dot_product_attention.default:
        return False
    probability = node.args[4] if len(node.args) > 4 else node.kwargs.get("dropout_p", 0.0)
    return bool(probability == 0.0)
