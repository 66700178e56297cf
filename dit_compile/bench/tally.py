"""Counting the operations that are really executed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from dit_compile.kernels.attention import flash_attention


def _attention_flops(query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> int:
    """Operations of an attention, told by shapes."""
    count: int = sdpa_flop_count(query, key, value)  # type: ignore[no-untyped-call]
    return count


#: The counter does not know attention on a CPU by itself.
_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    flash_attention.overloadpacket: _attention_flops,
}


@dataclass
class Tally:
    """Operations of products and attention, added up while :meth:`counting`."""

    flops: int = 0

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what runs inside; what Dynamo compiled must have been called before."""
        counter = FlopCounterMode(display=False, custom_mapping=_ATTENTION)
        with counter:
            yield
        self.flops += counter.get_total_flops()
