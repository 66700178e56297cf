"""Values computed from weights alone, kept until a weight changes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch

from dit_compile.runtime.identity import Seen

_SAMPLE = 32


@dataclass(frozen=True)
class _Derived:
    """Derived values and what their sources looked like before they were read."""

    sources: Seen
    sample: torch.Tensor
    values: Sequence[torch.Tensor]

    def fresh(self, sources: Sequence[torch.Tensor], check_content: bool) -> bool:
        """Whether the values are those of ``sources`` still."""
        return self.sources.still(sources) and (
            not check_content or torch.equal(self.sample, _sample(sources))
        )


class DerivedWeights:
    """Runs a Program's weights graph when its sources change, and only then.

    Each call compares object, storage and version of each source. Writes through ``.data`` leave
    no trace there, so at the start of a generation a strided sample of the content is compared
    too. :meth:`invalidate` is the certain way. A call that is in flight keeps the values it got.

    Args:
        compute: the weights graph: sources in, derived values out.
    """

    def __init__(self, compute: Callable[..., Sequence[torch.Tensor]]) -> None:
        self._compute = compute
        self._lock = threading.Lock()
        self._kept: _Derived | None = None  # replaced as a whole, so that it can be read unlocked
        self.rebuilds = 0

    def get(
        self, sources: Sequence[torch.Tensor], *, check_content: bool
    ) -> Sequence[torch.Tensor]:
        """The derived values for ``sources``; the same object as long as no source has changed.

        Args:
            sources: the weights that the graph reads, in order.
            check_content: compare a sample of the content as well.
        """
        kept = self._kept
        if kept is not None and kept.fresh(sources, check_content):
            return kept.values
        with self._lock, torch.no_grad():
            kept = self._kept
            if kept is None or not kept.fresh(sources, check_content):
                seen, sample = Seen.of(sources), _sample(sources)
                values = [value.detach() for value in self._compute(*sources)]
                self._kept = kept = _Derived(seen, sample, values)
                self.rebuilds += 1
            return kept.values

    def invalidate(self) -> None:
        """Forget everything; the next call computes anew."""
        with self._lock:
            self._kept = None

    def reads_any(self, identities: Collection[int]) -> bool:
        """Whether a source is one of the tensors with these ``id``s."""
        kept = self._kept
        return kept is not None and kept.sources.holds_any(identities)


def _sample(sources: Sequence[torch.Tensor]) -> torch.Tensor:
    """A few elements of each source, spread over it, as one float64 vector."""
    pieces = []
    for tensor in sources:
        flat = tensor.detach().reshape(-1)
        step = max(1, flat.numel() // _SAMPLE)
        pieces.append(flat[::step].to(sources[0].device, torch.float64))
    return torch.cat(pieces) if pieces else torch.empty(0)
