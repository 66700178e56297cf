"""What runs the graphs of a bundle: the only part that differs between formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from dit_compile.bundle.manifest import Value
from dit_compile.runtime.elements import Denoised, Elements
from dit_compile.runtime.generation import Hold


class Runner(Protocol):
    """All graphs of a bundle, ready to run, on tensors of its own kind.

    Attributes:
        hold: how inputs of that kind are kept and compared from call to call.
    """

    hold: Hold

    def elements(self, denoised: Mapping[str, Denoised]) -> Elements:
        """Reads elements of its tensors, to see whether a latent follows from those before."""
        ...

    def take(self, spec: Value, value: Any) -> Any:
        """What the caller passes for an input, as graphs read it.

        Raises:
            OptionError: it has another type or shape than ``spec`` states.
        """
        ...

    def array(self, numbers: Sequence[Any], dtype: str, shape: Sequence[int]) -> Any:
        """A tensor of these numbers, rounded to ``dtype``, as graphs read it."""
        ...

    def run(self, name: str, values: Mapping[str, Any]) -> list[Any]:
        """Run a graph.

        Args:
            name: the graph.
            values: at least what it reads, by name.

        Returns:
            Its outputs in order; those for later graphs in whatever form these read fastest.

        Raises:
            BackendError: it failed.
        """
        ...

    def give(self, result: Any, *, as_torch: bool) -> Any:
        """A result for the caller as an array, or as a tensor of torch."""
        ...
