"""A Program as exported programs, with one weights file beside them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from torch.export import ExportedProgram

from dit_compile.backends.contents import exported_graphs, known_weights, results
from dit_compile.backends.pt2.graph import portable_graph
from dit_compile.backends.pt2.weights import Weights
from dit_compile.backends.rows import with_rows
from dit_compile.backends.written import ExportOptions, Written
from dit_compile.bundle.manifest import Graph
from dit_compile.errors import BackendError, OptionError
from dit_compile.ir.fake import device_types
from dit_compile.ir.program import Program, placeholders
from dit_compile.progress import each

#: Takes a graph's name and form, and returns the file that it goes to.
Store = Callable[[str, ExportedProgram], str]


class Pt2Writer:
    """Writes ``<graph>.pt2`` for each graph, and ``weights.safetensors``."""

    def write(self, program: Program, folder: Path, options: ExportOptions) -> Written:
        """Write all graphs but the one of weights alone, which is computed here and now.

        Raises:
            OptionError: an option is of another format.
            BackendError: a graph has no such form.
        """

        def store(name: str, exported: ExportedProgram) -> str:
            file = f"{name}.pt2"
            torch.export.save(exported, folder / file)
            return file

        return write_graphs(program, folder, options, store)


def write_graphs(program: Program, folder: Path, options: ExportOptions, store: Store) -> Written:
    """Hand each graph to ``store`` and write their weights.

    Raises:
        OptionError: an option is of another format.
        BackendError: a graph has no such form.
    """
    if options != ExportOptions():
        raise OptionError("opset, contrib and split are of the format onnx; leave them out")
    program = with_rows(program)
    device = _device(program)
    values, weights = known_weights(program), Weights()
    graphs: dict[str, Graph] = {}
    for name in each("graph", exported_graphs(program)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on torch's own internals
            exported, reads, behind = portable_graph(program, name)
            file = store(name, exported)
        held = tuple(weights.add(program.inputs[weight].path, values[weight]) for weight in behind)
        graphs[name] = Graph(file, tuple(reads), results(program, name), weights=held)
    versions = {"safetensors": version("safetensors")}
    return Written(graphs, versions, weights.save(folder), program=program, device=device)


def _device(program: Program) -> str:
    """The one device that all inputs are on.

    Raises:
        BackendError: they are on several.
    """
    inputs = (node for module in program.graphs.values() for node in placeholders(module.graph))
    found = device_types(inputs)
    if len(found) > 1:
        raise BackendError(
            f"the model and its inputs are on {' and '.join(sorted(found))}; move them to one"
        )
    return next(iter(found), "cpu")
