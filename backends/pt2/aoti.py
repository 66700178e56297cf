"""A Program as one AOTInductor package: machine code for all its graphs."""

from __future__ import annotations

import platform
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch._inductor.package.package import package_aoti
from torch.export import ExportedProgram

from dit_compile.analysis.machine import vectors
from dit_compile.backends.inductor.backend import settings
from dit_compile.backends.pt2.writer import write_graphs
from dit_compile.backends.written import ExportOptions, Written
from dit_compile.errors import BackendError
from dit_compile.ir.program import Program, placeholders

PACKAGE = "graphs.pt2"


class AotiWriter:
    """Writes ``graphs.pt2`` with a model for each graph, and ``weights.safetensors``."""

    def write(self, program: Program, folder: Path, options: ExportOptions) -> Written:
        """Compile all graphs but the one of weights alone, which is computed here and now.

        Raises:
            OptionError: an option is of another format.
            BackendError: a graph cannot be compiled.
        """
        files: dict[str, Any] = {}

        def store(name: str, exported: ExportedProgram) -> str:
            graph = program.graphs.get(name)
            chosen = settings(program, graph.graph) if graph is not None else {}
            files[name] = _compiled(name, exported, chosen)
            return PACKAGE

        written = write_graphs(program, folder, options, store)
        package_aoti(str(folder / PACKAGE), files)
        cpu = f"{sys.platform} {platform.machine()}, {vectors()}"
        return replace(written, notes=(f"compiled for processors like this one: {cpu}",))


def _compiled(name: str, exported: ExportedProgram, chosen: dict[str, Any]) -> list[str]:
    """The files of one model; the sources that it was compiled from stay here."""
    module = exported.graph_module
    fakes = tuple(node.meta["val"] for node in placeholders(module.graph))
    try:
        files: Any = torch._inductor.aot_compile(
            module, fakes, options={"aot_inductor.package": True, **chosen}
        )
    except Exception as error:
        raise BackendError(
            f"AOTInductor cannot compile graph @{name}: {type(error).__name__}: {error}"
        ) from error
    return [file for file in files if not str(file).endswith(".cpp")]
