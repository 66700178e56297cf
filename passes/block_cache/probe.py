"""Splitting a step at a probe: its first part tells whether the rest may be reused.

``full`` stays what it is; ``probe`` computes what is measured and what the rest needs of it;
``judge`` compares the measurement with the one in state; ``rest`` goes on where the probe stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from dit_compile.analysis.cost_rules import is_view
from dit_compile.errors import PassError
from dit_compile.ir.fake import evaluate, is_getitem
from dit_compile.ir.origin import Origin, identifier, origin_of
from dit_compile.ir.program import (
    MAIN,
    Binding,
    Input,
    InputKind,
    Output,
    OutputKind,
    Program,
    copy_graph,
    output_node,
)
from dit_compile.ir.purity import is_random
from dit_compile.passes.block_cache.insertion import State, drop_dead, read_sizes
from dit_compile.passes.block_cache.places import Make, Places, places_of_samples
from dit_compile.passes.block_cache.sites import Kept

PROBE, JUDGE, REST = "probe", "judge", "rest"

aten = torch.ops.aten


@dataclass(frozen=True)
class Probe:
    """What is measured at each step before the decision.

    Attributes:
        measured: the value whose change is measured.
        streams: what the rest of the step starts from.
        always: compare with the previous step, not with the last one that computed.
        apart: measure each sample of the batch by itself, and return the largest change.
        rescale: the polynomial that each sample's change goes through, the highest power first.
    """

    measured: Kept
    streams: tuple[fx.Node, ...]
    always: bool = False
    apart: bool = False
    rescale: tuple[float, ...] = (1.0, 0.0)


def split(program: Program, probe: Probe, measured: State) -> dict[str, str]:
    """Add the graphs ``probe``, ``judge`` and ``rest``.

    Args:
        program: the Program, whose main graph returns ``measured`` as state already.
        probe: where to split.
        measured: the state of what is measured.

    Returns:
        For each node of the main graph that the rest reads from the probe, its input there.

    Raises:
        PassError: the model draws random numbers, which the two parts would draw twice; or samples
            are to be measured apart and are not known to stay so.
    """
    random = next(filter(is_random, program.main.nodes), None)
    if random is not None:
        raise PassError(
            f"%{random.name} draws random numbers, so a step cannot be split; use a static method"
        )
    places = places_of_samples(program, measured.stored) if probe.apart else None
    first = _ancestors((measured.stored, *probe.streams))
    carried = {node.name: _carry(program, node) for node in _crossing(program.main, first)}
    shown = _carry(program, measured.stored)
    carried[measured.stored.name] = shown
    _add_probe(program, carried)
    _add_rest(program, carried)
    _add_judge(program, measured, shown, places, probe.rescale)
    return carried


def _ancestors(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    found, pending = set(nodes), list(nodes)
    while pending:
        fresh = [arg for arg in pending.pop().all_input_nodes if arg not in found]
        found.update(fresh)
        pending += fresh
    return found


def _crossing(graph: fx.Graph, first: set[fx.Node]) -> list[fx.Node]:
    """The tensors of the first part that the rest reads, unless it can view them itself."""
    free: set[fx.Node] = set()
    crossing = []
    for node in graph.nodes:
        if node not in first:
            continue
        sized = not isinstance(node.meta.get("val"), (torch.Tensor, list, tuple))
        if node.op == "placeholder" or (
            (sized or is_view(node) or is_getitem(node)) and free.issuperset(node.all_input_nodes)
        ):
            free.add(node)
        elif isinstance(node.meta.get("val"), torch.Tensor) and not first.issuperset(node.users):
            crossing.append(node)
    return crossing


def _carry(program: Program, node: fx.Node) -> str:
    """Declare the input by which the rest of the step reads ``node``."""
    name = identifier(f"carried.{node.name}")
    while name in program.inputs:
        name += "_"
    program.inputs[name] = Input(
        name, InputKind.DERIVED, name.replace("_", ".", 1), Binding.LATENT, settled=True
    )
    return name


def _add_probe(program: Program, carried: dict[str, str]) -> None:
    module = copy_graph(program.graphs[MAIN])
    named = {node.name: node for node in module.graph.nodes}
    output_node(module.graph).args = (tuple(named[name] for name in carried),)
    drop_dead(program, module.graph)
    program.graphs[PROBE] = module
    program.outputs[PROBE] = tuple(Output(OutputKind.DERIVED, name) for name in carried.values())


def _add_rest(program: Program, carried: dict[str, str]) -> None:
    module = copy_graph(program.graphs[MAIN])
    graph = module.graph
    named = {node.name: node for node in graph.nodes}
    start = next(iter(graph.nodes))
    for old, name in carried.items():
        with graph.inserting_before(start):
            new = graph.placeholder(name)
        new.meta["val"] = named[old].meta["val"]
        new.meta["origin"] = origin_of(named[old])
        named[old].replace_all_uses_with(new, propagate_meta=False)
    drop_dead(program, graph)
    program.graphs[REST] = module
    program.outputs[REST] = program.outputs[MAIN]


def _add_judge(
    program: Program,
    measured: State,
    shown: str,
    places: Places | None,
    rescale: Sequence[float],
) -> None:
    """The mean absolute change of a value, relative to the mean absolute value before it, rescaled.

    With ``places`` that of each sample by itself, and the largest of them.
    """
    graph = fx.Graph()

    def call(target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        node = graph.create_node("call_function", target, args, kwargs)
        node.meta["origin"] = origin_of(measured.stored)
        node.meta["val"] = evaluate(node, program.fake_mode)
        return node

    def mean(value: fx.Node) -> fx.Node:
        size = call(aten.abs.default, value)
        return call(aten.mean.default, size) if places is None else places.mean(size, call)

    wide = []
    for name in (shown, measured.names[0]):
        node = graph.placeholder(name)
        node.meta["val"] = measured.stored.meta["val"]
        node.meta["origin"] = Origin(program.inputs[name].path, origin_of(measured.stored).source)
        wide.append(node)
    now, before = (call(aten._to_copy.default, node, dtype=torch.float32) for node in wide)
    change = call(aten.div.Tensor, mean(call(aten.sub.Tensor, now, before)), mean(before))
    change = _rescaled(change, rescale, call)
    if places is not None:
        change = call(aten.amax.default, change, [0])
    graph.output((change,))
    read_sizes(program, graph)
    program.graphs[JUDGE] = fx.GraphModule({}, graph)
    program.outputs[JUDGE] = (Output(OutputKind.MEASURE),)


def _rescaled(change: fx.Node, rescale: Sequence[float], call: Make) -> fx.Node:
    """The absolute value of a polynomial, by Horner's rule."""
    if tuple(rescale) == (1.0, 0.0):
        return change
    value = call(aten.mul.Tensor, change, 0.0)  # keeps what is no number
    for factor in rescale:
        value = call(aten.add.Tensor, call(aten.mul.Tensor, value, change), factor)
    return call(aten.abs.default, value)
