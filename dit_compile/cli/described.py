"""What a bundle holds, told from its manifest alone. Needs no torch."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.table import Table

from dit_compile.bundle.folder import open_bundle
from dit_compile.bundle.manifest import Manifest, Value
from dit_compile.bundle.policy import from_data
from dit_compile.errors import OptionError
from dit_compile.report.terminal import terminal

#: Steps of the generation whose schedule is shown.
_STEPS = 50
#: Bytes of the element types that numpy does not know.
_OTHER_SIZES = {"bfloat16": 2}


def explain(args: argparse.Namespace) -> None:
    """``ditc explain`` of a bundle: its graphs, inputs, schedule, sizes and origin.

    Raises:
        BundleError: it is damaged.
        OptionError: what was asked for is of a model's passes.
    """
    for name in ("analysis", "diff", "markdown", "html", "graph", "bind", "trajectory", "plot"):
        if getattr(args, name) not in (None, False, []):
            raise OptionError(f"--{name} is of a model; a bundle takes --json alone")
    manifest = open_bundle(Path(args.target))
    if args.json:
        sys.stdout.write(manifest.to_json())
        return
    console = terminal()
    for line in _origin(manifest):
        console.print(line, soft_wrap=True)
    console.print(_input_table(manifest))
    for line in _schedule(manifest):
        console.print(line, soft_wrap=True)
    console.print(graph_table(manifest))


def graph_table(manifest: Manifest) -> Table:
    """The graphs, what each reads and returns, and the files that they are in."""
    table = _table("graph", "file", numbers=("inputs", "outputs", "MB"))
    sized: set[str] = set()
    for name, graph in manifest.graphs.items():
        size = "" if graph.file in sized else _megabytes(manifest.files[graph.file].bytes)
        sized.add(graph.file)
        table.add_row(name, graph.file, str(len(graph.inputs)), str(len(graph.outputs)), size)
    if manifest.weights:
        size = _megabytes(manifest.files[manifest.weights].bytes)
        table.add_row("weights of all", manifest.weights, "", "", size)
    return table


def _origin(manifest: Manifest) -> Iterator[str]:
    size = _megabytes(sum(file.bytes for file in manifest.files.values()))
    versions = ", ".join(f"{name} {number}" for name, number in manifest.versions.items())
    where = f" on {manifest.device}" if manifest.device else ""
    yield f"{manifest.model}   {manifest.format}{where}   {size} MB   {versions}"
    yield f"passes: {manifest.pipeline}"
    yield f"fingerprint: {manifest.fingerprint}"
    for name, value in manifest.fixed.items():
        yield f"fixed: {name} = {value!r}"
    for note in manifest.notes:
        yield f"note: {note}"


def _input_table(manifest: Manifest) -> Table:
    table = _table("value", "type", "binding")
    for value in manifest.inputs:
        sure = "" if value.settled or value.binding == "latent" else "  (taken for granted)"
        table.add_row(value.name, _typed(value), value.binding + sure)
    for value in manifest.results:
        table.add_row(value.name, _typed(value), "result")
    return table


def _schedule(manifest: Manifest) -> Iterator[str]:
    """What the cache does, and what it keeps for it."""
    schedule = from_data(manifest.schedule)
    if schedule.policy is None:
        yield "schedule: every step is computed"
        return
    rows = schedule.mask(_STEPS)
    how = "each step decides, by what it measures"
    if rows is not None:
        computed = sum(all(row) for row in rows)
        how = f"{computed} of {_STEPS} steps computed in full"
    yield f"schedule: {schedule.policy.describe()}; {how}"
    for mask, graph in schedule.variants:
        yield f"  {graph}: computes {sum(mask)} of {len(mask)} groups"
    yield f"state of a lane: {_kept(manifest.states)}"


def _kept(states: Sequence[Value]) -> str:
    sizes = [_bytes(value) for value in states]
    known = [size for size in sizes if size is not None]
    total = f"{_megabytes(sum(known))} MB" if len(known) == len(sizes) else "of varying sizes"
    return f"{len(states)} tensors, {total}"


def _bytes(value: Value) -> int | None:
    """The size of a tensor, ``None`` if it varies."""
    sizes = [size for size in value.shape if isinstance(size, int)]
    if len(sizes) < len(value.shape):
        return None
    width = _OTHER_SIZES.get(value.dtype)
    return math.prod(sizes) * (width if width is not None else np.dtype(value.dtype).itemsize)


def _typed(value: Value) -> str:
    return f"{value.dtype}[{','.join(map(str, value.shape))}]"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f}"


def _table(*titles: str, numbers: Sequence[str] = ()) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in titles:
        table.add_column(title)
    for title in numbers:
        table.add_column(title, justify="right")
    return table
