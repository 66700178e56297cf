"""One measurement of ``ditc bench export``: ``python -m dit_compile.bench.exported '<json>'``.

Torch is imported where a model is written alone: running needs onnxruntime and numpy.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dit_compile.bench.process import peak_resident_bytes, resident_bytes
from dit_compile.bundle.loaded import LoadedProgram, load
from dit_compile.optional import require
from dit_compile.runtime.session import session

#: The way without ditc; the other ways are pipelines as text.
PLAIN = "torch.onnx.export"
_MODEL, _INPUTS, _WANT = "model.onnx", "inputs.npz", "want.npy"

Arrays = dict[str, Any]

#: One step: the inputs by name in, the result out.
Step = Callable[[Arrays], Any]


@dataclass(frozen=True)
class ExportJob:
    """What one process does.

    Attributes:
        phase: ``write``, ``open`` or ``sample``.
        folder: where files are.
        case: name of the model; see :mod:`dit_compile.bench.cases`.
        ways: what is written or run; ``write`` and ``open`` take one.
        batch: latents at a time.
        steps: denoising steps of a generation.
        blocks: cut the model to this many blocks of each kind.
        threads: of ONNX Runtime, within an operator.
        once: open bundles that were laid out for this machine before, or lay them out.
    """

    phase: str
    folder: str
    case: str
    ways: tuple[str, ...]
    batch: int
    steps: int
    blocks: int | None
    threads: int
    once: bool = False

    def place(self, way: str) -> Path:
        """The folder of what a way wrote."""
        kept = (letter if letter.isalnum() else "_" for letter in way)
        return Path(self.folder) / "".join(kept)


@dataclass
class Wrote:
    """Seconds and most memory of an export, model included, and the size of its files."""

    seconds: float
    peak_bytes: int
    disk_bytes: int


@dataclass
class Opened:
    """Seconds until it can run, memory held after all of its graphs ran, error against eager."""

    seconds: float
    resident_bytes: int
    error: float


@dataclass
class Sampled:
    """Of each step of a generation, by way: its seconds, and whether it was computed in full.

    Equal places ran next to each other.
    """

    seconds: dict[str, list[float]]
    computed: dict[str, list[bool]]


def write(job: ExportJob) -> Wrote:
    """Export a model, and keep example inputs and what eager makes of them beside it."""
    import torch

    from dit_compile.bench.cases import find_case
    from dit_compile.exporting import export

    (way,) = job.ways
    case = find_case(job.case)
    model = case.build(torch.float32, "cpu", job.blocks)
    clock = case.timesteps(job.steps, torch.float32)
    inputs = case.inputs(job.batch, torch.float32, "cpu")
    inputs["timestep"] = clock[0].expand(job.batch).contiguous()
    example = {**inputs, "return_dict": False}
    place = job.place(way)
    started = time.perf_counter()
    if way == PLAIN:
        place.mkdir(parents=True)
        torch.onnx.export(model, (), place / _MODEL, kwargs=example, verbose=False)
    else:
        export(model, (), example, place, passes=way)
    seconds = time.perf_counter() - started
    wrote = Wrote(seconds, peak_resident_bytes(), sum(f.stat().st_size for f in place.iterdir()))
    with torch.no_grad():
        np.save(_beside(place, _WANT), model(**example)[0].numpy())
    np.savez(
        _beside(place, _INPUTS),
        clock=clock.numpy(),
        **{name: value.numpy() for name, value in inputs.items()},
    )
    return wrote


def open_and_run(job: ExportJob) -> Opened:
    """Open what was written, and run as many steps as it takes for each graph to have run."""
    (way,) = job.ways
    place = job.place(way)
    inputs, clock = _inputs(place)
    started = time.perf_counter()
    step, loaded = _open(job, way)
    seconds = time.perf_counter() - started
    with session(loaded, timesteps=clock) if loaded else nullcontext():
        have = step(inputs)
        for now in clock[1:4]:
            step(_at(inputs, now))
    want = np.load(_beside(place, _WANT))
    error = float(np.linalg.norm(have - want) / np.linalg.norm(want))
    return Opened(seconds, resident_bytes(), error)


def sample(job: ExportJob) -> Sampled:
    """One generation of each way; they take turns, step by step."""
    inputs, clock = _inputs(job.place(job.ways[0]))
    opened = {way: _open(job, way) for way in job.ways}
    for step, _ in opened.values():
        step(inputs)  # the first call of all lays out memory
    seconds: dict[str, list[float]] = {way: [] for way in job.ways}
    computed: dict[str, list[bool]] = {way: [] for way in job.ways}
    with ExitStack() as stack:
        sessions = {
            way: stack.enter_context(session(loaded, timesteps=clock))
            for way, (_, loaded) in opened.items()
            if loaded is not None
        }
        for now in clock:
            for way, (step, _) in opened.items():
                started = time.perf_counter()
                step(_at(inputs, now))
                seconds[way].append(time.perf_counter() - started)
                done = sessions[way].summary()["computed"] if way in sessions else len(clock)
                computed[way].append(done > sum(computed[way]))
    return Sampled(seconds, computed)


def _open(job: ExportJob, way: str) -> tuple[Step, LoadedProgram | None]:
    if way != PLAIN:
        prepack: Any = "once" if job.once else True
        loaded = load(job.place(way), intra_op_num_threads=job.threads, prepack=prepack)
        return lambda inputs: loaded(**inputs)[0], loaded
    ort = require("onnxruntime", "onnx")
    options = ort.SessionOptions()
    options.intra_op_num_threads = job.threads
    plain = ort.InferenceSession(
        str(job.place(way) / _MODEL), options, providers=["CPUExecutionProvider"]
    )
    return lambda inputs: plain.run(None, inputs)[0], None


def _inputs(place: Path) -> tuple[Arrays, np.ndarray[Any, Any]]:
    """The inputs of the first step, and the timesteps of all."""
    with np.load(_beside(place, _INPUTS)) as file:
        inputs = dict(file)
    return inputs, inputs.pop("clock")


def _at(inputs: Arrays, now: np.generic) -> Arrays:
    return {**inputs, "timestep": np.full_like(inputs["timestep"], now)}


def _beside(place: Path, what: str) -> Path:
    return place.with_name(f"{place.name}.{what}")


_PHASES: dict[str, Callable[[ExportJob], Wrote | Opened | Sampled]] = {
    "write": write,
    "open": open_and_run,
    "sample": sample,
}


def main(text: str) -> None:
    """Run the job that ``text`` holds, and print what came of it."""
    data = json.loads(text)
    job = ExportJob(**{**data, "ways": tuple(data["ways"])})
    sys.stdout.write(json.dumps(asdict(_PHASES[job.phase](job))) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
