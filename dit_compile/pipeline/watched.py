"""Running a pipeline for a user: under a bisection if there is one, and with a repro of a crash."""

from __future__ import annotations

from collections.abc import Sequence

from dit_compile import config
from dit_compile.bisect import log_run
from dit_compile.ir.program import Program
from dit_compile.pipeline.pipeline import Instrument, Pipeline, PipelineRun
from dit_compile.pipeline.stage import Stage
from dit_compile.pipeline.trace import Trace
from dit_compile.repro import keep_repro


def run_watched(
    pipeline: Pipeline,
    program: Program,
    *,
    instruments: Sequence[Instrument] = (),
    undo_failures: bool = False,
) -> PipelineRun:
    """Like :meth:`Pipeline.run`.

    ``ditc bisect -- command`` ends it early, and reads what it did from a log. A pass that fails
    leaves a folder that reproduces it, which the error names.
    """
    limit, log = config.bisection()
    run = PipelineRun(pipeline)
    try:
        return pipeline.run(
            program,
            instruments=[*instruments, Trace(), Stage(pipeline)],
            undo_failures=undo_failures,
            limit=limit,
            into=run,
            on_failure=None if log else keep_repro,
        )
    finally:
        if log:
            log_run(run, log)
