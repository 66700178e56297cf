"""Reports which pass of how many runs."""

from __future__ import annotations

from dit_compile import progress
from dit_compile.ir.program import Program
from dit_compile.pipeline.pipeline import PassRecord, Pipeline


class Stage:
    """An instrument that names each pass before it runs.

    Args:
        pipeline: the passes.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._passes = pipeline.passes
        self._next = 0

    def start(self, program: Program) -> None:
        """Name the first pass; a pipeline starts again after a pass that failed."""
        self._next = 0
        self._report()

    def after(self, record: PassRecord, program: Program) -> None:
        """Name the pass behind this one. Passes that are left out are not heard of."""
        while self._next < len(self._passes):
            self._next += 1
            if self._passes[self._next - 1] is record.item:
                break
        self._report()

    def _report(self) -> None:
        if self._next < len(self._passes):
            name, count = self._passes[self._next].name, len(self._passes)
            progress.report(f"pass {self._next + 1} of {count}, {name}")
