"""Values computed from weights alone, kept until a weight changes."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch

from dit_compile.runtime.identity import Seen
from dit_compile.runtime.offload import present

_SAMPLE = 32

T = TypeVar("T")

#: All that was derived from weights and still lives, for :func:`invalidate`.
_deriving: weakref.WeakSet[DerivedWeights[Any]] = weakref.WeakSet()


class Dependent(Protocol):
    """What holds results that weights had a part in."""

    def reads_any(self, identities: Collection[int]) -> bool:
        """Whether a weight is one of the tensors with these ``id``s."""
        ...

    def invalidate(self) -> None:
        """Use nothing of that again."""
        ...


#: What keeps results of steps and still lives, for :func:`invalidate`.
_dependents: weakref.WeakSet[Dependent] = weakref.WeakSet()


def depends(dependent: Dependent) -> None:
    """Have :func:`invalidate` reach one that keeps results of steps."""
    _dependents.add(dependent)


@dataclass(frozen=True)
class _Derived(Generic[T]):
    """What was derived and what their sources looked like before they were read."""

    sources: Seen
    sample: torch.Tensor
    values: T

    def fresh(self, sources: Sequence[torch.Tensor], check_content: bool) -> bool:
        """Whether the values are those of ``sources`` still."""
        return self.sources.still(sources) and (
            not check_content or torch.equal(self.sample, _sample(sources))
        )


class DerivedWeights(Generic[T]):
    """Derives something from weights when they change, and only then.

    Models of a class share a Program, and the blocks of a model may too: what is derived is kept
    for each set of weights, and freed with them. Each call compares object, storage and version of
    each source. Writes through ``.data`` leave no trace there, so at the start of a generation a
    strided sample of the content is compared too. :meth:`invalidate` is the certain way. A call
    that is in flight keeps the values it got.

    Args:
        compute: a Program's weights graph, or whatever else is made of weights.
    """

    def __init__(self, compute: Callable[..., T]) -> None:
        self._compute = compute
        self._lock = threading.Lock()
        #: By the objects of the sources; entries are replaced as a whole and read unlocked.
        self._kept: dict[tuple[int, ...], _Derived[T]] = {}
        self.rebuilds = 0
        _deriving.add(self)

    def get(self, sources: Sequence[torch.Tensor], *, check_content: bool) -> T:
        """What is derived for ``sources``; the same object as long as no source has changed.

        Args:
            sources: the weights that the graph reads, in order.
            check_content: compare a sample of the content as well.
        """
        key = tuple(map(id, sources))
        kept = self._kept.get(key)
        if kept is not None and kept.fresh(sources, check_content):
            return kept.values
        with self._lock, torch.no_grad():
            kept = self._kept.get(key)
            if kept is None or not kept.fresh(sources, check_content):
                seen, sample = Seen.of(sources), _sample(sources)
                kept = _Derived(seen, sample, self._compute(*sources))
                self._kept[key] = kept
                self._free_with(key, sources)
                self.rebuilds += 1
            return kept.values

    def invalidate(self) -> None:
        """Forget everything; the next call computes anew."""
        with self._lock:
            self._kept = {}

    def reads_any(self, identities: Collection[int]) -> bool:
        """Whether a source is one of the tensors with these ``id``s."""
        return any(kept.sources.holds_any(identities) for kept in list(self._kept.values()))

    def _free_with(self, key: tuple[int, ...], sources: Sequence[torch.Tensor]) -> None:
        """Forget what is derived for a set of weights as soon as the first of them is freed."""
        mine, which = weakref.ref(self), id(self._kept[key])
        for source in sources[:1]:
            dying = weakref.finalize(source.untyped_storage(), _forget, mine, key, which)
            dying.atexit = False


def _forget(deriving: weakref.ref[DerivedWeights[Any]], key: tuple[int, ...], which: int) -> None:
    """Drop what was derived for freed weights, unless others got their place meanwhile."""
    owner = deriving()
    if owner is not None and id(owner._kept.get(key)) == which:
        owner._kept.pop(key, None)


def invalidate(model: torch.nn.Module) -> int:
    """Have every compiled Program of ``model`` take its weights for written to.

    What was derived from them is made again, and what a running generation keeps is not reused.
    Needed only after writes that leave no trace, such as through ``.data``, and only if they must
    count before the next generation begins.

    Returns:
        How many sets of derived weights were dropped.
    """
    tensors = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    found = [derived for derived in list(_deriving) if derived.reads_any(tensors)]
    steps = [each for each in list(_dependents) if each.reads_any(tensors)]
    for each in (*found, *steps):
        each.invalidate()
    return len(found)


def _sample(sources: Sequence[torch.Tensor]) -> torch.Tensor:
    """A few elements of each source, spread over it, as one float64 vector."""
    pieces = []
    with present(sources):
        for tensor in sources:
            flat = tensor.detach().reshape(-1)
            step = max(1, flat.numel() // _SAMPLE)
            pieces.append(flat[::step].to(sources[0].device, torch.float64))
    return torch.cat(pieces) if pieces else torch.empty(0)
