"""Which sites are worth their memory."""

from __future__ import annotations

from collections.abc import Sequence

from dit_compile.analysis.cost import Hints, node_cost, symbol_hints
from dit_compile.analysis.cost_rules import stored_bytes
from dit_compile.passes.block_cache.sites import Candidates, Site
from dit_compile.pipeline.rewriter import Rewriter


def within(
    sites: Sequence[Site], max_bytes: int, depth: int, found: Candidates, rw: Rewriter
) -> list[Site]:
    """The sites whose states fit ``max_bytes``; those of least worth are left out first.

    Worth is operations saved for each byte kept. Symbolic sizes count as captured.

    Args:
        sites: candidates.
        max_bytes: bytes that states may take.
        depth: values kept of a site.
        found: where the sites come from.
        rw: told of the sites that are left out.
    """
    hints = symbol_hints(found.program.main)
    weights = set(found.program.weight_nodes(found.program.main))
    sizes = {site: state_bytes(site, hints) * depth for site in sites}
    saved = {
        site: sum(node_cost(node, weights).evaluate(hints).flops for node in site.work)
        for site in sites
    }
    total, left_out = sum(sizes.values()), set[Site]()
    for site in sorted(sites, key=lambda s: saved[s] / max(1, sizes[s])):
        if total <= max_bytes:
            break
        total -= sizes[site]
        left_out.add(site)
        rw.miss(site.kept[0].value, f"{sizes[site]:,} bytes exceed max-state-bytes={max_bytes}")
    if left_out:
        rw.note(f"{len(left_out)} of {len(sites)} sites are left out, {total / 1e6:.1f} MB kept")
    return [site for site in sites if site not in left_out]


def state_bytes(site: Site, hints: Hints) -> int:
    """Bytes of one computed value of ``site``."""
    return sum(int(stored_bytes(kept.value).xreplace(dict(hints))) for kept in site.kept)
