"""What a backend is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from dit_compile.ir.program import Program


class Backend(Protocol):
    """Turns the graphs of a Program into callables."""

    name: str

    def prepare(self) -> None:
        """Get ready in the background; called once a compilation is in sight. Must not block."""
        ...

    def supports(self, program: Program) -> list[str]:
        """Reasons why this backend cannot run ``program``; empty if it can."""
        ...

    def lowerings(self, program: Program) -> str:
        """The passes, as text, that fit ``program`` to the operators that this backend is best at.

        They run after all others. Empty where none pays.
        """
        ...

    def compile(self, program: Program, graph: str) -> Callable[..., Sequence[torch.Tensor]]:
        """A callable for one graph of ``program``.

        Returns:
            A function of the values of the graph's placeholders, in order, to its flat outputs.

        Raises:
            BackendError: the graph cannot be compiled.
        """
        ...
