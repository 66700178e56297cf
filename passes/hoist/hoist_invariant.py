"""Compute what is fixed for a generation once a generation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dit_compile.ir.program import MAIN, PROLOGUE, Binding, Program
from dit_compile.passes.hoist.cut import more_to_read, within, worthwhile
from dit_compile.pipeline.base import Kind, Pass
from dit_compile.pipeline.rewriter import Rewriter


@dataclass(frozen=True, kw_only=True)
class HoistInvariant(Pass):
    """Compute what is fixed for a generation once a generation.

    Before:  %k = aten.linear(%prompt, @to_k.weight); %y = aten.scaled_dot_product_attention(%q, %k)
    After:   %y = aten.scaled_dot_product_attention(%q, @prologue.to_k)
    Fires only if: computing the value moves more bytes than reading it, and all such values fit
    ``max_bytes``. They are computed again when one of the inputs, or a weight, is not certainly
    the same.

    Attributes:
        max_bytes: memory that the values of one prompt may take.
    """

    name: ClassVar[str] = "hoist-invariant"
    kind: ClassVar[Kind] = Kind.EXACT
    bakes_weights: ClassVar[bool] = True
    after: ClassVar[tuple[str, ...]] = ("fold-weights",)
    max_bytes: int = 512 << 20

    def run(self, program: Program, rw: Rewriter) -> None:
        """Cut the main graph where the conditions meet the timestep or the latent."""
        rw.graph_name = MAIN
        found = worthwhile(program, Binding.INVARIANT, rw, more_to_read)
        rw.hoist(within(found, self.max_bytes, rw), PROLOGUE)
