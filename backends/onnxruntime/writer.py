"""A Program as ONNX files with one weights file beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

from dit_compile.backends.contents import exported_graphs, known_weights, results
from dit_compile.backends.onnxruntime.attach import attach_weights
from dit_compile.backends.onnxruntime.halves import widen
from dit_compile.backends.onnxruntime.merge import merge
from dit_compile.backends.onnxruntime.translate import OPSETS, translate
from dit_compile.backends.onnxruntime.weights import WeightsFile
from dit_compile.backends.rows import with_rows
from dit_compile.backends.written import ExportOptions, Written
from dit_compile.bundle.manifest import Graph
from dit_compile.errors import OptionError
from dit_compile.ir.program import ROWS, TABLE, Input, InputKind, Program
from dit_compile.progress import each

WEIGHTS_FILE = "weights.bin"
#: The model of all graphs that can serve a step.
_STEP = "step"
_HALVES = {torch.float16: "float16", torch.bfloat16: "bfloat16"}


class OnnxWriter:
    """Writes ``<graph>.onnx`` for each graph or ``step.onnx`` for several, and ``weights.bin``."""

    def write(self, program: Program, folder: Path, options: ExportOptions) -> Written:
        """Write all graphs but the one of weights alone, which is computed here and now.

        Raises:
            OptionError: the opset is not one that can be written.
            BackendError: a graph has no ONNX form.
        """
        if options.opset not in OPSETS:
            raise OptionError(
                f"opset takes {OPSETS.start} to {OPSETS.stop - 1}, not {options.opset}"
            )
        program = with_rows(program)
        file = WeightsFile(folder / WEIGHTS_FILE)
        values = known_weights(program)
        halves = half_types(program)
        models = {
            name: make_model(program, name, values, file, options)
            for name in each("graph", exported_graphs(program))
        }
        graphs = {
            name: Graph(
                f"{name}.onnx",
                tuple(str(v.name) for v in model.graph.inputs),
                results(program, name),
            )
            for name, model in models.items()
        }
        schedule = program.schedule
        steps = list(dict.fromkeys([schedule.full, *(name for _, name in schedule.variants)]))
        if len(steps) > 1 and not options.split:
            states = [spec.name for spec in program.of_kind(InputKind.STATE)]
            models[_STEP] = merge({name: models.pop(name) for name in steps}, states)
            _share_file(graphs, steps, _STEP)
        if ROWS in models and not options.split:
            clocks = [spec.name for spec in _clocks(program)]
            models[TABLE] = merge({name: models.pop(name) for name in (TABLE, ROWS)}, clocks)
            _share_file(graphs, [TABLE, ROWS], TABLE)
        for name, model in models.items():
            ir.save(model, folder / f"{name}.onnx")
        return Written(
            graphs,
            {name: version(name) for name in ("onnx", "onnxscript")},
            WEIGHTS_FILE,
            dict.fromkeys(halves, "float32"),
            tuple(f"{name} was widened to float32" for name in halves),
            program,
        )


def _share_file(graphs: dict[str, Graph], names: Sequence[str], file: str) -> None:
    for number, name in enumerate(names):
        graphs[name] = replace(graphs[name], file=f"{file}.onnx", variant=number)


def _clocks(program: Program) -> list[Input]:
    """The inputs of which one variant of the table reads one, and the other many."""
    rows = program.of_kind(InputKind.ROWS)
    return [
        *rows,
        *(s for s in program.of_kind(InputKind.USER) if s.path in {r.path for r in rows}),
    ]


def make_model(
    program: Program,
    name: str,
    values: Mapping[str, torch.Tensor],
    file: WeightsFile,
    options: ExportOptions,
) -> ir.Model:
    """One graph with its weights, in float32 where the Program is in half precision."""
    model = translate(program, name, opset=options.opset, contrib=options.contrib)
    ClearMetadataAndDocStringPass()(model)  # paths of the sources on this machine, among others
    widen(model)
    attach_weights(model, program, values, file)
    model.producer_name, model.producer_version = "ditc", version("dit-compile")
    return model


def half_types(program: Program) -> list[str]:
    """The half-precision types in a Program's graphs."""
    found = {
        value.dtype
        for module in program.graphs.values()
        for node in module.graph.nodes
        if isinstance(value := node.meta.get("val"), torch.Tensor)
    }
    return [name for dtype, name in _HALVES.items() if dtype in found]
