"""A variant that computes one half of the batch, as the other half of guidance need not be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import fx

import dit_compile.analysis.sample_rules  # noqa: F401  (registers the rules)
from dit_compile.analysis.samples import Samples, find_samples, shape_of
from dit_compile.analysis.sizes import Miss
from dit_compile.errors import PassError
from dit_compile.ir.fake import evaluate, tensor_of
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
from dit_compile.ir.purity import is_random
from dit_compile.ir.schema import argument_names, given_arguments
from dit_compile.passes.block_cache.angle import angle
from dit_compile.passes.block_cache.direction import LeftOut, directions, taken_off
from dit_compile.passes.block_cache.insertion import State, drop_dead, return_states
from dit_compile.pipeline.rewriter import Rewriter

HALF = "half"

aten = torch.ops.aten


def add_half(
    program: Program, rw: Rewriter, which: str, *, depth: int = 0, records: bool = False
) -> LeftOut | None:
    """Add a graph that computes one half of the batch, and returns it for both halves.

    The main graph then measures how far its two halves are apart, and this graph says that they
    are not. Or the main graph keeps how they differ, and this graph forecasts that.

    Args:
        program: the Program.
        rw: its rewriter, to which a reason is told where there is no such graph.
        which: the half to compute, ``first`` or ``second``.
        depth: how many differences are kept; none to measure.
        records: keep differences alone, and add no graph.

    Returns:
        What was added, or ``None``.
    """
    outputs = [n for n in output_args(program.main) if isinstance(n, fx.Node)]
    batch = tensor_of(outputs[0]).shape[0] if tensor_of(outputs[0]).dim() else 1
    if not isinstance(batch, int) or batch % 2:
        kind = f"of {batch}" if isinstance(batch, int) else "whose size is not fixed"
        rw.miss(outputs[0], f"a batch {kind} has no two halves")
        return None
    samples = find_samples(program, batch)
    if not _can_be_halved(program, rw, samples):
        return None
    rw.begin(outputs[0])
    module, returned = copy_graph(program.graphs[MAIN]), program.outputs[MAIN]
    states: list[State] = []
    if depth:
        states = directions(rw, outputs, depth, lambda i: _direction(rw, outputs[i], which))
        return_states(program, MAIN, states)
    else:
        _return(program, MAIN, angle(rw, *_halves(rw, outputs[0])))
    if not records:
        program.graphs[HALF], program.outputs[HALF] = module, returned
        rw.graph_name = HALF
        _halve(program, rw, samples, which, states)
    return LeftOut("" if records else HALF, states=states)


def _can_be_halved(program: Program, rw: Rewriter, samples: Samples) -> bool:
    """Whether every node is known to keep samples apart; tells why not."""
    random = next(filter(is_random, program.main.nodes), None)
    if random is not None:
        rw.miss(random, "it draws random numbers, others for half a batch than for a whole one")
        return False
    if samples.misses:
        _tell(program, rw, next(iter(samples.misses.values())))
        return False
    for output, value in zip(program.outputs[MAIN], output_args(program.main), strict=True):
        whole = output.kind is OutputKind.USER and samples.dims.get(value) == 0
        if not whole or tensor_of(value).shape[0] != samples.batch:
            rw.miss(value, "it is returned and does not hold a value for each sample")
            return False
    return True


def _tell(program: Program, rw: Rewriter, miss: Miss) -> None:
    """Record where samples are mixed, which may be ahead of the steps."""
    at = (name for name, module in program.graphs.items() if module.graph is miss.node.graph)
    rw.graph_name = next(at)
    rw.miss(miss.node, f"samples are not known to stay apart: {miss.reason}")
    rw.graph_name = MAIN


def _halve(
    program: Program, rw: Rewriter, samples: Samples, which: str, states: Sequence[State]
) -> None:
    """Compute one half of the batch in the rewriter's current graph, a copy of the main one."""
    graph = rw.graph
    dims = {node.name: dim for node, dim in samples.dims.items()}
    halved = {node: dims[node.name] for node in graph.nodes if node.name in dims}
    body = next(n for n in graph.nodes if n.op != "placeholder")
    for node, dim in halved.items():
        if node.op != "placeholder":
            _resize(program, node, dim)
        elif node.users:
            users = list(node.users)
            part = _part(rw, node, dim, samples.batch, which, body)
            for user in users:
                user.replace_input_with(node, part)
    end, computed = output_node(graph), output_args(graph)
    left_out = taken_off(program, rw, computed, states) if states else computed
    pairs = zip(computed, left_out, strict=True)
    end.args = (tuple(_both(rw, *pair, which, end) for pair in pairs),)
    if not states:
        _return(program, HALF, _number(rw, 0.0, tensor_of(computed[0]).device, end))
    drop_dead(program, graph)


