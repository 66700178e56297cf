"""What guidance adds to a prediction, as state: the conditional one less the unconditional one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from dit_compile import ops
from dit_compile.calibration.measured import GUIDANCE
from dit_compile.ir.program import Program, output_node
from dit_compile.passes.block_cache.insertion import (
    State,
    declare_ages,
    enter_states,
    forecast_of,
    numbered,
)
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
        names = declare_ages(rw.program, numbered("direction", number), depth)
        states.append(State(Kept(result), GUIDANCE, names, make(number)))
    return states


def taken_off(
    program: Program, rw: Rewriter, values: Sequence[fx.Node], states: Sequence[State]
) -> list[fx.Node]:
    """Each conditional prediction less the forecast of its direction, at the graph's end."""
    inputs, end = enter_states(program, rw.graph, states), output_node(rw.graph)
    made = []
    for value, state in zip(values, states, strict=True):
        row, kept = forecast_of(program, state, inputs)
        forecast = rw.call(ops.forecast, row, kept, before=end, replaces=[value])
        made.append(rw.call(aten.sub.Tensor, value, forecast, before=end, replaces=[value]))
    return made
