"""Compute what depends on the timestep for all steps at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dit_compile.errors import PipelineError
from dit_compile.ir.program import MAIN, TABLE, Binding, Program
from dit_compile.passes.hoist.cut import Value, within, worthwhile
from dit_compile.pipeline.base import Kind, Pass
from dit_compile.pipeline.rewriter import Rewriter

#: FLOPs that a processor does while it reads a byte; only the order of magnitude matters.
_BALANCE = {"cpu": 32, "cuda": 256}


@dataclass(frozen=True, kw_only=True)
class HoistTimestep(Pass):
    """Compute what depends on the timestep for all steps at once.

    Before:  %c = aten.silu(%time); %mod = aten.linear(%c, @norm1.linear.weight)
    After:   %mod is a row of a table: for T steps, T products with a vector became one with a
             matrix, and the weights are read once a generation
    Fires only if: that makes the value at least ``min_speedup`` times as fast by its arithmetic and
    the bytes that it moves, which is so where reading the weights takes most of the time, and not
    for large batches; and ``rows`` rows of all such values fit ``max_bytes``. Every row does all of
    its arithmetic, also that of a step which a cache then skips. A step that was not foreseen
    computes its own row.

    Attributes:
        max_bytes: memory that the table of one prompt may take.
        rows: steps that the table is taken to have.
        min_speedup: how much faster the value must become.
    """

    name: ClassVar[str] = "hoist-timestep"
    kind: ClassVar[Kind] = Kind.EXACT
    bakes_weights: ClassVar[bool] = True
    after: ClassVar[tuple[str, ...]] = ("fold-weights", "hoist-invariant")
    max_bytes: int = 512 << 20
    rows: int = 50
    min_speedup: float = 2.0

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise PipelineError(f"{self.name}: rows must be at least 1, not {self.rows}")
        if self.min_speedup < 0:
            raise PipelineError(
                f"{self.name}: min-speedup must be at least 0, not {self.min_speedup}"
            )

    def run(self, program: Program, rw: Rewriter) -> None:
        """Cut the main graph where the timestep meets the latent."""
        rw.graph_name = MAIN
        found = worthwhile(program, Binding.TIMESTEP, rw, self._too_slow)
        rw.hoist(within(found, self.max_bytes, rw, rows=self.rows), TABLE)

    def _too_slow(self, value: Value) -> str:
        """The reason to stay of a value that a row of the table hardly makes cheaper; else empty.

        Counted in bytes read: arithmetic and memory overlap, and all rows read the weights once.
        """
        device = value.node.meta["val"].device.type
        arithmetic = value.work.flops / _BALANCE.get(device, _BALANCE["cuda"])
        moved = value.work.bytes_moved
        shared = value.work.parameter_bytes * (1 - 1 / self.rows)
        speedup = max(arithmetic, moved) / max(arithmetic, moved - shared + value.kept_bytes)
        if speedup >= self.min_speedup:
            return ""
        return (
            f"for all steps at once {speedup:.2f} times as fast, "
            f"less than min-speedup={self.min_speedup:g}"
        )
