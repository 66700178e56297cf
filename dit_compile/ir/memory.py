"""Whose memory a value shows, and what the caller would notice of it.

The caller may write into a result. That must reach no input of the program, and no other result
that had memory of its own.
"""

from __future__ import annotations

import torch
from torch import fx

from dit_compile.ir.fake import is_getitem
from dit_compile.ir.program import output_args


def is_returned(node: fx.Node) -> bool:
    """Whether the graph returns ``node`` or a view of it."""
    return node in _returned(node.graph)


def would_share(old: fx.Node, new: fx.Node) -> str:
    """Why ``new`` cannot be returned in place of ``old``; empty if nobody can tell them apart."""
    returned = _returned(old.graph)
    if old not in returned:
        return ""
    owner = owner_of(new)
    if owner.op == "placeholder":
        return "the caller would get an input itself, not a copy"
    return "two results would share their memory" if owner in returned else ""


def _returned(graph: fx.Graph) -> list[fx.Node]:
    return [owner_of(arg) for arg in output_args(graph) if isinstance(arg, fx.Node)]


def owner_of(node: fx.Node) -> fx.Node:
    """The node whose memory ``node`` shows: itself, unless its operator gives a view."""
    while is_getitem(node) or _is_view(node):
        source = node.args[0]
        assert isinstance(source, fx.Node)
        node = source
    return node


def _is_view(node: fx.Node) -> bool:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or not target._schema.arguments:
        return False
    if target._overloadpacket is torch.ops.aten.to and _changes_dtype(node):
        return False
    return target._schema.arguments[0].alias_info is not None


def _changes_dtype(node: fx.Node) -> bool:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return bool(node.meta["val"].dtype != source.meta["val"].dtype)
