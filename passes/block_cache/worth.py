"""Which sites are worth their memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from dit_compile.analysis.cost import node_cost
from dit_compile.analysis.cost_rules import stored_bytes
from dit_compile.ir.fake import tensor_of
from dit_compile.ir.hints import symbol_hints
from dit_compile.passes.block_cache.sites import Candidates, Kept, Site
from dit_compile.pipeline.rewriter import Rewriter


def within(
    sizes: Mapping[Site, int], max_bytes: int, spent: int, found: Candidates, rw: Rewriter
) -> list[Site]:
    """The sites whose states fit ``max_bytes``; those of least worth are left out first.

    Worth is operations saved for each byte kept. Symbolic sizes count as captured.

    Args:
        sizes: candidates, and the bytes that the states of each take.
        max_bytes: bytes that all states may take.
        spent: bytes that are kept with any site.
        found: where the sites come from.
        rw: told of the sites that are left out.
    """
    hints = symbol_hints(found.program.main)
    weights = set(found.program.weight_nodes(found.program.main))
    saved = {
        site: sum(node_cost(node, weights).evaluate(hints).flops for node in site.work)
        for site in sizes
    }
    total, left_out = spent + sum(sizes.values()), set[Site]()
    for site in sorted(sizes, key=lambda s: saved[s] / max(1, sizes[s])):
        if total <= max_bytes:
            break
        total -= sizes[site]
        left_out.add(site)
        rw.miss(site.kept[0].value, f"{sizes[site]:,} bytes exceed max-state-bytes={max_bytes}")
    kept = [site for site in sizes if site not in left_out]
    if left_out:
        total = total if kept else 0
        rw.note(f"{len(left_out)} of {len(sizes)} sites are left out, {total / 1e6:.1f} MB kept")
    return kept


def state_bytes(values: Iterable[Kept], found: Candidates, dtype: torch.dtype | None = None) -> int:
    """Bytes of one state of each of ``values``, in their own dtype or in ``dtype``."""
    hints, total = dict(symbol_hints(found.program.main)), 0
    for kept in values:
        size = int(stored_bytes(kept.value).xreplace(hints))
        own = tensor_of(kept.value).dtype
        total += size * (dtype or own).itemsize // own.itemsize
    return total
