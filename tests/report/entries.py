"""Small reports, made by hand or from small models."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from dit_compile.explanation import explain
from dit_compile.report.model import (
    Cost,
    Graph,
    Node,
    PassEntry,
    Report,
    Seconds,
    Share,
    Stage,
    Trajectory,
)
from tests.ir.models import Transformer, noise, seeded


def entry(**options: Any) -> PassEntry:
    """A pass that did nothing, but for what ``options`` say."""
    plain: dict[str, Any] = {
        "name": "everything",
        "text": "everything",
        "kind": "exact",
        "summary": "Does everything.",
        "options": {},
        "changed": False,
        "stage": 0,
        "nodes_before": 0,
        "nodes_after": 0,
        "seconds": 0.0,
    }
    return PassEntry(**(plain | options))


def stage(flops: float = 0, moved: float = 0, graphs: list[Graph] | None = None) -> Stage:
    return Stage("", graphs or [], Cost(flops, moved, 1, 1, {}))


def report(
    *passes: PassEntry, stages: list[Stage] | None = None, nodes: list[Node] | None = None
) -> Report:
    seconds = Seconds(0.0, 0.0, 0.0, 0.0, 0.0)
    return Report(
        "M", "2.13.0", "0.1.0", "", seconds, nodes or [], stages or [stage()], list(passes)
    )


@functools.cache
def real(passes: str = "fast", affine: tuple[int, ...] = ()) -> Report:
    """A run on a small transformer."""
    model = seeded(lambda: Transformer(3, affine))
    return explain(
        model, (noise(2, 4, 8), noise(2, 8)), passes=passes, bindings={"c": "timestep"}
    ).report


@functools.cache
def sampled(affine: tuple[int, ...] = ()) -> Report:
    """That run with what its passes cost of final samples."""
    found = real("fast", affine)
    fired = [position for position, each in enumerate(found.passes) if each.changed]
    passes = [Share(found.passes[i].name, 120.25, 1e-7, 1.0, i) for i in fired]
    passes[0] = Share(found.passes[fired[0]].name, None, 0.0, 1.0, fired[0])
    passes[-1] = Share(found.passes[fired[-1]].name, 35.9, 0.039, 2.82, fired[-1])
    blocks = [Share(f"blocks.{i}", 40.0 + i, 0.01 * (3 - i), 1.2) for i in range(3)]
    return dataclasses.replace(
        found, trajectory=Trajectory(passes, blocks, "insert-block-cache{interval=3}", 2, 50, 7)
    )
