"""A variant that stands for the second of guidance's two calls, by what the first one returned."""

from __future__ import annotations

import torch
from torch import fx

from dit_compile.ir.fake import tensor_of
from dit_compile.ir.origin import Origin, origin_of
from dit_compile.ir.program import (
    MAIN,
    Output,
    OutputKind,
    Program,
    add_outputs,
    copy_graph,
    output_args,
    output_node,
)
from dit_compile.passes.block_cache.angle import angle
from dit_compile.passes.block_cache.insertion import declare, drop_dead, placeholder, read_sizes
from dit_compile.pipeline.rewriter import Rewriter

SKIP, CRITIC = "skip", "critic"

aten = torch.ops.aten


def add_second_call(program: Program, rw: Rewriter) -> bool:
    """Add a graph that returns what the peer returned at this step.

    The main graph then keeps its results as state, copied since callers may write to theirs, and a
    further graph measures how far they are from the peer's.

    Args:
        program: the Program.
        rw: its rewriter, to which a reason is told where there is no such graph.

    Returns:
        Whether the graph was added.
    """
    results = output_args(program.main)
    for output, value in zip(program.outputs[MAIN], results, strict=True):
        node = value if isinstance(value, fx.Node) else output_node(program.main)
        if output.kind is not OutputKind.USER or node is not value:
            rw.miss(node, "it is returned and is no prediction, so a call cannot do without it")
            return False
        if not tensor_of(node).is_floating_point() or tensor_of(node).dim() < 2:
            rw.miss(node, "it is returned and does not hold a prediction for each sample")
            return False
    rw.begin(results[0])
    paths = [f"guidance.{number}" if number else "guidance" for number in range(len(results))]
    own = [declare(program, path) for path in paths]
    theirs = [declare(program, path, peer=True) for path in paths]
    _add_skip(program, rw, theirs)
    _add_critic(program, rw, own, theirs)
    rw.graph_name = MAIN
    kept = [_copy(rw, value) for value in results]
    states = [Output(OutputKind.STATE, name) for name in own]
    add_outputs(program, MAIN, list(zip(states, kept, strict=True)))
    return True


def _copy(rw: Rewriter, value: fx.Node) -> fx.Node:
    return rw.call(aten.clone.default, value, before=output_node(rw.graph), replaces=[value])


def _add_skip(program: Program, rw: Rewriter, theirs: list[str]) -> None:
    module = copy_graph(program.graphs[MAIN])
    program.graphs[SKIP], program.outputs[SKIP] = module, program.outputs[MAIN]
    rw.graph_name = SKIP
    start, end = next(iter(module.graph.nodes)), output_node(module.graph)
    read = [
        _read(program, module.graph, start, name, value)
        for name, value in zip(theirs, output_args(module.graph), strict=True)
    ]
    end.args = (tuple(_copy(rw, node) for node in read),)
    drop_dead(program, module.graph)


def _add_critic(program: Program, rw: Rewriter, own: list[str], theirs: list[str]) -> None:
    graph = fx.Graph()
    end = graph.output(())
    program.graphs[CRITIC], program.outputs[CRITIC] = fx.GraphModule({}, graph), ()
    rw.graph_name = CRITIC
    results = output_args(program.main)
    apart = [
        angle(rw, *(_read(program, rw.graph, end, name, value) for name in pair))
        for pair, value in zip(zip(own, theirs, strict=True), results, strict=True)
    ]
    read_sizes(program, rw.graph)
    measure = apart[0]
    for other in apart[1:]:
        measure = rw.call(aten.maximum.default, measure, other, before=end, replaces=[other])
    add_outputs(program, CRITIC, [(Output(OutputKind.MEASURE), measure)])


def _read(program: Program, graph: fx.Graph, before: fx.Node, name: str, like: fx.Node) -> fx.Node:
    """The input ``name``, as large as the result ``like``."""
    origin = Origin(program.inputs[name].path, origin_of(like).source)
    return placeholder(graph, before, name, tensor_of(like), origin)
