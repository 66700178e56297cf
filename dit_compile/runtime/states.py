"""The state of a lane: what its steps return for later ones, and what is forecast from it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from itertools import islice

import torch

from dit_compile.errors import DitcWarning
from dit_compile.ir.fake import tensor_of
from dit_compile.ir.program import Input, InputKind, Program, placeholders
from dit_compile.ir.schedule import Done, Step
from dit_compile.runtime.generation import Lane


class States:
    """Keeps states by name, the latest first, where a Program declares them.

    Args:
        program: the Program.
    """

    def __init__(self, program: Program) -> None:
        self._schedule = program.schedule
        self._noted = False
        ages: dict[str, list[Input]] = {}
        for spec in program.of_kind(InputKind.STATE):
            ages.setdefault(spec.path, []).append(spec)
        by_age = (sorted(specs, key=lambda spec: spec.age) for specs in ages.values())
        #: For the state that graphs return, the names of all that is kept of it.
        self._names = {specs[0].name: [spec.name for spec in specs] for specs in by_age}
        devices = {
            str(node.target): tensor_of(node).device
            for _, module in program.step_graphs()
            for node in placeholders(module.graph)
            if program.kind_of(node) is InputKind.COEFFICIENTS
        }
        self._forecasts = [
            (spec.name, spec.path, devices[spec.name])
            for spec in program.of_kind(InputKind.COEFFICIENTS)
        ]

    def missing(self, lane: Lane) -> str:
        """Why nothing can be reused in ``lane`` yet, empty if something can."""
        return "" if self._names.keys() <= lane.state.keys() else "nothing was computed before"

    def note_length(self, step: Step) -> None:
        """Say once that a schedule that was calibrated for another length is stretched."""
        policy = self._schedule.policy
        made_for = policy.steps if policy is not None else None
        if self._noted or not (step.total and made_for) or step.total == made_for:
            return
        self._noted = True
        warnings.warn(
            f"ditc: the cache was calibrated for {made_for} steps and is stretched to "
            f"{step.total}; calibrate again for the best quality",
            DitcWarning,
            stacklevel=2,
        )

    def keep(self, lane: Lane, returned: Mapping[str, torch.Tensor]) -> None:
        """Take over what a step returned; what it was before grows older."""
        for name, value in returned.items():
            names = self._names[name]
            older = [lane.state.get(each, value) for each in names[:-1]]
            lane.state.update(zip(names, [value, *older], strict=True))

    def coefficients(
        self, step: Step, lane: Lane, computed: frozenset[str]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """The coefficients of each forecast that is made at ``step``, by input name."""
        policy = self._schedule.policy
        assert policy is not None
        for name, group, device in self._forecasts:
            if group in computed:
                continue
            steps = (done.step for done in reversed(lane.past) if group in done.computed)
            known = list(islice(steps, policy.depth))
            row = [*policy.coefficients(step, known), *[0.0] * (policy.depth - len(known))]
            yield name, torch.tensor(row, dtype=torch.float32, device=device)

    def record(self, lane: Lane, done: Done) -> None:
        """Count a step, and remember it for the policy."""
        lane.past.append(done)
        if done.computed.issuperset(self._schedule.groups):
            lane.served["computed"] += 1
        else:
            lane.served["forecast" if self._forecasts else "reused"] += 1
