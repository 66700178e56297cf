"""All settings on the tuning seed, as many at a time as there are threads: nothing is timed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import torch

from dit_compile.bench.caching.contenders import Contender, Subject, Uncached
from dit_compile.bench.caching.generation import Footprint, weigh
from dit_compile.bench.caching.processes import spawn, told_plainly
from dit_compile.bench.caching.scores import ImageScores

#: Operations and bytes are equal within this share, and scores within so much of their unit.
_EQUAL, _SAME = 0.99, 1e-3


@dataclass(frozen=True)
class Tried:
    """A setting on the tuning seed.

    Attributes:
        contender: the setting.
        flop_ratio: operations of the plain model over its own.
        psnr: dB against the plain model.
        frechet: Fréchet distance to real digits.
        kept_bytes: of tensors that live from step to step.
    """

    contender: Contender
    flop_ratio: float
    psnr: float
    frechet: float
    kept_bytes: int

    def matches(self, other: Tried, kept_bytes: float) -> bool:
        """Whether it computes no more, and keeps no more or at most ``kept_bytes``."""
        may_keep = max(kept_bytes, other.kept_bytes)
        return self.flop_ratio >= _EQUAL * other.flop_ratio and _EQUAL * self.kept_bytes <= may_keep

    def as_good(self, other: Tried) -> bool:
        """Whether no score is worse."""
        return self.psnr >= other.psnr - _SAME and self.frechet <= other.frechet + _SAME


def try_all(
    contenders: Sequence[Contender], subject: Subject, seed: int
) -> Iterator[tuple[Contender, Future[Tried]]]:
    """Each of ``contenders`` with what will have come of it, in their order."""
    want = _weighed(Uncached(), subject, seed)
    pool = spawn(torch.get_num_threads(), _begin, subject, seed, want)
    try:
        yield from [(each, pool.submit(_try, each)) for each in contenders]
    finally:
        pool.shutdown(cancel_futures=True)


#: Of a process that tries settings: the subject, the seed, and the plain model's generation.
_told: tuple[Subject, int, Footprint]


def _begin(subject: Subject, seed: int, want: Footprint) -> None:
    global _told
    _told = subject, seed, want
    torch.set_num_threads(1)


@told_plainly
def _try(contender: Contender) -> Tried:
    subject, seed, want = _told
    torch._dynamo.reset()
    have = _weighed(contender, subject, seed)
    scores = ImageScores.of(have.images, want.images, subject.labels)
    ratio = want.flops / have.flops
    return Tried(contender, ratio, scores.psnr, scores.frechet, have.kept_bytes)


def _weighed(contender: Contender, subject: Subject, seed: int) -> Footprint:
    return weigh(contender, contender.build(subject, compiled=False), subject, seed)
