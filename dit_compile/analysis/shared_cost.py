"""The cost of nodes, worked out once for all that are alike: layers repeat, formulas are slow."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import fx

from dit_compile.analysis.cost import CostValue, node_cost, root_of
from dit_compile.errors import AnalysisError
from dit_compile.ir.hints import symbol_hints


class SharedCosts:
    """Costs by operator, constants, and the layout of what is read and made."""

    def __init__(self) -> None:
        self._known: dict[Hashable, CostValue] = {}

    def of(self, node: fx.Node, weights: frozenset[fx.Node]) -> CostValue:
        """The cost of a node; symbolic sizes count as what they were at capture."""
        key = _key(node, weights)
        if key is None:
            return _evaluated(node, weights)
        if key not in self._known:
            self._known[key] = _evaluated(node, weights)
        return self._known[key]


def _evaluated(node: fx.Node, weights: frozenset[fx.Node]) -> CostValue:
    cost = node_cost(node, weights)
    try:
        return cost.evaluate()
    except AnalysisError:
        return cost.evaluate(symbol_hints(node.graph))


def _key(node: fx.Node, weights: frozenset[fx.Node]) -> Hashable | None:
    """All that the formulas look at; ``None`` where sizes are symbols."""
    seen: dict[fx.Node, int] = {}

    def argument(arg: Any) -> Hashable:
        if isinstance(arg, fx.Node):
            if arg in seen:  # what is taken twice is read once
                return "again", seen[arg]
            seen[arg] = len(seen)
            return _layout(arg.meta.get("val")), root_of(arg) in weights
        if isinstance(arg, (list, tuple)):
            return tuple(map(argument, arg))
        return type(arg), str(arg)

    try:
        kwargs = tuple((name, argument(arg)) for name, arg in node.kwargs.items())
        return node.op, node.target, argument(node.args), kwargs, _layout(node.meta.get("val"))
    except _Symbolic:
        return None


class _Symbolic(Exception):  # noqa: N818 - a signal
    """A size is a symbol."""


def _layout(value: Any) -> Hashable:
    if isinstance(value, torch.Tensor):
        sizes = (*value.shape, *value.stride())
        if any(isinstance(size, torch.SymInt) for size in sizes):
            raise _Symbolic
        return value.dtype, sizes
    if isinstance(value, (list, tuple)):
        return tuple(map(_layout, value))
    if isinstance(value, torch.SymInt):
        raise _Symbolic
    return str(value)
