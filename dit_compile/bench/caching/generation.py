"""One generation by a contender: its images, time, operations, and the memory that it keeps."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dit_compile.bench.caching.contenders import Contender, Subject


@dataclass(frozen=True)
class Generation:
    """What came of it: images [N, 1, 8, 8], and wall time in seconds."""

    images: Tensor
    seconds: float


@dataclass(frozen=True)
class Footprint:
    """What a generation took.

    Attributes:
        images: [N, 1, 8, 8].
        flops: operations that were really executed, those of products and attention.
        kept_bytes: of tensors that are alive after the last step, and were not before the first.
        trajectory: latents [N, 1, 8, 8] after each step.
    """

    images: Tensor
    flops: int
    kept_bytes: int
    trajectory: Sequence[Tensor]


def generate(contender: Contender, model: nn.Module, subject: Subject, seed: int) -> Generation:
    """Run one generation."""
    with contender.generation(model, subject):
        started = time.perf_counter()
        images = subject.draw(model, seed)
        return Generation(images, time.perf_counter() - started)


def weigh(contender: Contender, model: nn.Module, subject: Subject, seed: int) -> Footprint:
    """Run one generation slowly, and count.

    ``model`` runs in eager, so that every operation is seen.
    """
    call = subject.bundled.example(subject.labels)
    with contender.generation(model, subject), torch.no_grad():
        model(*call.args, **call.kwargs)  # compilation is not weighed
    subject.trajectory, subject.tally.flops = [], 0
    with contender.generation(model, subject), contender.counting(subject):
        before = _live_bytes()  # what an earlier generation has left is gone
        images = subject.draw(model, seed)
        after = _live_bytes() - sum(latents.nbytes for latents in subject.trajectory)
    return Footprint(images, subject.tally.flops, after - before, subject.trajectory)


def _live_bytes() -> int:
    """Bytes of all tensors with a storage; weights that are laid out for a processor have none."""
    gc.collect()
    storages = {}
    for item in gc.get_objects():
        if (
            type(item) in (Tensor, nn.Parameter)
            and item.device.type != "meta"
            and item.layout is torch.strided
        ):
            storage = item.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())
