"""What is measured together, from what was tried."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from dit_compile.bench.caching.contenders import Contender
from dit_compile.bench.caching.tuning import Tried

#: A setting stands for a ratio of operations if it comes this near.
_NEAR = 0.97


def line_up(
    tried: Iterable[Tried], ratios: Sequence[float], kept_bytes: float
) -> Iterator[tuple[Contender, ...]]:
    """Settings that are measured together, those of ditc first.

    Of each other group the setting of best PSNR at each ratio of operations or a higher one, with
    ditc's counterpart: it computes no more, keeps no more or at most ``kept_bytes``, and among
    such settings has the best PSNR of those that are worse in no score, if there are any. Then
    ditc's own best at each ratio.
    """
    tried = list(tried)
    own = [each for each in tried if each.contender.group == "ditc"]
    shown: dict[tuple[Contender, ...], None] = {}
    for group in dict.fromkeys(each.contender.group for each in tried):
        if group != "ditc":
            others = [each for each in tried if each.contender.group == group]
            for theirs in _best_at(others, ratios):
                able = [each for each in own if each.matches(theirs, kept_bytes)]
                able.sort(key=lambda each: (each.as_good(theirs), each.psnr))
                shown[tuple(each.contender for each in (*able[-1:], theirs))] = None
    met = {each for together in shown for each in together}
    alone = {best.contender: None for best in _best_at(own, ratios)}
    yield from shown
    yield from ((each,) for each in alone if each not in met)


def _best_at(tried: Sequence[Tried], ratios: Sequence[float]) -> Iterator[Tried]:
    for ratio in ratios:
        able = [each for each in tried if each.flop_ratio >= _NEAR * ratio]
        if able:
            yield max(able, key=lambda each: each.psnr)
