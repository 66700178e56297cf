"""One measurement in a process of its own: ``python -m dit_compile.bench.worker '<json>'``.

It prints one line of JSON.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import torch

from dit_compile.bench.cases import Case, find_case
from dit_compile.bench.process import peak_resident_bytes
from dit_compile.bench.tally import Tally
from dit_compile.bench.ways import find_way
from dit_compile.runtime.session import session


@dataclass(frozen=True)
class Job:
    """What one process measures.

    Attributes:
        case: name of the model.
        ways: names of ways; they take turns, step by step.
        dtype: of weights and latents, such as ``bfloat16``.
        device: ``cpu`` or ``cuda``.
        batch: latents at a time; two is one picture with guidance.
        steps: denoising steps that the timesteps are spread over.
        repeats: steps that are timed, of each way.
        blocks: cut the model to this many blocks of each kind.
        threads: of torch, within an operator.
    """

    case: str
    ways: tuple[str, ...]
    dtype: str
    device: str
    batch: int
    steps: int
    repeats: int
    blocks: int | None
    threads: int

    @classmethod
    def parse(cls, text: str) -> Job:
        """Read what ``asdict`` and JSON made of one."""
        data = json.loads(text)
        return cls(**{**data, "ways": tuple(data["ways"])})


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What the benches of full-size models let one choose.

    Attributes:
        dtype, device, batch, steps, blocks: see :class:`Job`.
        out: folder for results.
        command: what the user typed, kept with the results.
    """

    dtype: str = "bfloat16"
    device: str = "cpu"
    batch: int = 2
    steps: int = 50
    blocks: int | None = None
    out: str = "bench_out"
    command: str = ""

    def job(self, case: str, ways: Sequence[str], repeats: int) -> Job:
        """One process's work, with as many threads as this one has."""
        return Job(
            case,
            tuple(ways),
            self.dtype,
            self.device,
            self.batch,
            self.steps,
            repeats,
            self.blocks,
            torch.get_num_threads(),
        )


@dataclass
class Measured:
    """What came of it.

    Attributes:
        first_call: seconds of the first call of each way, compilation included.
        seconds: of each timed step, by way; equal places ran next to each other.
        error: relative error of each way's result against eager's.
        flops: of one step as the plain model does it.
        peak_bytes: most memory that the process, or the accelerator, held.
    """

    first_call: dict[str, float]
    seconds: dict[str, list[float]]
    error: dict[str, float]
    flops: int
    peak_bytes: int


def measure(job: Job) -> Measured:
    """Run one job in this process."""
    case, model, inputs, clock = set_up(job)
    measured = Measured({}, {name: [] for name in job.ways}, {}, 0, 0)
    with torch.no_grad(), ExitStack() as stack:
        runs: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {}
        for name in job.ways:
            call = find_way(name).compile(model)
            if name == "ditc":
                stack.enter_context(session(timesteps=clock))
            runs[name] = stepper(call, case, inputs, job)
            started = time.perf_counter()
            runs[name](clock[0])
            measured.first_call[name] = time.perf_counter() - started
        for turn in range(job.repeats + 1):
            for name, run in runs.items():
                started = time.perf_counter()
                run(clock[(turn + 1) % len(clock)])
                if turn:  # the first of them warms caches and tables
                    measured.seconds[name].append(time.perf_counter() - started)
        if job.repeats:
            tally = Tally()
            with tally.counting():
                want = stepper(model, case, inputs, job)(clock[1]).double()
            measured.flops = tally.flops
            for name, run in runs.items():
                have = run(clock[1]).double()
                measured.error[name] = float((have - want).norm() / want.norm())
    gc.collect()
    measured.peak_bytes = _peak_bytes(job.device)
    return measured


def set_up(job: Job) -> tuple[Case, torch.nn.Module, dict[str, Any], torch.Tensor]:
    """The case, its model, the inputs of all steps, and the timesteps."""
    case, dtype = find_case(job.case), getattr(torch, job.dtype)
    model = case.build(dtype, job.device, job.blocks)
    inputs = case.inputs(job.batch, dtype, job.device)
    return case, model, inputs, case.timesteps(job.steps, dtype).to(job.device)


def stepper(
    call: Callable[..., Any], case: Case, inputs: dict[str, Any], job: Job
) -> Callable[[torch.Tensor], torch.Tensor]:
    """One step at a timestep, waiting for its result."""

    def step(time_now: torch.Tensor) -> torch.Tensor:
        batch = time_now.expand(job.batch)
        result: torch.Tensor = call(timestep=batch, return_dict=False, **inputs)[0]
        if job.device == "cuda":
            torch.cuda.synchronize()
        return result

    return step


def _peak_bytes(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return peak_resident_bytes()


def main(text: str) -> None:
    """Run the job that ``text`` holds, and print what came of it."""
    job = Job.parse(text)
    torch.set_num_threads(job.threads)
    sys.stdout.write(json.dumps(asdict(measure(job))) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
