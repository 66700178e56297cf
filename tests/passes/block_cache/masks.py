"""What a policy computes in a whole generation."""

from __future__ import annotations

from collections.abc import Sequence

from dit_compile.ir.schedule import Schedule
from dit_compile.passes.block_cache.policy import CachePolicy


def computed_steps(
    policy: CachePolicy,
    steps: int,
    groups: Sequence[str] = ("blocks",),
    times: Sequence[float] | None = None,
) -> dict[str, str]:
    """For each group a string with a digit a step: 1 = computed, 0 = reused."""
    ones = (1,) * len(groups)
    rows = dict.fromkeys([ones, *policy.rows(groups)])
    variants = tuple((row, "full" if row == ones else f"reuse_{row}") for row in rows)
    mask = Schedule("full", policy, tuple(groups), variants=variants).mask(steps, times)
    assert mask is not None
    return {group: "".join(str(row[i]) for row in mask) for i, group in enumerate(groups)}
