"""What reproduces the failure of a pass: a folder with text alone, and weights only on request."""

from __future__ import annotations

import hashlib
import json
import platform
import shlex
from pathlib import Path
from typing import Any

import torch

import dit_compile
from dit_compile import config
from dit_compile.cache_folder import cache_folder, distrust
from dit_compile.errors import DitcError
from dit_compile.files import filled_folder, write_atomically
from dit_compile.ir.fake import describe
from dit_compile.ir.printer import print_program
from dit_compile.ir.program import InputKind, Program
from dit_compile.ir.runnable import runnable
from dit_compile.pipeline.pipeline import Pipeline


def write_repro(
    program: Program,
    pipeline: Pipeline,
    position: int,
    error: DitcError | str,
    folder: Path,
    *,
    weights: bool = False,
    seed: int = 0,
) -> Path:
    """Write a folder that reproduces a failure; one of this user's that is there already stays.

    It holds ``program.txt`` (the IR as the pass found it), ``case.py`` (the same as a module that
    runs, and the target of ``ditc explain``), ``repro.json`` (pipeline, error, versions, shapes,
    seed, command) and, on request, ``weights.safetensors``. Nothing in it is pickled.

    Args:
        program: the Program as the failing pass found it.
        pipeline: the passes.
        position: the failing one.
        error: what it raised.
        folder: where to put it; its name says which pass and which case.
        weights: whether to keep the values of the weights too.
        seed: for the inputs.

    Raises:
        OSError: the folder cannot be written.
    """
    text = print_program(program)
    item = pipeline.passes[position]
    name = f"{item.name}-{hashlib.sha256(f'{text}{item}'.encode()).hexdigest()[:12]}"
    place = folder / name
    if place.is_dir() and _is_own(place):
        return place
    title = f"What {item.name} fails on."
    facts = _facts(program, pipeline, position, str(error), seed)
    facts["command"] = shlex.join(
        ["ditc", "explain", f"{place / 'case.py'}:target", "--passes", str(item)]
    )
    with filled_folder(place) as draft:
        write_atomically(draft / "program.txt", text + "\n")
        write_atomically(draft / "case.py", runnable(program, title=title, seed=seed))
        write_atomically(draft / "repro.json", json.dumps(facts, indent=2) + "\n")
        if weights:
            _save_weights(program, draft / "weights.safetensors")
    return place


def _is_own(place: Path) -> bool:
    """Whether nobody but this user could have written a repro: its module will be run."""
    return not distrust(place, place) and not any(distrust(item, place) for item in place.iterdir())


def keep_repro(program: Program, pipeline: Pipeline, position: int, error: DitcError) -> str:
    """Leave a repro in the folder of the settings; returns the line that tells of it.

    Keeping it must never hide the error itself, so what goes wrong here is told and no more.
    """
    folder = config.repro_dir()
    if folder is None:
        return ""
    try:
        if folder.parent == config.cache_dir():
            folder = cache_folder(folder.name)
        return f"\n  repro: {write_repro(program, pipeline, position, error, folder)}"
    except Exception as failure:
        return f"\n  no repro was kept: {type(failure).__name__}: {failure}"


def _facts(
    program: Program, pipeline: Pipeline, position: int, error: str, seed: int
) -> dict[str, Any]:
    shapes = {}
    for module in program.graphs.values():
        for node in module.graph.find_nodes(op="placeholder"):
            shapes[str(node.target)] = describe(node.meta.get("val"))
    return {
        "pipeline": str(pipeline),
        "pass": str(pipeline.passes[position]),
        "position": position,
        "error": error,
        "versions": {
            "ditc": dit_compile.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "system": platform.system(),
        },
        "shapes": shapes,
        "seed": seed,
    }


def _save_weights(program: Program, path: Path) -> None:
    from safetensors.torch import save_file

    tensors = {
        spec.path: program.constants[spec.name].detach().clone().contiguous()
        for spec in program.of_kind(InputKind.WEIGHT)
        if spec.name in program.constants
    }
    save_file(tensors, path)
