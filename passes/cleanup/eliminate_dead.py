"""Drop operators whose result nobody uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from dit_compile.ir.program import WEIGHTS, Program, output_args, output_node
from dit_compile.ir.purity import is_pure
from dit_compile.pipeline.base import Kind, Pass
from dit_compile.pipeline.rewriter import Rewriter


@dataclass(frozen=True, kw_only=True)
class EliminateDead(Pass):
    """Drop operators whose result nobody uses, and weights' values computed for nobody.

    Before:  %a = aten.linear(%x, @w); %b = aten.relu(%x); return %b
    After:   %b = aten.relu(%x); return %b
    Fires only if: the operator writes nothing and draws no random numbers.
    """

    name: ClassVar[str] = "eliminate-dead"
    kind: ClassVar[Kind] = Kind.EXACT

    def run(self, program: Program, rw: Rewriter) -> None:
        """Sweep each graph from its end."""
        for graph in rw.graphs():
            dead = [n for n in graph.nodes if not n.users and is_pure(n)]
            for node in reversed(dead):
                rw.begin(node)
                rw.sweep(node)
            for node in list(graph.find_nodes(op="placeholder")):
                if program.is_weight(node) and not node.users:
                    graph.erase_node(node)
        if WEIGHTS in program.graphs:
            _drop_unread(program, rw)


def _drop_unread(program: Program, rw: Rewriter) -> None:
    """Drop derived values that no graph reads any more."""
    read = {
        str(node.target)
        for _, module in program.step_graphs()
        for node in module.graph.find_nodes(op="placeholder")
    }
    graph = program.graphs[WEIGHTS].graph
    kept = [
        (output, value)
        for output, value in zip(program.outputs[WEIGHTS], output_args(graph), strict=True)
        if output.name in read
    ]
    gone = [out.name for out in program.outputs[WEIGHTS] if out.name not in read]
    if not gone:
        return
    anchor: fx.Node = output_node(graph)
    rw.begin(anchor)
    anchor.args = (tuple(value for _, value in kept),)
    program.outputs[WEIGHTS] = tuple(output for output, _ in kept)
    for name in gone:
        del program.inputs[name]
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op in ("call_function", "placeholder"):
            graph.erase_node(node)
    if not kept:
        del program.graphs[WEIGHTS], program.outputs[WEIGHTS]
