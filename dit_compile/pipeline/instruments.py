"""Watchers of a pipeline run: the structural verifier and the numeric check."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from dit_compile.errors import NumericError, OptionError
from dit_compile.ir.program import MAIN, Program
from dit_compile.ir.purity import is_random
from dit_compile.ir.verifier import Verifier, check_printing
from dit_compile.pipeline.base import Kind
from dit_compile.pipeline.pipeline import PassRecord
from dit_compile.quality.metrics import relative_l2
from dit_compile.runtime.reference import run_reference

#: How much larger than before the error against float64 may get, by dtype.
_GROWTH = {torch.float16: 3.0, torch.bfloat16: 3.0}
#: How far results may move with all values in float64: an operator may use float32 inside.
_SAME = 1e-6
_CONTEXT_LINES = 5


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
class NumericCheck:
    """Compares every stage with the captured Program run in float64.

    An ``EXACT`` or ``LOWER`` pass must keep the mathematics: with all values in float64, results
    stay where they are. It must also keep the rounding: ``rmse(new) <= m * rmse(old) + tiny``, both
    against float64, with m = 2 (3 in half precision); ``tiny`` is one rounding of the output's
    dtype. The error of an ``APPROX`` pass is recorded, not judged.

    Attributes:
        inputs: example values by input name; weights included.
        captured: the captured Program's own error at each result, by graph.
        seconds: time spent here.
    """

    inputs: Mapping[str, Any]
    captured: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0
    _exact: list[Any] = field(default_factory=list)
    _wide: dict[str, list[Any]] = field(default_factory=dict)
    _before: dict[str, list[float]] = field(default_factory=dict)
    _dtypes: list[torch.dtype] = field(default_factory=list)

    def start(self, program: Program) -> None:
        """Compute the float64 reference and the captured program's own error.

        Raises:
            OptionError: the program draws random numbers, so no two runs of it agree.
        """
        random = next(filter(is_random, program.main.nodes), None)
        if random is not None:
            raise OptionError(
                f"the model draws random numbers (%{random.name}), so its results cannot be "
                "compared; call model.eval(), or turn the numeric check off"
            )
        started = time.perf_counter()
        self._wide = run_reference(program, self.inputs, double=True)
        self._exact = self._wide[MAIN]
        self._before = self.captured = self._errors(program)
        self.seconds = time.perf_counter() - started

    def after(self, record: PassRecord, program: Program) -> None:
        """Judge what a pass left.

        Raises:
            NumericError: a pass that claims to be exact is not.
        """
        if not record.changed:
            return
        started = time.perf_counter()
        wide = run_reference(program, self.inputs, double=True)
        errors = self._errors(program)
        worst = 0.0
        for graph, new in errors.items():
            old = self._before.get(graph, self._before[MAIN])
            for position, (was, now) in enumerate(zip(old, new, strict=True)):
                worst = max(worst, now / max(was, _noise(self._dtypes[position])))
                if record.item.kind not in (Kind.EXACT, Kind.LOWER):
                    continue
                known = self._wide.get(graph, self._wide[MAIN])[position]
                moved = _distance(wide[graph][position], known)
                wrong = self._verdict(position, moved, was, now)
                if wrong:
                    raise NumericError(
                        f"the pass is not exact: result {position} of graph @{graph} {wrong}"
                        + _first_rewrite(record)
                    )
        self._before, self._wide = errors, wide
        taken = time.perf_counter() - started
        self.seconds += taken
        record.details.update(error_growth=worst, errors=errors, numerics_seconds=taken)

    def _verdict(self, position: int, moved: float, was: float, now: float) -> str:
        """What is wrong with a result of an exact pass, empty if nothing is."""
        if not moved <= _SAME:
            return f"moves by {moved:.3g} (relative L2) even in float64"
        dtype = self._dtypes[position]
        growth, noise = _GROWTH.get(dtype, 2.0), _noise(dtype)
        if not now <= growth * was + noise:
            return (
                f"is {now:.3g} away from float64 (relative L2), {was:.3g} before it; at most "
                f"{growth:g} x {was:.3g} + {noise:.3g} is rounding"
            )
        return ""

    def _errors(self, program: Program) -> dict[str, list[float]]:
        outputs = run_reference(program, self.inputs)
        self._dtypes = [getattr(value, "dtype", torch.int64) for value in outputs[MAIN]]
        return {
            name: [_distance(*pair) for pair in zip(values, self._exact, strict=True)]
            for name, values in outputs.items()
        }


def _distance(value: Any, exact: Any) -> float:
    """Relative L2 distance of tensors; Python values are equal or infinitely far apart."""
    if not isinstance(exact, torch.Tensor):
        return 0.0 if value == exact else math.inf
    if exact.numel() == 0:
        return 0.0
    if exact.is_complex():
        value, exact = torch.view_as_real(value), torch.view_as_real(exact)
    return relative_l2(value, exact)


def _noise(dtype: torch.dtype) -> float:
    """One rounding; integers have none of their own."""
    inexact = dtype.is_floating_point or dtype.is_complex
    return torch.finfo(dtype if inexact else torch.float64).eps


def _first_rewrite(record: PassRecord) -> str:
    """Where to look: the lines that the pass's first rewrite took away and put in their place."""
    if not record.rewrites:
        return ""
    first = record.rewrites[0]
    lines = [f"\n  first of {len(record.rewrites)} rewrites, in graph @{first.graph}:"]
    lines += [f"  - {line}" for line in first.removed[:_CONTEXT_LINES]]
    lines += [f"  + {line}" for line in first.added[:_CONTEXT_LINES]]
    lines += [f"  module: {first.path}"] if first.path else []
    lines += [f"  source: {first.source}"] if first.source else []
    return "\n".join(lines)
