"""One measurement of ``ditc bench loop``: ``python -m dit_compile.bench.looped '<json>'``."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from dit_compile.bench.ways import with_ditc
from dit_compile.bench.worker import Job, set_up, stepper
from dit_compile.calibration.meter import Meter
from dit_compile.ir.program import InputKind, Program, placeholders
from dit_compile.quality.compilations import Compilations
from dit_compile.runtime.session import Session, session
from dit_compile.runtime.watch import watching


@dataclass
class Looped:
    """What came of one pipeline.

    Attributes:
        seconds: of each step, by generation one after the other.
        graphs: that served these steps.
        flops: operations of a step, averaged over them.
        computed: steps of the last generation that were computed in full.
        variants: graphs that can serve a step.
        state_bytes: kept from step to step, for each lane.
    """

    seconds: list[float] = field(default_factory=list)
    graphs: list[str] = field(default_factory=list)
    flops: float = 0.0
    computed: int = 0
    variants: int = 0
    state_bytes: int = 0


@dataclass
class LoopedAll:
    """All pipelines, in turns, and what torch compiled after the first generation."""

    ways: dict[str, Looped]
    recompiles: int


def measure(job: Job) -> LoopedAll:
    """Run ``job.repeats`` generations of each pipeline in ``job.ways``; they take turns."""
    case, model, inputs, clock = set_up(job)
    steps = {way: stepper(with_ditc(model, passes=way), case, inputs, job) for way in job.ways}
    late = Compilations()
    with torch.no_grad():
        generation(steps, clock, *_unused(steps))  # compiles, and lays out memory
        seconds, meters = _unused(steps)
        with late:
            for _ in range(job.repeats):
                sessions = generation(steps, clock, seconds, meters)
    found = {}
    for way, meter in meters.items():
        program = meter.program
        assert program is not None
        found[way] = Looped(
            seconds[way],
            meter.graphs,
            meter.flops / len(meter.graphs),
            sessions[way].summary()["computed"],
            max(1, len(program.schedule.variants)),
            _state_bytes(program),
        )
    return LoopedAll(found, max(late.dynamo_graphs, late.inductor_calls))


def generation(
    steps: dict[str, Callable[[torch.Tensor], torch.Tensor]],
    clock: torch.Tensor,
    seconds: dict[str, list[float]],
    meters: dict[str, Meter],
) -> dict[str, Session]:
    """One generation of each way, step by step in turns, timed and metered."""
    with ExitStack() as stack:
        sessions = {way: stack.enter_context(session(timesteps=clock)) for way in steps}
        for now in clock:
            for way, step in steps.items():
                with sessions[way], watching(meters[way]):
                    started = time.perf_counter()
                    step(now)
                    seconds[way].append(time.perf_counter() - started)
    return sessions


def _unused(ways: Iterable[str]) -> tuple[dict[str, list[float]], dict[str, Meter]]:
    return {way: [] for way in ways}, {way: Meter() for way in ways}


def _state_bytes(program: Program) -> int:
    kept: dict[str, int] = {}
    for module in program.graphs.values():
        for node in placeholders(module.graph):
            if program.kind_of(node) is InputKind.STATE:
                value: Any = node.meta["val"]
                kept[str(node.target)] = value.numel() * value.element_size()
    return sum(kept.values())


def main(text: str) -> None:
    """Run the job that ``text`` holds, and print what came of it."""
    job = Job.parse(text)
    torch.set_num_threads(job.threads)
    sys.stdout.write(json.dumps(asdict(measure(job))) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
