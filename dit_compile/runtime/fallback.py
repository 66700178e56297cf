"""What serves a call when a compiled graph fails while it runs: the graph as Dynamo captured it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._dynamo.exc import RestartAnalysis

from dit_compile.disabling import Step
from dit_compile.errors import BindingError, DitcWarning, OptionError, PlanError, SessionError

#: What no other way of running the graph can mend, or what is the caller's to see.
_LET_THROUGH = (
    torch.OutOfMemoryError,
    RestartAnalysis,
    SessionError,
    OptionError,
    BindingError,
    PlanError,
    DitcWarning,
)

Function = Callable[..., Any]


class Fallback:
    """Runs a compiled graph; once that fails, the plain one in its place, from then on.

    A call that fails in the plain graph too is the caller's error: that one is raised, and later
    calls are compiled ones again.

    Args:
        compiled: what ditc made of the graph.
        plain: the graph as it was before ditc.
        compile_plain: compiles ``plain`` for the calls after the one that failed.
        written: positions of the arguments that the graph writes to.
        warn: says what happened.
    """

    def __init__(
        self,
        compiled: Step,
        plain: Function,
        compile_plain: Callable[[Function], Function],
        written: Sequence[int],
        warn: Callable[[str], None],
    ) -> None:
        self._compiled = compiled
        self._plain = plain
        self._compile_plain = compile_plain
        self._written = written
        self._warn = warn
        self._instead: Function | None = None

    def __call__(self, *args: Any) -> Any:
        """Run one call.

        Args:
            args: the inputs of the graph, in order.

        Raises:
            Exception: what the plain graph raises, or what the compiled one did after it had
                written to an argument, so that the call cannot be made again.
        """
        if self._instead is not None:
            return self._instead(*args)
        before = self._versions(args)
        try:
            return self._compiled(*args)
        except _LET_THROUGH:
            raise
        except Exception as error:
            if before is None or before != self._versions(args):
                raise
            return self._serve(args, error)

    def interrupt(self, *args: Any) -> None:
        """Note that something else serves the call with these arguments."""
        if self._instead is None:
            self._compiled.interrupt(*args)

    def _serve(self, args: Sequence[Any], error: Exception) -> Any:
        """Serve a call whose compiled graph raised ``error``."""
        try:
            results = self._plain(*args)
        except Exception as own:
            raise own from None
        lines = str(error).strip().splitlines() or [repr(error)]
        self._warn(
            f"a compiled graph failed, so this call and later ones are left to plain torch: "
            f"{type(error).__name__}: {lines[0]}"
        )
        self._instead = self._compile_plain(self._plain)
        return results

    def _versions(self, args: Sequence[Any]) -> list[int] | None:
        """How often each argument that the graph writes to was written; ``None`` if unknown."""
        tensors = [args[position] for position in self._written]
        if any(tensor.is_inference() for tensor in tensors):
            return None  # these do not count
        return [tensor._version for tensor in tensors]
