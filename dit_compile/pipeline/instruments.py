"""Watchers of a pipeline run: the structural verifier, numeric checks, cost, and snapshots."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from dit_compile.analysis.step_cost import StepCost, step_cost
from dit_compile.errors import NumericError
from dit_compile.ir.printer import print_program
from dit_compile.ir.program import MAIN, Program
from dit_compile.ir.verifier import Verifier, check_printing
from dit_compile.pipeline.base import Kind
from dit_compile.pipeline.pipeline import PassRecord
from dit_compile.quality.metrics import relative_l2
from dit_compile.runtime.reference import run_reference

#: How much larger than before the error against float64 may get, by dtype.
_GROWTH = {torch.float16: 3.0, torch.bfloat16: 3.0}


@dataclass
class StructuralCheck:
    """Runs the verifier on the captured Program and after every pass; adds up its time."""

    seconds: float = 0.0
    _verifier: Verifier = field(default_factory=Verifier)

    def start(self, program: Program) -> None:
        """Verify what capture made; what the caller gets must stay so from here on."""
        self._verifier = Verifier()
        self._check(program)

    def after(self, record: PassRecord, program: Program) -> None:
        """Verify what a pass left.

        Raises:
            VerificationError: an invariant is broken.
        """
        if record.changed:
            record.details["verify_seconds"] = self._check(program)

    def _check(self, program: Program) -> float:
        started = time.perf_counter()
        self._verifier.check(program)
        for name in program.graphs:
            check_printing(program, name)
        taken = time.perf_counter() - started
        self.seconds += taken
        return taken


@dataclass
class Snapshots:
    """Keeps the text of the whole Program at every stage, the captured one first."""

    texts: list[str] = field(default_factory=list)

    def start(self, program: Program) -> None:
        """Keep the captured Program."""
        self.texts = [print_program(program)]

    def after(self, record: PassRecord, program: Program) -> None:
        """Keep what a pass left."""
        self.texts.append(print_program(program) if record.changed else self.texts[-1])


@dataclass
class CostMeter:
    """Keeps the cost of a step at every stage, the captured one first."""

    costs: list[StepCost] = field(default_factory=list)

    def start(self, program: Program) -> None:
        """Cost of the captured program."""
        self.costs = [step_cost(program)]

    def after(self, record: PassRecord, program: Program) -> None:
        """Cost of what a pass left."""
        self.costs.append(step_cost(program) if record.changed else self.costs[-1])
        record.details["cost"] = (self.costs[-2], self.costs[-1])


@dataclass
class NumericCheck:
    """Compares every stage with the captured Program run in float64.

    An ``EXACT`` or ``LOWER`` pass must obey ``rmse(new) <= m * rmse(old) + tiny``, both against
    float64, with m = 2 (3 in half precision); ``tiny`` is one rounding of the output's dtype.
    The error of an ``APPROX`` pass is recorded, not judged.

    Attributes:
        inputs: example values by input name; weights included.
    """

    inputs: Mapping[str, Any]
    _exact: list[torch.Tensor] = field(default_factory=list)
    _before: dict[str, list[float]] = field(default_factory=dict)
    _dtypes: list[torch.dtype] = field(default_factory=list)

    def start(self, program: Program) -> None:
        """Compute the float64 reference and the captured program's own error."""
        self._exact = run_reference(program, self.inputs, double=True)[MAIN]
        self._before = self._errors(program)

    def after(self, record: PassRecord, program: Program) -> None:
        """Judge what a pass left.

        Raises:
            NumericError: a pass that claims to be exact is not.
        """
        if not record.changed:
            return
        errors = self._errors(program)
        worst = 0.0
        for graph, new in errors.items():
            old = self._before.get(graph, self._before[MAIN])
            for position, (was, now) in enumerate(zip(old, new, strict=True)):
                noise = self._noise(position)
                worst = max(worst, now / max(was, noise))
                if record.item.kind in (Kind.EXACT, Kind.LOWER):
                    self._judge(graph, position, was, now, noise)
        record.details["error_growth"] = worst
        self._before = errors

    def _judge(self, graph: str, position: int, was: float, now: float, noise: float) -> None:
        growth = _GROWTH.get(self._dtypes[position], 2.0)
        if not now <= growth * was + noise:
            raise NumericError(
                f"the pass is not exact: result {position} of graph @{graph} is {now:.3g} away "
                f"from float64 (relative L2), {was:.3g} before it; at most "
                f"{growth:g} x {was:.3g} + {noise:.3g} is rounding"
            )

    def _errors(self, program: Program) -> dict[str, list[float]]:
        outputs = run_reference(program, self.inputs)
        self._dtypes = [value.dtype for value in outputs[MAIN]]
        return {
            name: [
                float(relative_l2(value.double(), exact))
                for value, exact in zip(values, self._exact, strict=True)
            ]
            for name, values in outputs.items()
        }

    def _noise(self, position: int) -> float:
        dtype = self._dtypes[position]
        return torch.finfo(dtype).eps if dtype.is_floating_point else 0.0
