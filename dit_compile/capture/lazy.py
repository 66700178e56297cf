"""Arguments that are lazily conjugated or negated, written out before a graph is made of them.

Such a tensor shares the memory of the one that it was made of, and torch's operators heed a bit of
it. Generated code reads the memory alone: stock Inductor returns the wrong sign for a ``neg`` view.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import fx

from dit_compile.ir.program import copy_graph, placeholders

Function = Callable[..., Any]


def is_lazy(value: object) -> bool:
    """Whether ``value`` is a tensor whose memory is not yet what it stands for."""
    return isinstance(value, torch.Tensor) and (value.is_conj() or value.is_neg())


def with_lazy_inputs(
    module: fx.GraphModule,
    inputs: Sequence[Any],
    compile: Callable[[fx.GraphModule, Sequence[Any]], Function],
) -> Function:
    """Compile ``module`` for inputs of which none is lazy, and write out those of each call.

    Args:
        module: a graph from Dynamo, which is not changed. Dynamo compiles again where an input is
            lazy and was not, so which ones are is settled here.
        inputs: its example inputs.
        compile: makes a callable of a graph and its example inputs.
    """
    lazy = {position for position, value in enumerate(inputs) if is_lazy(value)}
    if not lazy:
        return compile(module, inputs)
    module = copy_graph(module)
    for position, node in enumerate(placeholders(module.graph)):
        if position in lazy:
            node.meta["example_value"] = _written_out(node.meta["example_value"])
    given = [_written_out(value) if i in lazy else value for i, value in enumerate(inputs)]
    return _Resolving(compile(module, given), lazy)


def _written_out(value: torch.Tensor) -> torch.Tensor:
    return value.resolve_conj().resolve_neg().detach().requires_grad_(value.requires_grad)


class _Resolving:
    """Calls a function with some arguments written out, and hands back what it wrote to them."""

    def __init__(self, function: Function, lazy: Collection[int]) -> None:
        self._function = function
        self._lazy = lazy

    def __call__(self, *args: Any) -> Any:
        given, marks = list(args), {}
        for position in self._lazy:
            given[position] = args[position].resolve_conj().resolve_neg()
            marks[position] = _mark(given[position])
        results = self._function(*given)
        for position, mark in marks.items():
            if mark is None or mark != _mark(given[position]):
                args[position].copy_(given[position])
        return results


def _mark(value: torch.Tensor) -> int | None:
    """Changes when ``value`` is written to; ``None`` where torch does not count that."""
    return None if value.is_inference() else value._version
