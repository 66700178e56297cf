"""Drop operators whose result nobody uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from dit_compile.ir.program import Program, output_args, output_node, placeholders
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
                if program.is_made_ahead(node) and not node.users:
                    graph.erase_node(node)
        for name, _ in reversed(list(program.ahead_graphs())):  # a later one may read an earlier
            _drop_unread(program, name, rw)


def _drop_unread(program: Program, name: str, rw: Rewriter) -> None:
    """Drop values of the ahead graph ``name`` that no other graph reads any more."""
    read = {
        str(node.target)
        for other, module in program.graphs.items()
        for node in placeholders(module.graph)
        if other != name
    }
    graph = program.graphs[name].graph
    kept = [
        (output, value)
        for output, value in zip(program.outputs[name], output_args(graph), strict=True)
        if output.name in read
    ]
    gone = [out.name for out in program.outputs[name] if out.name not in read]
    if not gone:
        return
    anchor: fx.Node = output_node(graph)
    rw.begin(anchor)
    anchor.args = (tuple(value for _, value in kept),)
    program.outputs[name] = tuple(output for output, _ in kept)
    for derived in gone:
        del program.inputs[derived]
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op in ("call_function", "placeholder"):
            graph.erase_node(node)
    if not kept:
        del program.graphs[name], program.outputs[name]
