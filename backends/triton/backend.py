"""The Triton backend: Inductor, with ditc's own kernels where there is one."""

from __future__ import annotations

from torch import fx

from dit_compile.backends.inductor import Inductor
from dit_compile.backends.triton import select
from dit_compile.ir.program import Program


class Triton(Inductor):
    """Inductor with ditc's kernels on NVIDIA GPUs, in inference; elsewhere it is Inductor.

    A target of its own until it is measured where the kernels beat what Inductor fuses.
    """

    name = "triton"

    def lowerings(self, program: Program) -> str:
        """The fusions into operators that have a kernel, or Inductor's."""
        return select.PASSES if select.has_kernels(program) else super().lowerings(program)

    def lowered(self, module: fx.GraphModule, program: Program) -> None:
        """Let kernels take the place of operators."""
        if select.has_kernels(program):
            select.use_kernels(module.graph)
            module.recompile()
