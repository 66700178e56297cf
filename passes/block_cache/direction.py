"""What guidance adds to a prediction, as state: the conditional one less the unconditional one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from dit_compile import ops
from dit_compile.calibration.measured import GUIDANCE
from dit_compile.ir.program import Program
from dit_compile.passes.block_cache.insertion import State, declare, enter_states, forecast_of
from dit_compile.passes.block_cache.sites import Kept
from dit_compile.pipeline.rewriter import Rewriter

aten = torch.ops.aten


@dataclass(frozen=True)
class LeftOut:
    """How one of guidance's predictions is left out.

    Attributes:
        graph: the graph that leaves it out, empty if none does.
        critic: the graph that runs after a full step of the second of two calls, if any.
        states: the directions that are kept, if they are.
    """

    graph: str = ""
    critic: str = ""
    states: Sequence[State] = ()


def directions(
    rw: Rewriter, results: Sequence[fx.Node], depth: int, make: Callable[[int], fx.Node]
) -> list[State]:
    """The direction of each result, declared as state.

    Args:
        rw: the rewriter, in whose current graph they are computed.
        results: what the main graph returns.
        depth: how many of each are kept.
        make: computes that of a result, by its number.
    """
    states = []
    for number, result in enumerate(results):
        path = f"direction.{number}" if number else "direction"
        names = tuple(declare(rw.program, path, age=age) for age in range(depth))
        states.append(State(Kept(result), GUIDANCE, names, make(number)))
    return states


def forecasts(
    program: Program, rw: Rewriter, states: Sequence[State], before: fx.Node
) -> Iterator[fx.Node]:
    """The forecast of each direction, in the rewriter's current graph."""
    inputs = enter_states(program, rw.graph, states)
    for state in states:
        row, kept = forecast_of(program, state, inputs)
        yield rw.call(ops.forecast, row, kept, before=before, replaces=[kept[0]])
