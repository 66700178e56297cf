"""The caching policies by name."""

from __future__ import annotations

from dit_compile.passes.block_cache.delta import Delta
from dit_compile.passes.block_cache.first_block import FirstBlock
from dit_compile.passes.block_cache.interval import Interval
from dit_compile.passes.block_cache.linear_guidance import LinearGuidance
from dit_compile.passes.block_cache.magnitude import Magnitude
from dit_compile.passes.block_cache.mask import Mask
from dit_compile.passes.block_cache.policy import CachePolicy
from dit_compile.passes.block_cache.pyramid import Pyramid
from dit_compile.passes.block_cache.record import Record
from dit_compile.passes.block_cache.skip_guidance import SkipGuidance
from dit_compile.passes.block_cache.smooth import Smooth
from dit_compile.passes.block_cache.taylor import Taylor

POLICIES: dict[str, type[CachePolicy]] = {
    policy.method: policy
    for policy in (
        Interval,
        Delta,
        Smooth,
        Taylor,
        Pyramid,
        FirstBlock,
        Magnitude,
        SkipGuidance,
        LinearGuidance,
        Mask,
        Record,
    )
}
