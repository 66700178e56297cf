"""Finds the first pass, then the first single rewrite of it, that makes a check fail."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dit_compile import config
from dit_compile.errors import OptionError
from dit_compile.ir.program import Program
from dit_compile.json_files import parse_json, read_as
from dit_compile.pipeline.instruments import StructuralCheck
from dit_compile.pipeline.pipeline import Instrument, PassRecord, Pipeline, PipelineRun
from dit_compile.report.codec import plain_fields
from dit_compile.report.diff import diff_lines
from dit_compile.report.model import Rewrite
from dit_compile.shown import shown

#: The first ``i`` passes as a whole, then ``n`` rewrites of the next; ``None`` for all passes.
Limit = tuple[int, int] | None


@dataclass(frozen=True)
class Ran:
    """What one run of the check did.

    Attributes:
        ok: whether the check passed.
        names: the passes of the pipeline.
        counts: rewrites of each pass that ran.
        last: the last rewrite.
    """

    ok: bool
    names: Sequence[str] = ()
    counts: Sequence[int] = ()
    last: Rewrite | None = None


@dataclass(frozen=True)
class Culprit:
    """What makes the check fail.

    Attributes:
        position: the pass's position in the pipeline.
        name: its name.
        rewrite: the first rewrite with which the check fails, counted from 1; 0 if the pass does
            its work without counted rewrites.
        rewrites: how many rewrites the pass does.
        runs: how many times the check ran.
        change: what that rewrite did.
    """

    position: int
    name: str
    rewrite: int
    rewrites: int
    runs: int
    change: Rewrite | None

    def text(self) -> str:
        """The answer, with the diff."""
        which = f", rewrite {self.rewrite} of {self.rewrites}" if self.rewrite else ""
        lines = [f"first failing: pass {self.name} (#{self.position}){which}; {self.runs} runs"]
        if self.change is not None:
            lines += diff_lines(f"#{self.position} {self.name}", [self.change])
            lines += [f"source: {self.change.source}"] if self.change.source else []
        return "\n".join(map(shown, lines))


@dataclass(frozen=True)
class _Told:
    """What a process tells of one run; see :func:`log_run`."""

    names: list[str]
    counts: list[int]
    last: Rewrite | None


def search(probe: Callable[[Limit], Ran]) -> Culprit:
    """Bisect over passes, then over the rewrites of the failing one.

    Takes at most ``2 + log2(passes) + log2(rewrites)`` runs, rounded up.

    Args:
        probe: runs the check with the pipeline ended at a limit.

    Raises:
        OptionError: the check passes with all passes, or fails without any.
    """
    runs = 0

    def run(limit: Limit) -> Ran:
        nonlocal runs
        runs += 1
        return probe(limit)

    full = run(None)
    if full.ok:
        raise OptionError("the check passes with all passes on; there is nothing to find")
    if not full.names:
        raise OptionError("the check fails, but it never ran a pipeline of ditc")
    if not run((0, 0)).ok:
        raise OptionError("the check fails even without any pass; the cause is not a pass")
    good, bad, at_bad = 0, len(full.names), full
    while bad - good > 1:
        middle = (good + bad) // 2
        ran = run((middle, 0))
        good, bad, at_bad = (middle, bad, at_bad) if ran.ok else (good, middle, ran)
    position = bad - 1
    total = at_bad.counts[position] if position < len(at_bad.counts) else 0
    good, bad = 0, total
    while bad - good > 1:
        middle = (good + bad) // 2
        ran = run((position, middle))
        good, bad, at_bad = (middle, bad, at_bad) if ran.ok else (good, middle, ran)
    return Culprit(position, full.names[position], bad, total, runs, at_bad.last)


def bisect(
    program: Program,
    pipeline: Pipeline,
    check: Callable[[Program], object] | None = None,
    *,
    instruments: Callable[[], Sequence[Instrument]] = lambda: [StructuralCheck()],
) -> Culprit:
    """Find what makes ``check`` fail on a Program; neither is changed.

    Args:
        program: the captured Program.
        pipeline: the passes.
        check: fails by raising or by returning ``False``; it is given the rewritten Program.
        instruments: checks that run after each pass, such as the comparison with float64.

    Raises:
        OptionError: see :func:`search`.
    """
    names = [item.name for item in pipeline]

    def probe(limit: Limit) -> Ran:
        run, copy = PipelineRun(pipeline), program.copy()
        try:
            pipeline.run(copy, instruments=instruments(), limit=limit, into=run)
            ok = check is None or check(copy) is not False
        except Exception:  # any way to fail is one
            ok = False
        return Ran(ok, names, [len(r.rewrites) for r in run.records], _last(run.records))

    return search(probe)


def bisect_command(command: Sequence[str]) -> Culprit:
    """Find what makes a command fail that runs ditc; its exit status is the check.

    Each run of the command ends every pipeline at the same limit, and tells what it did.

    Raises:
        OptionError: see :func:`search`; or the command cannot be started.
    """

    def probe(limit: Limit) -> Ran:
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "runs.jsonl"
            environment = config.environment_for_bisection(limit, str(log))
            try:
                done = subprocess.run(  # noqa: S603 - the user's own command
                    list(command), env=environment, stdout=subprocess.DEVNULL, check=False
                )
            except OSError as error:
                raise OptionError(f"cannot run {command[0]!r}: {error}") from error
            return _told(done.returncode == 0, log)

    return search(probe)


def log_run(run: PipelineRun, path: str) -> None:
    """Tell a bisection in another process what a run did; runs that raise are told as well."""
    last = _last(run.records)
    told: dict[str, object] = {
        "names": [item.name for item in run.pipeline],
        "counts": [len(record.rewrites) for record in run.records],
        "last": last,
    }
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(told, default=plain_fields) + "\n")


def _told(ok: bool, log: Path) -> Ran:
    """What all pipelines of a process did: of several graphs, the one with most rewrites counts."""
    if not log.exists():
        return Ran(ok)
    lines = log.read_bytes().split(b"\n")[:-1]  # a process that was killed ends within a line
    if not lines:
        return Ran(ok)
    try:
        runs = [read_as(_Told, parse_json(line.decode()), "a run") for line in lines]
    except ValueError as error:
        raise OptionError(f"the command wrote into the log of bisection: {error}") from None
    names = max((run.names for run in runs), key=len)
    counts = [
        max((run.counts[i] for run in runs if i < len(run.counts)), default=0)
        for i in range(len(names))
    ]
    return Ran(ok, names, counts, max(runs, key=lambda run: sum(run.counts)).last)


def _last(records: Sequence[PassRecord]) -> Rewrite | None:
    for record in reversed(records):
        if record.rewrites:
            found = record.rewrites[-1]
            return Rewrite(
                found.graph, found.path, list(found.removed), list(found.added), found.source
            )
    return None
