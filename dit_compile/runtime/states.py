"""The state of a lane: what its steps return for later ones, and what is forecast from it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from dit_compile.errors import DitcWarning
from dit_compile.ir.interface import Input, InputKind
from dit_compile.ir.schedule import Done, Schedule, Step
from dit_compile.runtime.generation import FIRST, Kept, Place

#: Decisions after which a threshold that always gave the same answer is in question.
_ENOUGH_STEPS = 8

#: Makes the value of an input from its coefficients.
Vector = Callable[[str, Sequence[float]], Any]


class States:
    """Keeps states by name, the latest first, where a Program declares them.

    Args:
        schedule: of the Program.
        inputs: all inputs of the Program.
        vector: makes the value of an input of coefficients from its name and its numbers.
    """

    def __init__(self, schedule: Schedule, inputs: Iterable[Input], vector: Vector) -> None:
        self._schedule = schedule
        self._vector = vector
        self._noted = False
        self._questioned = False
        inputs = list(inputs)
        ages: dict[str, list[Input]] = {}
        for spec in inputs:
            if spec.kind is InputKind.STATE and not spec.peer:
                ages.setdefault(spec.path, []).append(spec)
        for specs in ages.values():
            specs.sort(key=lambda spec: spec.age)
        #: For the state that graphs return, the names of all that is kept of it.
        self._names = {specs[0].name: [spec.name for spec in specs] for specs in ages.values()}
        #: For each state of the peer that graphs read, what it is called there.
        self._peers = {spec.name: ages[spec.path][0].name for spec in inputs if spec.peer}
        self._forecasts = [
            (spec.name, spec.path) for spec in inputs if spec.kind is InputKind.COEFFICIENTS
        ]

    def missing(self, kept: Kept) -> str:
        """Why nothing can be reused of what is kept yet, empty if something can."""
        return "" if self._names.keys() <= kept.state.keys() else FIRST

    def of_peer(self, peer: Kept | None) -> dict[str, Any]:
        """What graphs read of the peer's state; nothing where it has none, or there is no peer."""
        state = peer.state if peer is not None else {}
        known = state.keys() >= set(self._peers.values())
        return {name: state[theirs] for name, theirs in self._peers.items()} if known else {}

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

    def keep(self, kept: Kept, returned: Mapping[str, Any]) -> None:
        """Take over what a step returned; what it was before grows older."""
        for name, value in returned.items():
            names = self._names[name]
            older = [kept.state.get(each, value) for each in names[:-1]]
            kept.state.update(zip(names, [value, *older], strict=True))

    def coefficients(
        self, step: Step, kept: Kept, computed: frozenset[str]
    ) -> Iterator[tuple[str, Any]]:
        """The coefficients of each forecast that is made at ``step``, by input name."""
        policy = self._schedule.policy
        assert policy is not None
        for name, group in self._forecasts:
            if group in computed:
                continue
            steps = (done.step for done in reversed(kept.past) if group in done.computed)
            known = list(islice(steps, policy.depth))
            row = [*policy.coefficients(step, known), *[0.0] * (policy.depth - len(known))]
            yield name, self._vector(name, row)

    def record(self, place: Place, done: Done) -> None:
        """Count a step, and remember it for the policy."""
        place.kept.past.append(done)
        if len(self._schedule.variants) > 1 and done.step.last:
            self._question(place)
        if done.computed.issuperset(self._schedule.groups):
            place.lane.served["computed"] += 1
        else:
            place.lane.served["forecast" if self._forecasts else "reused"] += 1

    def _question(self, place: Place) -> None:
        """Say once if a whole generation went by in which the policy decided nothing."""
        past, policy = place.kept.past, self._schedule.policy
        opened = [done for i, done in enumerate(past) if self._is_open(done.step, past[:i])]
        asked = opened or past
        if self._questioned or len(asked) < _ENOUGH_STEPS or place.lane.why.keys() - {FIRST}:
            return
        changes = [done.step.change for done in asked if done.step.change is not None]
        if self.missing(place.kept) or (policy is not None and policy.dynamic and not changes):
            return  # the other call of guidance is asked
        if all(done.computed.issuperset(self._schedule.groups) for done in asked):
            smallest = f" (smallest change {min(changes):.3g})" if changes else ""
            said = f"reused nothing{smallest}; allow more change"
        elif changes and sum(bool(done.computed) for done in asked) <= (not opened):
            largest = f"(largest change {max(changes):.3g})"
            said = f"reused every step that was in question {largest}; allow less change"
        else:
            return
        self._questioned = True
        warnings.warn(
            f"ditc: in {len(past)} steps the cache {said}, or let ditc.calibrate choose how much",
            DitcWarning,
            stacklevel=2,
        )

    def _is_open(self, step: Step, past: Sequence[Done]) -> bool:
        """Whether what was measured at ``step`` decided, rather than a warm-up or a limit."""
        if step.change is None:
            return False
        least, most = (
            self._schedule.row(replace(step, change=change), past) for change in (0.0, math.inf)
        )
        return least != most
