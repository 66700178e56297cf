"""Compute what depends on weights alone once and for all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dit_compile.ir.program import MAIN, WEIGHTS, Binding, Program
from dit_compile.passes.hoist.cut import more_to_read, within, worthwhile
from dit_compile.pipeline.base import Kind, Pass
from dit_compile.pipeline.rewriter import Rewriter


@dataclass(frozen=True, kw_only=True)
class FoldWeights(Pass):
    """Compute what depends on weights alone once and for all.

    Before:  %f = aten.exp(aten.arange(0, 128)); %a = aten.mul(%t, %f)
    After:   %a = aten.mul(%t, @weights.time_proj)
    Fires only if: computing the value moves more bytes than reading it, and all such values fit
    ``max_bytes``. They are computed again when a weight changes.

    Attributes:
        max_bytes: memory that folded values may take beside the weights they come from.
    """

    name: ClassVar[str] = "fold-weights"
    kind: ClassVar[Kind] = Kind.EXACT
    bakes_weights: ClassVar[bool] = True
    max_bytes: int = 16 << 20

    def run(self, program: Program, rw: Rewriter) -> None:
        """Cut the main graph where weights meet inputs."""
        rw.graph_name = MAIN
        found = worthwhile(program, Binding.WEIGHT, rw, more_to_read)
        rw.hoist(within(found, self.max_bytes, rw), WEIGHTS)
