"""What a step of the sampling loop costs, averaged over the schedule."""

from __future__ import annotations

from dataclasses import dataclass

from dit_compile.analysis.cost import CostValue, graph_cost, symbol_hints
from dit_compile.ir.program import Program

#: Steps that the average is taken over when nobody has said how many a generation has.
DEFAULT_STEPS = 50


@dataclass(frozen=True)
class StepCost:
    """Cost of a step.

    Attributes:
        graphs: cost of one run of each graph that serves steps.
        flops: floating-point operations of a step, averaged over the schedule.
        bytes_moved: bytes of a step if each operator runs on its own, averaged likewise.
        computed: steps of the average that run in full.
        steps: steps that the average is over.
    """

    graphs: dict[str, CostValue]
    flops: float
    bytes_moved: float
    computed: int
    steps: int


def step_cost(program: Program, steps: int = DEFAULT_STEPS) -> StepCost:
    """The cost of a step of ``program`` in a generation of ``steps`` steps.

    Symbolic sizes count as the sizes that the program was captured with.
    """
    graphs = {}
    for name, module in program.step_graphs():
        cost = graph_cost(module.graph, program.weight_nodes(module.graph)).total
        graphs[name] = cost.evaluate(symbol_hints(module.graph))
    names = dict(program.schedule.variants)
    chosen = [names.get(row, program.schedule.full) for row in program.schedule.mask(steps)]
    return StepCost(
        graphs,
        sum(graphs[name].flops for name in chosen) / steps,
        sum(graphs[name].bytes_moved for name in chosen) / steps,
        sum(name == program.schedule.full for name in chosen),
        steps,
    )
