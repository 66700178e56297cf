"""``ditc export`` and ``ditc run``: a model as files, and the files at work."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from dit_compile.bundle.arrays import bound
from dit_compile.bundle.loaded import LoadedProgram, load
from dit_compile.cli.described import graph_table
from dit_compile.errors import OptionError
from dit_compile.files import replaced
from dit_compile.report.terminal import terminal
from dit_compile.runtime.generation import MODES
from dit_compile.runtime.session import session

if TYPE_CHECKING:
    from dit_compile.bundle.manifest import Manifest, Value

Arrays = dict[str, Any]


def export(args: argparse.Namespace) -> None:
    """``ditc export``: write a bundle, and list what is in it."""
    from dit_compile.cli.commands import parse_bindings
    from dit_compile.cli.target import load_target
    from dit_compile.exporting import export as run

    with contextlib.redirect_stdout(sys.stderr):  # what the user's code prints is not our data
        target = load_target(args.target)
        manifest = run(
            target.model,
            target.args,
            target.kwargs,
            args.path,
            format=args.format,
            passes=args.passes,
            plan=args.plan,
            bindings=parse_bindings(args.bind),
            opset=args.opset,
            contrib=not args.no_contrib,
            split=args.split,
            overwrite=args.overwrite,
        )
    console = terminal()
    console.print(graph_table(manifest))
    for note in manifest.notes:
        console.print(f"note: {note}")
    console.print(f"bundle: {args.path}", soft_wrap=True)


def run(args: argparse.Namespace) -> None:
    """``ditc run``: run a bundle over a loop of steps, and say how long each kind of step took."""
    started = time.perf_counter()
    loaded = load(
        args.path,
        providers=args.provider or ("CPUExecutionProvider",),
        intra_op_num_threads=args.threads,
        allow_fallback=args.allow_fallback,
        prepack=args.prepack,
        trust=args.trust,
    )
    ready = time.perf_counter() - started
    inputs = _drawn(loaded.manifest) | _read(args.inputs)
    bound(loaded.manifest.inputs, {}, (), inputs)
    times = _timesteps(loaded.manifest, args.steps)
    with session(loaded, timesteps=times or None) as current:
        seconds: dict[str, list[float]] = {}
        for step in range(args.steps):
            before = current.summary()
            call = inputs | (_at(loaded, inputs, times[step]) if times else {})
            started = time.perf_counter()
            results = loaded(**call)
            took = time.perf_counter() - started
            after = current.summary()
            how = next((mode for mode in MODES if after[mode] > before[mode]), MODES[0])
            seconds.setdefault(how, []).append(took)
    if args.save:
        named = zip((value.name for value in loaded.manifest.results), results, strict=True)
        _save(args.save, dict(named))
    _report(loaded, ready, seconds)


def _save(path: str, arrays: Arrays) -> None:
    """Write arrays as numpy does, which puts ``.npz`` behind a name without it.

    Raises:
        OptionError: the file cannot be written.
    """
    target = Path(path if path.endswith(".npz") else f"{path}.npz")
    try:
        with replaced(target) as draft, draft.open("wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        raise OptionError(f"cannot write {str(target)!r}: {error}") from error


def _report(loaded: LoadedProgram, ready: float, seconds: Mapping[str, list[float]]) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("steps")
    for title in ("count", "first ms", "median ms"):
        table.add_column(title, justify="right")
    for how, took in seconds.items():
        first, median = 1e3 * took[0], 1e3 * float(np.median(took[1:] or took))
        table.add_row(how, str(len(took)), f"{first:.1f}", f"{median:.1f}")
    console = terminal()
    console.print(f"{loaded.manifest.model}, loaded in {ready:.2f} s", highlight=False)
    console.print(table)


def _read(path: str | None) -> Arrays:
    """Arrays by name from a ``.npz`` file; none without one. Pickled objects are refused."""
    if path is None:
        return {}
    try:
        with np.load(Path(path), allow_pickle=False) as file:
            return dict(file)
    except Exception as error:  # zipfile, zlib and numpy each have their own for damaged files
        raise OptionError(f"cannot read the inputs {path!r}: {error}; give a .npz file") from error


def _drawn(manifest: Manifest) -> Arrays:
    """Noise for numbers and zeros for all else, where the sizes are known."""
    rng = np.random.default_rng(0)
    drawn: Arrays = {}
    for value in manifest.inputs:
        sizes = [size for size in value.shape if isinstance(size, int)]
        if len(sizes) == len(value.shape):
            noise = rng.standard_normal(sizes)
            floating = "float" in value.dtype
            dtype = "float32" if value.dtype == "bfloat16" else value.dtype  # numpy has none
            drawn[value.name] = (noise if floating else noise * 0).astype(dtype)
    return drawn


def _timesteps(manifest: Manifest, steps: int) -> list[float]:
    """Evenly spaced timesteps; empty if no input is one for certain."""
    if not _clock(manifest):
        return []
    return [float(t) for t in np.linspace(1000, 0, steps, endpoint=False).round()]


def _at(loaded: LoadedProgram, inputs: Arrays, time_: float) -> Arrays:
    return {v.name: np.full_like(inputs[v.name], time_) for v in _clock(loaded.manifest)}


def _clock(manifest: Manifest) -> list[Value]:
    found = [v for v in manifest.inputs if v.binding == "timestep" and v.settled]
    return found if len(found) == 1 else []
