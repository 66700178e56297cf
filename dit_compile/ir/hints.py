"""Numbers for symbolic sizes, where a cost is asked for: those of the capture, or what bounds them.

Nothing here adds a guard.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import sympy
import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils import _pytree as pytree
from torch.utils._sympy.solve import try_solve
from torch.utils._sympy.symbol import SymT, symbol_is_type

Hints = Mapping[sympy.Symbol, int]

#: What a size that only the data tells, and that nothing bounds, is taken to be, as by Inductor.
UNBOUNDED = 8192

_known: WeakKeyDictionary[ShapeEnv, tuple[tuple[int, ...], dict[sympy.Symbol, int]]] = (
    WeakKeyDictionary()
)


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
                    hints |= _hints_of(size)
    return hints


def hint_of(size: int | torch.SymInt) -> int:
    """The number that a size was at capture, else what it can be at most."""
    if isinstance(size, int):
        return size
    return int(size.node.expr.xreplace(_hints_of(size)))


def _hints_of(size: torch.SymInt) -> dict[sympy.Symbol, int]:
    environment = size.node.shape_env
    values = _captured(environment)
    symbols = size.node.expr.free_symbols
    if symbols <= values.keys():
        return {symbol: int(values[symbol]) for symbol in symbols}
    at_most = _at_most(environment)
    return {s: int(values[s]) if s in values else at_most.get(s, UNBOUNDED) for s in symbols}


def _captured(environment: ShapeEnv) -> Mapping[sympy.Symbol, Any]:
    found: Mapping[sympy.Symbol, Any]
    if hasattr(environment, "backed_var_to_val"):
        found = environment.backed_var_to_val
    else:  # torch 2.11 has the old name alone
        found = environment.var_to_val
    return found


def _at_most(environment: ShapeEnv) -> dict[sympy.Symbol, int]:
    """What each size that only the data tells can be; worked out anew where more was learned."""
    asserts = sum(map(len, environment.deferred_runtime_asserts.values()))
    learned = (len(environment.var_to_range), asserts, len(environment.replacements))
    if environment not in _known or _known[environment][0] != learned:
        _known[environment] = learned, _tightened(environment)
    return _known[environment][1]


def _tightened(environment: ShapeEnv) -> dict[sympy.Symbol, int]:
    """Bounds in numbers: each is put in where it bounds others, until none gets smaller."""
    captured = {symbol: int(value) for symbol, value in _captured(environment).items()}
    ranges = environment.var_to_range
    told = [symbol for symbol in ranges if symbol_is_type(symbol, SymT.UNBACKED_INT)]
    bounds = list(_upper_bounds(environment))
    most: dict[sympy.Symbol, int] = {}
    for _ in told:  # a bound leads on through each of them at most once
        before = dict(most)
        for symbol, bound in bounds:
            numbers = captured | most
            if bound.free_symbols <= numbers.keys():
                least = ranges[symbol].lower
                number = max(int(bound.xreplace(numbers)), int(least) if least.is_Integer else 0)
                most[symbol] = min(number, most.get(symbol, number))
        if most == before:
            break
    return most


def _upper_bounds(environment: ShapeEnv) -> Iterator[tuple[sympy.Symbol, sympy.Expr]]:
    """Each size that only the data tells with what it does not exceed: ranges, then assertions."""
    for symbol, numbers in environment.var_to_range.items():
        most = numbers.upper
        told = symbol_is_type(symbol, SymT.UNBACKED_INT)
        if told and most.is_Integer and most < sys.maxsize - 1:  # which stands for none
            yield symbol, most
    asserts = environment.deferred_runtime_asserts.values()
    for expression in {environment.replace(each.expr) for some in asserts for each in some}:
        for symbol in expression.free_symbols:
            if symbol_is_type(symbol, SymT.UNBACKED_INT):
                solved = try_solve(expression, symbol)
                if solved is not None and isinstance(solved[0], (sympy.Eq, sympy.Le, sympy.Lt)):
                    yield symbol, solved[1]
