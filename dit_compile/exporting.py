"""``ditc.export``: a model's sampling program as a bundle of files."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dit_compile.analysis.binding import settle
from dit_compile.backends.written import ExportOptions, Written
from dit_compile.bundle import policy
from dit_compile.bundle.folder import MANIFEST, file_entry, new_folder
from dit_compile.bundle.manifest import Manifest, Value
from dit_compile.calibration.plan import Plan
from dit_compile.capture.export import capture_module
from dit_compile.errors import CaptureError, OptionError
from dit_compile.files import write_atomically
from dit_compile.ir.fingerprint import fingerprint
from dit_compile.ir.interface import MAIN, Binding, InputKind, OutputKind
from dit_compile.ir.program import Program, output_args, placeholders
from dit_compile.ir.size_names import named_sizes, rename_sizes
from dit_compile.pipeline.instruments import StructuralCheck
from dit_compile.pipeline.pipeline import Pipeline
from dit_compile.pipeline.registry import find_format
from dit_compile.pipeline.stage import Stage
from dit_compile.progress import report, shown
from dit_compile.versions import check_torch


def export(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    path: str | os.PathLike[str],
    *,
    format: str = "onnx",
    passes: str | None = None,
    plan: Plan | str | os.PathLike[str] | None = None,
    bindings: Mapping[str, str] | None = None,
    dynamic_shapes: Any = None,
    opset: int = 20,
    contrib: bool = True,
    split: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Manifest:
    """Write ``model``'s sampling program as a bundle: a folder that runs without this compiler.

    The folder is written under another name and moved into place, so a failure leaves nothing.

    Args:
        model: the module, as it would be called in the sampling loop.
        args: positional example arguments.
        kwargs: keyword example arguments.
        path: the folder to write.
        format: ``onnx``, for ONNX Runtime; ``ditc.load`` then needs no torch. ``pt2``, exported
            programs of torch. ``aoti``, machine code by AOTInductor, for torch on such a machine.
        passes: pipeline text or a preset's name; ``exact`` by default.
        plan: a Plan from ``ditc.calibrate``, or the path of one, in place of a pipeline.
        bindings: binding time by argument name, where structure cannot tell.
        dynamic_shapes: as for ``torch.export.export``: which sizes may vary.
        opset: of ``onnx``: version of the standard operators, 18 to 23.
        contrib: of ``onnx``: use operators that ONNX Runtime alone has, where they are faster.
        split: of ``onnx``: one file a graph, and not one for all graphs that can serve a step.
        overwrite: replace a bundle that is there already.
        progress: show on a terminal how far it is, if it takes more than five seconds.

    Returns:
        The bundle's manifest.

    Raises:
        PipelineError, OptionError, BindingError: an argument is wrong.
        CaptureError: the model cannot be traced, or autograd would record.
        BackendError: a graph has no such form.
        PlanError: the Plan cannot be read, or was made for another model.
        BundleError: there is something else at ``path``.
    """
    check_torch()
    if passes is not None and plan is not None:
        raise OptionError("give either passes or plan, not both")
    chosen = Plan.of(plan) if plan is not None else None
    pipeline = chosen.pipeline() if chosen else Pipeline.parse(passes or "exact").calibrated()
    writer = find_format(format)
    with (
        shown(wanted=progress),
        new_folder(Path(path), overwrite=overwrite) as folder,
        torch.no_grad(),
    ):
        report("capture", subject=type(model).__name__)
        program = capture_module(model, args, kwargs, dynamic_shapes=dynamic_shapes)
        if chosen is not None:
            chosen.check(program)
        settle(program, bindings)
        pipeline.run(program, instruments=[StructuralCheck(), Stage(pipeline)])
        written = writer.write(program, folder, ExportOptions(opset, contrib, split))
        report("checksums")
        program = written.program or program
        manifest = Manifest(
            format=format,
            model=type(model).__name__,
            pipeline=str(pipeline),
            fingerprint=fingerprint(program),
            versions={"ditc": version("dit-compile"), "torch": torch.__version__}
            | dict(written.versions),
            **_interface(program, written),
            graphs=written.graphs,
            schedule=policy.to_data(program.schedule),
            files={item.name: file_entry(item) for item in sorted(folder.iterdir())},
            weights=written.weights,
            fixed=_fixed(model, args, kwargs),
            notes=written.notes,
            device=written.device,
        )
        text = manifest.to_json()
        Manifest.from_json(text)  # what nobody could load is never moved into place
        write_atomically(folder / MANIFEST, text)
    return manifest


def _interface(program: Program, written: Written) -> dict[str, tuple[Value, ...]]:
    """The values that enter and leave the graphs, by their role in the manifest."""
    examples = {
        str(node.target): node.meta["val"]
        for name in written.graphs
        for node in placeholders(program.graphs[name].graph)
    }
    sizes = named_sizes(program)

    def value(name: str) -> Value:
        spec = program.inputs[name]
        described = _described(examples[name], sizes, written.dtypes, name)
        return replace(
            described,
            path=spec.path,
            binding=str(spec.binding),
            settled=spec.settled,
            age=spec.age,
            peer=spec.peer,
        )

    def of_kind(kind: InputKind) -> tuple[Value, ...]:
        named = (spec.name for spec in program.of_kind(kind) if spec.binding > Binding.WEIGHT)
        return tuple(value(name) for name in named if name in examples)

    results = [
        node.meta["val"]
        for output, node in zip(program.outputs[MAIN], output_args(program.main), strict=True)
        if output.kind is OutputKind.USER and hasattr(node, "meta")
    ]
    return {
        "inputs": of_kind(InputKind.USER),
        "results": tuple(
            _described(item, sizes, written.dtypes, f"output_{position}")
            for position, item in enumerate(results)
        ),
        "states": of_kind(InputKind.STATE),
        "coefficients": of_kind(InputKind.COEFFICIENTS),
        "derived": of_kind(InputKind.DERIVED),
        "rows": of_kind(InputKind.ROWS),
    }


def _described(
    example: Any, sizes: Mapping[str, str], dtypes: Mapping[str, str], name: str
) -> Value:
    if not isinstance(example, torch.Tensor):
        raise CaptureError(f"{name} is no tensor but a number; pass it as a tensor to export it")
    dtype = str(example.dtype).removeprefix("torch.")
    shape = tuple(
        size if isinstance(size, int) else rename_sizes(str(size), sizes) for size in example.shape
    )
    return Value(name, dtypes.get(dtype, dtype), shape)


def _fixed(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The model's arguments that are plain values, which the export made part of the graphs."""
    given = inspect.signature(model.forward).bind(*args, **dict(kwargs or {})).arguments
    return {
        name: value
        for name, value in given.items()
        if value is None or isinstance(value, (bool, int, float, str))
    }
