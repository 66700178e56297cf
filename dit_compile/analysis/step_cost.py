"""What a step of the sampling loop costs, averaged over the schedule."""

from __future__ import annotations

from dataclasses import dataclass

from dit_compile.analysis.cost import CostValue, graph_cost
from dit_compile.ir.hints import symbol_hints
from dit_compile.ir.program import Program
from dit_compile.ir.schedule import Schedule

#: Steps that the average is taken over when nobody has said how many a generation has.
DEFAULT_STEPS = 50


@dataclass(frozen=True)
class StepCost:
    """Cost of a step.

    Attributes:
        graphs: cost of one run of each graph that serves steps.
        flops: floating-point operations of a step, averaged over the schedule.
        bytes_moved: bytes of a step if each operator runs on its own, averaged likewise.
        computed: steps of the average that run in full; ``None`` if only running tells, and then
            the average is that of steps that do.
        steps: steps that the average is over.
    """

    graphs: dict[str, CostValue]
    flops: float
    bytes_moved: float
    computed: int | None
    steps: int


def step_cost(program: Program, steps: int | None = None) -> StepCost:
    """The cost of a step of ``program``; see :func:`average`.

    Symbolic sizes count as the sizes that the program was captured with.
    """
    graphs = {}
    for name in program.schedule.graphs():
        graph = program.graphs[name].graph
        cost = graph_cost(graph, program.weight_nodes(graph)).total
        graphs[name] = cost.evaluate(symbol_hints(graph))
    return average(program.schedule, graphs, steps)


def average(schedule: Schedule, graphs: dict[str, CostValue], steps: int | None = None) -> StepCost:
    """The cost of a step in a generation of ``steps`` steps, from what one run of each graph costs.

    By default these are as many as its policy was calibrated for, or ``DEFAULT_STEPS``. Where a
    second call is compared with a first, steps are the calls of both, and the first are full.
    """
    steps = steps or planned_steps(schedule)
    rows = schedule.mask(steps)
    chosen = [schedule.choose(row)[1] for row in rows] if rows else [schedule.full] * steps
    always = [name for name in (schedule.probe, schedule.judge) if name]
    first = [schedule.full] * steps if schedule.critic else []
    ran, calls = [*chosen, *first, *always * steps], steps + len(first)
    return StepCost(
        graphs,
        sum(graphs[name].flops for name in ran) / calls,
        sum(graphs[name].bytes_moved for name in ran) / calls,
        sum(name == schedule.full for name in chosen) if rows else None,
        steps,
    )


def planned_steps(schedule: Schedule) -> int:
    """Steps of a generation when nobody has said how many it has."""
    calibrated = schedule.policy.steps if schedule.policy else None
    return calibrated or DEFAULT_STEPS
