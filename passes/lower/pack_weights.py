"""Lay the weights of linears out for the processor, once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from dit_compile.analysis.cost_rules import elements
from dit_compile.analysis.machine import memory, onednn_multiplies
from dit_compile.errors import PipelineError
from dit_compile.ir.fake import dtype_name
from dit_compile.ir.hints import Hints, symbol_hints
from dit_compile.ir.program import Program
from dit_compile.kernels.packed import pack_weight, packed_linear, speedup
from dit_compile.pipeline.base import Kind, Pass
from dit_compile.pipeline.rewriter import Rewriter

aten = torch.ops.aten

#: What oneDNN multiplies on some processors.
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, kw_only=True)
class PackWeights(Pass):
    """Lay the weights of linears out for the processor, once.

    Before:  %y = aten.linear(%x, @w, @b)
    After:   %y = ditc.packed_linear(%x, @w.packed, @b)
    Fires only if: on a CPU on which oneDNN multiplies the weight's type, the weight is a parameter
    or a cast of one, a product of this size was measured to be ``min_speedup`` times as fast that
    way, and all packed weights fit ``max_bytes``.

    Attributes:
        min_speedup: how much faster a product must be.
        max_bytes: memory that packed weights may take beside the originals; by default a quarter
            of the machine's. Beyond it nothing is packed, so that blocks stay alike.
    """

    name: ClassVar[str] = "pack-weights"
    kind: ClassVar[Kind] = Kind.LOWER
    bakes_weights: ClassVar[bool] = True
    min_speedup: float = 1.03
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.max_bytes is not None and self.max_bytes < 0:
            raise PipelineError(
                f"pack-weights: max-bytes must not be negative, as {self.max_bytes} is"
            )

    def run(self, program: Program, rw: Rewriter) -> None:
        """Pack in all graphs that serve steps; they share each packed weight."""
        found = {graph: self._pays(graph, program, rw) for graph in rw.graphs()}
        weights = {_path(node, program): node for nodes in found.values() for node in nodes}
        if not weights:
            return
        size = sum(_weight(node).meta["val"].nbytes for node in weights.values())
        room = memory() // 4 if self.max_bytes is None else self.max_bytes
        if size > room:
            rw.note(f"packed weights would take {size:,} bytes, and may take {room:,}")
            return
        for graph in rw.graphs():
            for node in found[graph]:
                _pack(node, program, rw)
        rw.note(f"{len(weights)} weights packed, {size / 1e6:,.1f} MB")

    def _pays(self, graph: fx.Graph, program: Program, rw: Rewriter) -> list[fx.Node]:
        """The linears that are faster with a packed weight."""
        hints = symbol_hints(graph)
        found = []
        for node in graph.find_nodes(op="call_function", target=aten.linear.default):
            if not _is_candidate(node):
                continue
            reason = self._objection(node, program, hints)
            if reason:
                rw.miss(node, reason)
            else:
                found.append(node)
        return found

    def _objection(self, node: fx.Node, program: Program, hints: Hints) -> str:
        """Why a linear is better left as it is; empty if it is not."""
        value = _weight(node).meta["val"]
        if not onednn_multiplies(value.dtype):
            return f"oneDNN does not multiply {dtype_name(value.dtype)} on this processor"
        if value.dim() != 2:
            return "the weight is no matrix"
        if not program.is_weight(_source(node)):
            return "the weight is computed, not a parameter"
        gain = _speedup(node, hints)
        return "" if gain >= self.min_speedup else f"packed it is {gain:.2f}x as fast"


def _weight(node: fx.Node) -> fx.Node:
    """The weight of a linear, as it is multiplied."""
    weight = node.args[1]
    assert isinstance(weight, fx.Node)
    return weight


def _source(node: fx.Node) -> fx.Node:
    """The weight of a linear, before the cast that widens it."""
    weight = _weight(node)
    return weight.all_input_nodes[0] if weight.target == aten.to.dtype else weight


def _path(node: fx.Node, program: Program) -> str:
    """The path of a linear's weight as it is multiplied."""
    path, weight = program.inputs[str(_source(node).target)].path, _weight(node)
    if weight.op == "placeholder":
        return path
    return f"{path}.{str(weight.meta['val'].dtype).removeprefix('torch.')}"


def _is_candidate(node: fx.Node) -> bool:
    value = _weight(node).meta["val"]
    return value.device.type == "cpu" and value.dtype in _DTYPES


def _speedup(node: fx.Node, hints: Hints) -> float:
    outputs, inputs = _weight(node).meta["val"].shape
    rows = int(elements(node).xreplace(dict(hints))) // outputs
    return speedup(rows, inputs, outputs, node.meta["val"].dtype)


def _pack(node: fx.Node, program: Program, rw: Rewriter) -> None:
    rw.begin(node)
    weight, path = _source(node), _path(node, program)
    if weight is not _weight(node):
        dtype = _weight(node).meta["val"].dtype
        weight = rw.derive(aten.to.dtype, weight, dtype, path=path, before=node)
    packed = rw.derive(pack_weight, weight, path=f"{path}.packed", before=node)
    args = (node.args[0], packed, *node.args[2:])
    rw.replace(node, rw.call(packed_linear, *args, before=node, replaces=[node]))
