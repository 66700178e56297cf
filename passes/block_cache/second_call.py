"""A variant that stands for the second of guidance's two calls, by what the first one returned."""

from __future__ import annotations

from collections.abc import Sequence

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
from dit_compile.passes.block_cache.direction import LeftOut, directions, taken_off
from dit_compile.passes.block_cache.insertion import (
    State,
    declare,
    drop_dead,
    numbered,
    placeholder,
    read_sizes,
    return_states,
)
from dit_compile.pipeline.rewriter import Rewriter

SKIP, CRITIC = "skip", "critic"

aten = torch.ops.aten


def add_second_call(
    program: Program, rw: Rewriter, *, depth: int = 0, records: bool = False
) -> LeftOut | None:
    """Add a graph that returns what the peer returned at this step.

    The main graph then keeps its results as state, copied since callers may write to theirs, and a
    further graph measures how far they are from the peer's. Or that one keeps how they differ, and
    the graph that was added forecasts it.

    Args:
        program: the Program.
        rw: its rewriter, to which a reason is told where there is no such graph.
        depth: how many differences are kept; none to measure.
        records: keep differences alone, and add no graph that serves a step.

    Returns:
        What was added, or ``None``.
    """
    results = output_args(program.main)
    for output, value in zip(program.outputs[MAIN], results, strict=True):
        node = value if isinstance(value, fx.Node) else output_node(program.main)
        if output.kind is not OutputKind.USER or node is not value:
            rw.miss(node, "it is returned and is no prediction, so a call cannot do without it")
            return None
        if not tensor_of(node).is_floating_point() or tensor_of(node).dim() < 2:
            rw.miss(node, "it is returned and does not hold a prediction for each sample")
            return None
    rw.begin(results[0])
    paths = [numbered("guidance", number) for number in range(len(results))]
    own = [declare(program, path) for path in paths]
    theirs = [declare(program, path, peer=True) for path in paths]
    states = _add_critic(program, rw, own, theirs, depth)
    if not records:
        _add_skip(program, rw, theirs, states)
    rw.graph_name = MAIN
    kept = [_copy(rw, value) for value in results]
    outputs = [Output(OutputKind.STATE, name) for name in own]
    add_outputs(program, MAIN, list(zip(outputs, kept, strict=True)))
    return LeftOut("" if records else SKIP, CRITIC, states)


def _copy(rw: Rewriter, value: fx.Node) -> fx.Node:
    return rw.call(aten.clone.default, value, before=output_node(rw.graph), replaces=[value])


def _add_skip(
    program: Program, rw: Rewriter, theirs: Sequence[str], states: Sequence[State]
) -> None:
    module = copy_graph(program.graphs[MAIN])
    program.graphs[SKIP], program.outputs[SKIP] = module, program.outputs[MAIN]
    rw.graph_name = SKIP
    start, end = next(iter(module.graph.nodes)), output_node(module.graph)
    read = [
        _read(program, module.graph, start, name, value)
        for name, value in zip(theirs, output_args(module.graph), strict=True)
    ]
    made = taken_off(program, rw, read, states) if states else [_copy(rw, node) for node in read]
    end.args = (tuple(made),)
    drop_dead(program, module.graph)


def _add_critic(
    program: Program, rw: Rewriter, own: Sequence[str], theirs: Sequence[str], depth: int
) -> Sequence[State]:
    graph = fx.Graph()
    end = graph.output(())
    program.graphs[CRITIC], program.outputs[CRITIC] = fx.GraphModule({}, graph), ()
    rw.graph_name = CRITIC
    results = output_args(program.main)
    pairs = [
        [_read(program, rw.graph, end, name, value) for name in names]
        for names, value in zip(zip(theirs, own, strict=True), results, strict=True)
    ]
    read_sizes(program, rw.graph)
    if depth:

        def direction(number: int) -> fx.Node:
            pair = pairs[number]
            return rw.call(aten.sub.Tensor, *pair, before=end, replaces=[pair[1]])

        states = directions(rw, results, depth, direction)
        return_states(program, CRITIC, states)
        return states
    apart = [angle(rw, *pair) for pair in pairs]
    measure = apart[0]
    for other in apart[1:]:
        measure = rw.call(aten.maximum.default, measure, other, before=end, replaces=[other])
    add_outputs(program, CRITIC, [(Output(OutputKind.MEASURE), measure)])
    return []


def _read(program: Program, graph: fx.Graph, before: fx.Node, name: str, like: fx.Node) -> fx.Node:
    """The input ``name``, as large as the result ``like``."""
    origin = Origin(program.inputs[name].path, origin_of(like).source)
    return placeholder(graph, before, name, tensor_of(like), origin)