def _part(
    rw: Rewriter, node: fx.Node, dim: int, batch: int, which: str, before: fx.Node
) -> fx.Node:
    """One half of a value's samples; several places may belong to each sample."""
    half = tensor_of(node).shape[dim] // 2
    start = 0 if which == "first" else half
    return rw.call(
        aten.slice.Tensor, node, dim, start, start + half, before=before, replaces=[node]
    )


def _both(rw: Rewriter, one: fx.Node, other: fx.Node, which: str, before: fx.Node) -> fx.Node:
    halves = [one, other] if which == "first" else [other, one]
    return rw.call(aten.cat.default, halves, 0, before=before, replaces=[one])


def _resize(program: Program, node: fx.Node, dim: int) -> None:
    """Give ``node`` half the samples; its arguments have been given theirs.

    Raises:
        PassError: its result does not have half the size.
    """
    old = shape_of(node)
    for name, sizes, at in _lists_of_sizes(node, dim):
        if isinstance(sizes[at], int) and sizes[at] == old[dim]:
            _set_argument(node, name, [s // 2 if i == at else s for i, s in enumerate(sizes)])
    if node.target is aten.repeat_interleave.self_int:
        node.kwargs = {name: v for name, v in node.kwargs.items() if name != "output_size"}
    node.meta["val"] = evaluate(node, program.fake_mode)
    want = (*old[:dim], old[dim] // 2, *old[dim + 1 :])
    if shape_of(node) != want:
        raise PassError(f"%{node.name} has sizes {shape_of(node)} for half a batch, not {want}")


def _lists_of_sizes(node: fx.Node, dim: int) -> Iterator[tuple[str, list[Any], int]]:
    """The arguments that say how large the result is, and where in them its samples are."""
    given = given_arguments(node)
    for name in ("size", "shape", "sizes", "repeats"):
        sizes: Any = given.get(name)
        if not isinstance(sizes, (list, tuple)):
            continue
        split: Any = given["dim"] if name == "sizes" else 0  # of unflatten
        at = dim - split % (len(shape_of(node)) + 1 - len(sizes)) if split else dim
        if 0 <= at < len(sizes):
            yield name, list(sizes), at


def _set_argument(node: fx.Node, name: str, value: Any) -> None:
    if name in node.kwargs:
        node.update_kwarg(name, value)
    else:
        node.update_arg(argument_names(node).index(name), value)


def _halves(rw: Rewriter, result: fx.Node) -> tuple[fx.Node, fx.Node]:
    """The first and the second half of a result's samples."""
    end, half = output_node(rw.graph), tensor_of(result).shape[0] // 2

    def samples(start: int) -> fx.Node:
        return rw.call(
            aten.slice.Tensor, result, 0, start, start + half, before=end, replaces=[result]
        )

    return samples(0), samples(half)


def _direction(rw: Rewriter, result: fx.Node, which: str) -> fx.Node:
    """The half ``which`` less the other."""
    first, second = _halves(rw, result)
    pair = (first, second) if which == "first" else (second, first)
    return rw.call(aten.sub.Tensor, *pair, before=output_node(rw.graph), replaces=[result])


def _number(rw: Rewriter, value: float, device: torch.device, before: fx.Node) -> fx.Node:
    return rw.call(
        aten.full.default,
        [],
        value,
        dtype=torch.float32,
        device=device,
        before=before,
        replaces=[before.all_input_nodes[0]],
    )


def _return(program: Program, graph: str, measure: fx.Node) -> None:
    """Let ``graph`` return what the schedule decides by."""
    add_outputs(program, graph, [(Output(OutputKind.MEASURE), measure)])
