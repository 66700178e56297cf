"""Counts which graphs served the steps of a generation, and their operations."""

from __future__ import annotations

from dit_compile.analysis.step_cost import step_cost
from dit_compile.ir.program import Program
from dit_compile.runtime.steps import Served


class Meter:
    """A watcher that counts the graphs that serve steps.

    Attributes:
        graphs: the name of the graph that served each step, in order.
        steps: steps of a generation.
        program: the Program of the last step.
    """

    def __init__(self) -> None:
        self.graphs: list[str] = []
        self.steps = 0
        self.program: Program | None = None
        self._ran: dict[int, tuple[Program, list[str]]] = {}

    def __call__(self, program: Program, served: Served) -> None:
        """Count one step of one lane."""
        self.program = program
        self.steps = max(self.steps, served.step.index + 1)
        self.graphs.append(served.graph)
        schedule = program.schedule
        _, ran = self._ran.setdefault(id(program), (program, []))
        ran += filter(None, (served.graph, schedule.probe, schedule.judge))

    @property
    def flops(self) -> float:
        """Operations of all steps, those of a probe and a judge among them."""
        total = 0.0
        for program, ran in self._ran.values():
            costs = step_cost(program).graphs
            total += sum(costs[name].flops for name in ran)
        return total
