"""One measurement of ``ditc bench loop``: ``python -m dit_compile.bench.looped '<json>'``."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from dit_compile.analysis.step_cost import step_cost
from dit_compile.bench.ways import with_ditc
from dit_compile.bench.worker import Job, set_up, stepper
from dit_compile.explanation import explain
from dit_compile.ir.program import InputKind, Program, placeholders
from dit_compile.quality.compilations import Compilations
from dit_compile.runtime.session import Session, session


@dataclass
class Looped:
    """What came of one pipeline.

    Attributes:
        seconds: of each step, by generation one after the other.
        flops: operations of a step, averaged over the generation.
        computed: steps of the last generation that were computed in full.
        variants: graphs that can serve a step.
        state_bytes: kept from step to step, for each lane.
    """

    seconds: list[float] = field(default_factory=list)
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
    found = {way: Looped() for way in job.ways}
    example = {**inputs, "timestep": clock[0].expand(job.batch), "return_dict": False}
    steps = {way: stepper(with_ditc(model, passes=way), case, inputs, job) for way in job.ways}
    late = Compilations()
    with torch.no_grad():
        generation(steps, clock)  # compiles, and lays out memory
        with late:
            for _ in range(job.repeats):
                sessions = generation(steps, clock, found)
        for way, one in found.items():
            program = explain(model, (), example, passes=way, numerics=False).program
            one.computed = sessions[way].summary()["computed"]
            one.flops = _flops(program, job.steps, one.computed)
            one.variants = max(1, len(program.schedule.variants))
            one.state_bytes = _state_bytes(program)
    return LoopedAll(found, max(late.dynamo_graphs, late.inductor_calls))


def generation(
    steps: dict[str, Callable[[torch.Tensor], torch.Tensor]],
    clock: torch.Tensor,
    found: dict[str, Looped] | None = None,
) -> dict[str, Session]:
    """One generation of each way, step by step in turns; seconds are added to ``found``."""
    with ExitStack() as stack:
        sessions = {way: stack.enter_context(session(timesteps=clock)) for way in steps}
        for now in clock:
            for way, step in steps.items():
                with sessions[way]:
                    started = time.perf_counter()
                    step(now)
                    took = time.perf_counter() - started
                if found is not None:
                    found[way].seconds.append(took)
    return sessions


def _flops(program: Program, steps: int, computed: int) -> float:
    """Operations of a step: by the schedule, or by what was decided while it ran."""
    cost, schedule = step_cost(program, steps), program.schedule
    if cost.computed is not None:
        return cost.flops
    always = sum(cost.graphs[name].flops for name in (schedule.probe, schedule.judge) if name)
    full = cost.graphs[schedule.full].flops
    reused = min(cost.graphs[name].flops for _, name in schedule.variants)
    return always + (full * computed + reused * (steps - computed)) / steps


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
