"""Numbers for symbolic sizes, where a cost is asked for: those of the capture, or what bounds them.

Nothing here adds a guard.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import sympy
import torch
from torch import fx
from torch.utils import _pytree as pytree
from torch.utils._sympy.solve import try_solve

Hints = Mapping[sympy.Symbol, int]

#: What a size that only the data tells, and that nothing bounds, is taken to be, as by Inductor.
UNBOUNDED = 8192


def symbol_hints(graph: fx.Graph) -> dict[sympy.Symbol, int]:
    """A size for each symbol of ``graph``: what it was at capture, else what it can be at most.

    A size that only the data tells has none at capture. It is bounded by its range, or by what the
    trace asserts of it, such as that a slice is no longer than what it is cut from.
    """
    hints: dict[sympy.Symbol, int] = {}
    for node in graph.nodes:
        for leaf in pytree.tree_leaves(node.meta.get("val")):
            for size in leaf.shape if isinstance(leaf, torch.Tensor) else (leaf,):
                if isinstance(size, torch.SymInt):
                    _enter(size.node.expr.free_symbols, size.node.shape_env, hints)
    return hints


def hint_of(size: int | torch.SymInt) -> int:
    """The number that a size was at capture, else what it can be at most."""
    if isinstance(size, int):
        return size
    hints: dict[sympy.Symbol, int] = {}
    _enter(size.node.expr.free_symbols, size.node.shape_env, hints)
    return int(size.node.expr.xreplace(hints))


def _enter(
    symbols: Iterable[sympy.Symbol], environment: Any, hints: dict[sympy.Symbol, int]
) -> None:
    for symbol in symbols:
        if symbol not in hints:
            hints[symbol] = _hint(symbol, environment, frozenset())


def _hint(symbol: sympy.Symbol, environment: Any, asking: frozenset[sympy.Symbol]) -> int:
    """A size for one symbol; ``asking`` are those whose bounds led here, which bound nothing."""
    new = hasattr(environment, "backed_var_to_val")  # torch 2.11 has the old name alone
    values = environment.backed_var_to_val if new else environment.var_to_val
    if symbol in values:
        return int(values[symbol])
    asking |= {symbol}
    bounds = []
    for bound in _upper_bounds(symbol, environment):
        if bound.free_symbols.isdisjoint(asking):
            numbers = {each: _hint(each, environment, asking) for each in bound.free_symbols}
            bounds.append(int(bound.xreplace(numbers)))
    least = environment.var_to_range[symbol].lower
    least = int(least) if least.is_Integer else 0
    return max(least, min(bounds, default=UNBOUNDED))


def _upper_bounds(symbol: sympy.Symbol, environment: Any) -> Iterator[sympy.Expr]:
    most = environment.var_to_range[symbol].upper
    if most.is_Integer and most < sys.maxsize - 1:  # which stands for none
        yield most
    asserts = environment.deferred_runtime_asserts.values()
    for expression in (environment.replace(each.expr) for some in asserts for each in some):
        if symbol not in expression.free_symbols:
            continue
        solved = try_solve(expression, symbol)
        if solved is not None and isinstance(solved[0], (sympy.Eq, sympy.Le, sympy.Lt)):
            yield solved[1]
