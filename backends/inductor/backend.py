"""The Inductor backend: each graph through ``torch._inductor.compile_fx``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import fx
from torch._dynamo.exc import TensorifyScalarRestartAnalysis
from torch._guards import TracingContext, tracing
from torch._inductor import config as inductor_config
from torch._inductor.compile_fx import compile_fx
from torch._subclasses import FakeTensorMode

from dit_compile.backends.inductor import warmup
from dit_compile.backends.inductor.outline import outline
from dit_compile.errors import BackendError
from dit_compile.ir.fake import device_types
from dit_compile.ir.program import InputKind, Program, copy_graph, placeholders
from dit_compile.kernels.attention import flash_attention
from dit_compile.kernels.packed import packed_linear

aten = torch.ops.aten

_FOR_CPUS = "pack-weights,select-attention,pack-keys,eliminate-dead"

_HEAVY = {
    aten.linear.default,
    packed_linear,
    flash_attention,
    aten.matmul.default,
    aten.bmm.default,
    aten.convolution.default,
    aten.scaled_dot_product_attention.default,
}
#: More states than this are not read in one loop, but as few at a time as is fastest.
_MAX_STREAMS, _FUSED_STREAMS = 16, 2


class Inductor:
    """Compiles to C++ on CPU and Triton on GPU."""

    name = "inductor"

    def prepare(self) -> None:
        """Find out about the CPU in the background."""
        warmup.start()

    def supports(self, program: Program) -> list[str]:
        """Inductor compiles everything that AOTAutograd can trace."""
        return []

    def lowerings(self, program: Program) -> str:
        """What pays on CPUs, in inference, and Inductor itself leaves undone."""
        on_cpu = device_types(program.main.nodes) == {"cpu"}
        return _FOR_CPUS if on_cpu and not program.training else ""

    def lowered(self, module: fx.GraphModule, program: Program) -> None:
        """Change a graph in place, just before it is compiled."""

    def compile(self, program: Program, graph: str) -> Callable[..., Sequence[torch.Tensor]]:
        """One graph, compiled. Own operators decompose while AOTAutograd traces."""
        module = copy_graph(program.graphs[graph])
        self.lowered(module, program)
        chosen = settings(program, module.graph)
        if not program.training:
            outline(module, _HEAVY, name=f"{graph}_region")
        fakes = [node.meta["val"] for node in placeholders(module.graph)]
        warmup.finish()
        try:
            with (
                _context(program.fake_mode, lasting=program.training),
                inductor_config.patch(chosen),
                torch._C._DisableAutocast(),  # its casts are in the graph
            ):
                compiled = compile_fx(module, fakes)
        except TensorifyScalarRestartAnalysis:
            raise  # no failure: Dynamo traces once more
        except Exception as error:
            raise BackendError(
                f"Inductor cannot compile graph @{graph}: {type(error).__name__}: {error}"
            ) from error

        def run(*args: Any) -> Sequence[torch.Tensor]:
            with torch._C._DisableAutocast():
                return compiled(*args)  # type: ignore[operator]

        return run


def settings(program: Program, graph: fx.Graph) -> dict[str, Any]:
    """Inductor's configuration for one graph, where its own does not pay.

    Where caching took away all work between many residual additions, Inductor fuses them into one
    loop over all their states. On a CPU that reads more streams than its first TLB level has
    pages. Steps of DiT-XL/2 that add 56 states of 1 MiB took 6.1 ms with two additions a loop, 6.6
    with four and 8.6 with all of them on an EPYC, 13 ms with all of them on a Xeon.
    """
    chosen: dict[str, Any] = {}
    if graph.find_nodes(op="call_function", target=packed_linear):
        chosen["size_asserts"] = False  # a packed weight has no strides to look at
    on_cpu = device_types(graph.nodes) == {"cpu"}
    if on_cpu and _longest_chain(program, graph) > _MAX_STREAMS:
        chosen["max_fusion_size"] = _FUSED_STREAMS
    return chosen


def _longest_chain(program: Program, graph: fx.Graph) -> int:
    """Most states that are read with no heavy operator between them."""
    longest = current = 0
    for node in graph.nodes:
        if node.target in _HEAVY:
            current = 0
        current += sum(program.kind_of(arg) is InputKind.STATE for arg in node.all_input_nodes)
        longest = max(longest, current)
    return longest


@contextlib.contextmanager
def _context(mode: FakeTensorMode, *, lasting: bool) -> Iterator[None]:
    """A tracing context under ``mode``: without a ShapeEnv Inductor's cache is bypassed.

    ``lasting`` leaves the mode with Dynamo's context, because the backward graph is lowered later,
    when autograd first needs it, and must find the mode that it was traced under.
    """
    current = TracingContext.try_get()
    if current is None:
        with tracing(TracingContext(mode)):
            yield
        return
    saved, current.fake_mode = current.fake_mode, mode
    try:
        yield
    finally:
        if not lasting:
            current.fake_mode = saved
