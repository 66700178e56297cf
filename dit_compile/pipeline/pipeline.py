"""The Pipeline: a visible, ordered list of passes, and the loop that runs them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from dit_compile.errors import DitcError, PassError, PipelineError, VerificationError
from dit_compile.ir.fake import is_operator
from dit_compile.ir.fingerprint import computation, fingerprint
from dit_compile.ir.program import Program
from dit_compile.pipeline import text
from dit_compile.pipeline.base import Kind, Pass
from dit_compile.pipeline.presets import PRESETS
from dit_compile.pipeline.registry import find_pass
from dit_compile.pipeline.rewriter import Miss, Rewrite, RewriteLimitReached, Rewriter


@dataclass
class PassRecord:
    """What one pass did.

    Attributes:
        item: the pass.
        changed: whether the Program's fingerprint moved.
        nodes_before, nodes_after: operators of the main graph.
        rewrites, misses, notes, warnings: what the Rewriter kept.
        seconds: time in the pass itself.
        skipped: why it did not run, empty if it did.
        failure: the error that dropped it, empty if none.
        details: what instruments add, by instrument and key.
    """

    item: Pass
    changed: bool = False
    nodes_before: int = 0
    nodes_after: int = 0
    rewrites: list[Rewrite] = field(default_factory=list)
    misses: list[Miss] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0
    skipped: str = ""
    failure: str = ""
    details: dict[str, object] = field(default_factory=dict)


class OnFailure(Protocol):
    """Is told of a pass that failed."""

    def __call__(
        self, program: Program, pipeline: Pipeline, position: int, error: DitcError
    ) -> str:
        """Keep what there is to keep; returns what to add to the error's message."""
        ...


class Instrument(Protocol):
    """Watches a pipeline run. Instruments never edit the Program."""

    def start(self, program: Program) -> None:
        """Look at the captured Program."""
        ...

    def after(self, record: PassRecord, program: Program) -> None:
        """Look at what one pass left; raise to reject it."""
        ...


@dataclass
class PipelineRun:
    """The result of running a Pipeline.

    Attributes:
        pipeline: the passes.
        records: a record for each pass, in order.
        captured: fingerprint of the Program before any pass.
        seconds: time for all of it, instruments included.
    """

    pipeline: Pipeline
    records: list[PassRecord] = field(default_factory=list)
    captured: str = ""
    seconds: float = 0.0

    @property
    def dropped(self) -> list[PassRecord]:
        """The passes that failed and were undone."""
        return [record for record in self.records if record.failure]


