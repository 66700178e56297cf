"""The eager backend: interprets each graph with reference operators. The oracle for the others."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from dit_compile.errors import DitcWarning
from dit_compile.ir.program import Program
from dit_compile.ir.recompute import is_marked


class Eager:
    """Runs a graph node by node."""

    name = "eager"

    def prepare(self) -> None:
        """An interpreter needs no preparation."""

    def supports(self, program: Program) -> list[str]:
        """Every Program can be interpreted."""
        return []

    def lowerings(self, program: Program) -> str:
        """All operators are alike here."""
        return ""

    def compile(self, program: Program, graph: str) -> Callable[..., Sequence[torch.Tensor]]:
        """An interpreter for one graph."""
        module = program.graphs[graph]
        if program.training and any(map(is_marked, module.graph.nodes)):
            warnings.warn(
                "ditc: target=eager keeps all values for the backward pass, those of checkpointed "
                "regions too; target=inductor computes these again",
                DitcWarning,
                stacklevel=2,
            )

        def run(*args: Any) -> Sequence[torch.Tensor]:
            with torch._C._DisableAutocast():  # its casts are in the graph
                return fx.Interpreter(module, garbage_collect_values=True).run(*args)  # type: ignore[no-any-return]

        return run


class InDouble(fx.Interpreter):
    """Interprets a graph in float64: inputs, dtype arguments and what operators make is widened."""

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
        """An input, widened."""
        return widen(super().placeholder(target, args, kwargs))

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """An operator with its dtype arguments and its results widened."""
        args, kwargs = torch.utils._pytree.tree_map(_wide_dtype, (args, kwargs))
        result = super().call_function(target, args, kwargs)
        return torch.utils._pytree.tree_map(widen, result)


_WIDE = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex64: torch.complex128,
}


def widen(value: Any) -> Any:
    """A tensor in double precision; anything else as it is."""
    if isinstance(value, torch.Tensor) and value.dtype in _WIDE:
        return value.to(_WIDE[value.dtype])
    return value


def _wide_dtype(value: Any) -> Any:
    return _WIDE.get(value, value) if isinstance(value, torch.dtype) else value
