"""What a writer of files tells of the graphs that it wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from dit_compile.bundle.manifest import Graph
from dit_compile.ir.program import Program


@dataclass(frozen=True)
class ExportOptions:
    """How to write a Program; a format takes what concerns it.

    Attributes:
        opset: version of ONNX's standard operators.
        contrib: use operators that ONNX Runtime alone has, where they are faster.
        split: one ONNX file a graph, and not one for all graphs that can serve a step.
    """

    opset: int = 20
    contrib: bool = True
    split: bool = False


@dataclass(frozen=True)
class Written:
    """The graphs in a folder.

    Attributes:
        graphs: where each is, and what it reads and returns.
        versions: what wrote them, by package.
        weights: the file that holds all weights, if it is one of its own.
        dtypes: element types that were replaced, in numpy's words.
        notes: what was changed for the target.
        program: what was written, where graphs were added to it.
        device: where the graphs run, in torch's words, unless whoever runs them may choose.
    """

    graphs: Mapping[str, Graph]
    versions: Mapping[str, str]
    weights: str | None = None
    dtypes: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    program: Program | None = None
    device: str | None = None


class Writer(Protocol):
    """Writes the graphs of a Program into an empty folder."""

    def write(self, program: Program, folder: Path, options: ExportOptions) -> Written:
        """Write all graphs.

        Raises:
            BackendError: a graph has no such form.
        """
        ...
