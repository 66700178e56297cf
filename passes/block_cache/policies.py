"""The caching policies by name."""

from __future__ import annotations

from dit_compile.passes.block_cache.interval import Interval

POLICIES: dict[str, type[Interval]] = {"interval": Interval}
