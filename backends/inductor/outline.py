"""Repeated blocks compiled once: each becomes a call of one subgraph, weights as operands.

Compile time then grows with the variety of a model, not with its depth.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import free_symbols

from dit_compile.analysis.repeats import Repeat, arguments, find_repeats
from dit_compile.ir.fake import leaves

_invoke = torch.ops.higher_order.invoke_subgraph


def outline(module: fx.GraphModule, heavy: Collection[Any], name: str) -> int:
    """Replace the regions that repeat in ``module`` by calls of one subgraph for each repeat.

    Regions with symbolic sizes stay as they are: Inductor 2.13 compiles called regions of some
    video models wrongly then (they read what was never written).

    Args:
        module: the graph, changed in place; nodes carry fake values.
        heavy: operators that are never fused with what surrounds them.
        name: tells subgraphs of several graphs that are compiled together apart.

    Returns:
        How many regions were replaced.
    """
    repeats = [r for r in find_repeats(module.graph, heavy) if not _has_symbols(r)]
    for number, repeat in enumerate(repeats):
        target = f"{name}_{number}"
        setattr(module, target, _region(repeat))
        for turn in range(len(repeat.regions)):
            _call(module.graph, repeat, turn, target)
    module.recompile()
    return sum(len(repeat.regions) for repeat in repeats)


def _has_symbols(repeat: Repeat) -> bool:
    read = [operand[0] for operand in repeat.operands]
    values = [leaves(node.meta["val"]) for node in (*repeat.regions[0], *read)]
    return any(free_symbols(list(value)) for value in values)


def _region(repeat: Repeat) -> fx.GraphModule:
    """The first region as a graph of its own: operands in, results out."""
    graph = fx.Graph()
    slots: dict[tuple[int, int], fx.Node] = {}
    for number, (reads, places) in enumerate(repeat.operands.items()):
        operand = graph.placeholder(f"operand_{number}")
        operand.meta["val"] = reads[0].meta["val"]
        slots |= dict.fromkeys(places, operand)
    copies: dict[fx.Node, fx.Node] = {}
    for position, node in enumerate(repeat.regions[0]):
        inner = [
            slots[position, index] if (position, index) in slots else copies[arg]
            for index, arg in enumerate(arguments(node))
        ]
        args, kwargs = _with_arguments(node, inner)
        copies[node] = graph.create_node("call_function", node.target, args, kwargs, node.name)
        copies[node].meta = dict(node.meta)
    graph.output(tuple(copies[repeat.regions[0][position]] for position in repeat.results))
    return fx.GraphModule({}, graph)


def _with_arguments(node: fx.Node, reads: Sequence[fx.Node]) -> Any:
    """``node``'s arguments with ``reads`` in the places of nodes, in order."""
    given = iter(reads)
    return fx.map_arg((node.args, node.kwargs), lambda _: next(given))


def _call(graph: fx.Graph, repeat: Repeat, turn: int, target: str) -> None:
    """Let one region's results come from a call, and erase its nodes."""
    region = repeat.regions[turn]
    results = [region[position] for position in repeat.results]
    with graph.inserting_after(region[-1]):
        subgraph = graph.get_attr(target)
    with graph.inserting_after(subgraph):
        # looked up anew: the region before this one has been replaced already
        firsts = [places[0] for places in repeat.operands.values()]
        operands = [arguments(region[position])[index] for position, index in firsts]
        call = graph.call_function(_invoke, (subgraph, target, *operands))
    call.meta["val"] = tuple(node.meta["val"] for node in results)
    place = call
    for index, old in enumerate(results):
        with graph.inserting_after(place):
            place = graph.call_function(operator.getitem, (call, index))
        place.meta = dict(old.meta)
        old.replace_all_uses_with(place, propagate_meta=False)
    for node in reversed(region):
        graph.erase_node(node)
