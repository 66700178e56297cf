"""Compute what depends on the timestep for all steps at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dit_compile.errors import PipelineError
from dit_compile.ir.program import MAIN, TABLE, Binding, Program
from dit_compile.passes.hoist.cut import within, worthwhile
from dit_compile.pipeline.base import Kind, Pass
from dit_compile.pipeline.rewriter import Rewriter


@dataclass(frozen=True, kw_only=True)
class HoistTimestep(Pass):
    """Compute what depends on the timestep for all steps at once.

    Before:  %c = aten.silu(%time); %mod = aten.linear(%c, @norm1.linear.weight)
    After:   %mod is a row of a table: for T steps, T products with a vector became one with a
             matrix, and the weights are read once a generation
    Fires only if: computing the value moves more bytes than reading it, and ``rows`` rows of all
    such values fit ``max_bytes``. A step that was not foreseen computes its own row.

    Attributes:
        max_bytes: memory that the table of one prompt may take.
        rows: steps that the table is taken to have.
    """

    name: ClassVar[str] = "hoist-timestep"
    kind: ClassVar[Kind] = Kind.EXACT
    bakes_weights: ClassVar[bool] = True
    after: ClassVar[tuple[str, ...]] = ("fold-weights", "hoist-invariant")
    max_bytes: int = 512 << 20
    rows: int = 50

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise PipelineError(f"{self.name}: rows must be at least 1, not {self.rows}")

    def run(self, program: Program, rw: Rewriter) -> None:
        """Cut the main graph where the timestep meets the latent."""
        rw.graph_name = MAIN
        found = worthwhile(program, Binding.TIMESTEP, rw)
        rw.hoist(within(found, self.max_bytes, rw, rows=self.rows), TABLE)
