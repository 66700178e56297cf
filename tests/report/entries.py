"""Small reports, made by hand or from small models."""

from __future__ import annotations

import functools
from typing import Any

from dit_compile.explanation import explain
from dit_compile.report.model import Cost, Graph, Node, PassEntry, Report, Seconds, Stage
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
