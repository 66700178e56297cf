"""What the fusions ask of a graph while they match."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

_CASTS = (aten.to.dtype, aten._to_copy.default, aten.type_as.default)


class Obstacle(Exception):  # noqa: N818 - it ends a match, it is no error
    """Why what looks like a pattern is not replaced, and because of whom."""

    def __init__(self, reason: str, culprit: fx.Node | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.culprit = culprit


def other(node: fx.Node, known: fx.Node) -> fx.Node | None:
    """The operand of a binary operator that is not ``known``."""
    left, right = node.args[:2]
    found = right if left is known else left
    return found if isinstance(found, fx.Node) and found is not known else None


def operands(node: Any, target: Any) -> tuple[fx.Node, fx.Node] | None:
    """Both tensors of a binary operator without options."""
    if not isinstance(node, fx.Node) or node.target is not target or node.kwargs:
        return None
    left, right = node.args[:2]
    if isinstance(left, fx.Node) and isinstance(right, fx.Node) and len(node.args) == 2:
        return left, right
    return None


def is_cast(node: fx.Node) -> bool:
    """Whether ``node`` only changes a floating dtype."""
    if node.target not in _CASTS:
        return False
    source = node.args[0]
    assert isinstance(source, fx.Node)
    dtypes = source.meta["val"].dtype, node.meta["val"].dtype
    return all(dtype.is_floating_point for dtype in dtypes)


def uncast(node: Any) -> Any:
    """What ``node`` is before changes of its floating dtype."""
    while isinstance(node, fx.Node) and is_cast(node):
        node = node.args[0]
    return node


def through_cast(node: fx.Node) -> fx.Node:
    """The cast that alone reads ``node``, if there is one, else ``node``."""
    if len(node.users) == 1 and is_cast(user := next(iter(node.users))) and user.args[0] is node:
        return user
    return node


def interior(last: fx.Node, given: Collection[fx.Node]) -> list[fx.Node]:
    """``last`` and all it is computed from, down to what is ``given``; ``last`` comes last."""
    found = {last: None}
    stack = [last]
    while stack:
        for arg in stack.pop().all_input_nodes:
            if arg not in given and arg not in found and arg.op == "call_function":
                found[arg] = None
                stack.append(arg)
    return list(reversed(found))


def outsider(nodes: Collection[fx.Node], last: fx.Node) -> fx.Node | None:
    """Who else reads one of ``nodes``; anyone may read ``last``."""
    readers = (user for node in nodes if node is not last for user in node.users)
    return next((user for user in readers if user not in nodes), None)