@dataclass(frozen=True)
class Pipeline:
    """An ordered list of passes. ``Pipeline.parse(str(p)) == p``."""

    passes: tuple[Pass, ...] = ()

    @classmethod
    def parse(cls, source: str) -> Pipeline:
        """Read the text form. A preset's name stands for its passes.

        Raises:
            PipelineError: bad syntax, unknown pass or option, or a broken ordering constraint.
        """
        return cls(tuple(_expand(text.parse(source)))).validated()

    def validated(self) -> Pipeline:
        """This pipeline, if the passes' ordering constraints hold.

        Raises:
            PipelineError: naming the two passes to swap. Nothing is ever sorted silently.
        """
        names = [item.name for item in self.passes]
        for position, item in enumerate(self.passes):
            for earlier in item.after:
                if earlier in names[position + 1 :]:
                    raise PipelineError(
                        f"{item.name} must come after {earlier}; move it behind, or leave one out"
                    )
        return self

    def calibrated(self) -> Pipeline:
        """This pipeline, if all its passes know what they need.

        Raises:
            PipelineError: naming the pass that must be calibrated first.
        """
        for item in self.passes:
            if item.uncalibrated:
                raise PipelineError(
                    f"{item} must be calibrated first: plan = ditc.calibrate(sample, model, "
                    'passes=...), then options={"plan": plan}'
                )
        return self

    def __str__(self) -> str:
        return ",".join(str(item) for item in self.passes)

    def __iter__(self) -> Iterator[Pass]:
        return iter(self.passes)

    def __len__(self) -> int:
        return len(self.passes)

    def run(
        self,
        program: Program,
        *,
        instruments: Sequence[Instrument] = (),
        undo_failures: bool = False,
        limit: tuple[int, int] | None = None,
        into: PipelineRun | None = None,
        on_failure: OnFailure | None = None,
    ) -> PipelineRun:
        """Run all passes on ``program``, in place.

        Each pass is a transaction: one that fails leaves no trace. Without ``undo_failures`` so is
        the whole run: after an error ``program`` is what it was.

        Args:
            program: the Program to rewrite.
            instruments: watchers, called in order after each pass.
            undo_failures: drop a failing pass and go on, instead of raising.
            limit: ``(i, n)`` ends the run after ``n`` rewrites of pass ``i``; with ``n = 0`` that
                pass does not run at all.
            into: is filled with what was done, also when a pass raises.
            on_failure: is given the Program as the failing pass found it, the pipeline, the pass's
                position and the error; what it returns is added to the error's message.

        Returns:
            A record for each pass.

        Raises:
            PassError: a pass raised, or broke the rules of its kind.
            VerificationError: a pass left a broken graph, or was not exact as it claims.
        """
        started = time.perf_counter()
        pristine = program.copy()
        failures: dict[int, str] = {}
        while True:
            run = PipelineRun(self) if into is None else into
            run.records.clear()
            try:
                self._run_once(program, run, instruments, failures, limit)
            except _Failed as failed:
                program.restore(pristine.copy())
                if on_failure is not None:
                    found = pristine.copy()
                    self._run_once(found, PipelineRun(self), (), failures, (failed.position, 0))
                    note = on_failure(found, self, failed.position, failed.error)
                    failed.error.args = (f"{failed.error}{note}",)
                if not undo_failures:
                    raise failed.error from failed.__cause__
                failures[failed.position] = str(failed.error)
                continue
            for module in program.graphs.values():
                module.recompile()
            run.seconds = time.perf_counter() - started
            return run

    def _run_once(
        self,
        program: Program,
        run: PipelineRun,
        instruments: Sequence[Instrument],
        failures: dict[int, str],
        limit: tuple[int, int] | None,
    ) -> None:
        for instrument in instruments:
            instrument.start(program)
        before = run.captured = fingerprint(program)
        for position, item in enumerate(self.passes):
            if limit == (position, 0):
                return
            record = PassRecord(item, nodes_before=count_nodes(program))
            run.records.append(record)
            if position in failures:
                record.failure = failures[position]
            elif program.training and (item.bakes_weights or item.kind is Kind.APPROX):
                record.skipped = "autograd records"
            else:
                ends = limit[1] if limit and limit[0] == position else None
                try:
                    self._run_pass(item, record, program, ends, before)
                    for instrument in instruments:
                        instrument.after(record, program)
                except Exception as error:  # a pass, or a check of what it left, may raise anything
                    raise _Failed(position, _in_context(error, item, self, position)) from error
                before = str(record.details["fingerprint"])
            record.nodes_after = count_nodes(program)
            if limit and limit[0] == position:
                return

    @staticmethod
    def _run_pass(
        item: Pass, record: PassRecord, program: Program, limit: int | None, before: str
    ) -> None:
        rewriter = Rewriter(program, limit=limit)
        record.rewrites, record.misses = rewriter.rewrites, rewriter.misses
        record.notes, record.warnings = rewriter.notes, rewriter.warnings
        started = time.perf_counter()
        computed = computation(program) if item.kind is Kind.ANNOTATE else ""
        graphs_before = {name: id(module) for name, module in program.graphs.items()}
        with contextlib.suppress(RewriteLimitReached):
            item.run(program, rewriter)
        rewriter.finish()
        record.seconds = time.perf_counter() - started
        after = fingerprint(program)
        record.changed = after != before
        record.details["fingerprint"] = after
        graphs_after = {name: id(module) for name, module in program.graphs.items()}
        if item.kind is Kind.ANNOTATE:
            if computation(program) != computed:
                raise PassError("an ANNOTATE pass must not change a graph; it may only annotate")
        elif record.changed and not record.rewrites and graphs_before == graphs_after:
            raise PassError("it changed a graph without the Rewriter; edits must go through it")


class _Failed(Exception):  # noqa: N818 - internal signal
    """A pass failed at a position of the pipeline."""

    def __init__(self, position: int, error: DitcError) -> None:
        super().__init__(position)
        self.position = position
        self.error = error


def _in_context(error: Exception, item: Pass, pipeline: Pipeline, position: int) -> DitcError:
    """``error`` with the pass and the pipeline so far in its message."""
    known = isinstance(error, DitcError)
    head, _, rest = (str(error) if known else f"{type(error).__name__}: {error}").partition("\n")
    done = ",".join(str(earlier) for earlier in pipeline.passes[: position + 1])
    detail = f"\n{rest}" if rest else ""
    kind = type(error) if isinstance(error, (VerificationError, PipelineError)) else PassError
    return kind(f"pass {item.name} (#{position}): {head}{detail}\n  pipeline so far: {done}")


def count_nodes(program: Program) -> int:
    """Operators of the main graph; picking one of several results is not an operator."""
    return sum(map(is_operator, program.main.nodes))


def _expand(items: Iterable[text.Item]) -> Iterator[Pass]:
    for item in items:
        if item.name in PRESETS:
            if item.options:
                raise PipelineError(f"preset {item.name!r} takes no options; list its passes")
            yield from Pipeline.parse(PRESETS[item.name]).passes
        else:
            yield find_pass(item.name).from_options(item.options)
