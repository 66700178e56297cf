"""The Inductor backend: each graph through ``torch._inductor.compile_fx``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch._guards import TracingContext, tracing
from torch._inductor.compile_fx import compile_fx
from torch._subclasses import FakeTensorMode

from dit_compile.errors import BackendError
from dit_compile.ir.program import Program, copy_graph, placeholders


class Inductor:
    """Compiles to C++ on CPU and Triton on GPU."""

    name = "inductor"

    def supports(self, program: Program) -> list[str]:
        """Inductor compiles everything that AOTAutograd can trace."""
        return []

    def compile(self, program: Program, graph: str) -> Callable[..., Sequence[torch.Tensor]]:
        """One graph, compiled. Own operators decompose while AOTAutograd traces."""
        module = copy_graph(program.graphs[graph])
        fakes = [node.meta["val"] for node in placeholders(module.graph)]
        try:
            with (
                _context(program.fake_mode, lasting=program.training),
                torch._C._DisableAutocast(),  # its casts are in the graph
            ):
                compiled = compile_fx(module, fakes)
        except Exception as error:
            raise BackendError(
                f"Inductor cannot compile graph @{graph}: {type(error).__name__}: {error}"
            ) from error

        def run(*args: Any) -> Sequence[torch.Tensor]:
            with torch._C._DisableAutocast():
                return compiled(*args)  # type: ignore[operator]

        return run


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
