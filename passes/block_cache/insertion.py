"""The one mechanism behind all caching methods: a site's values leave and enter the graph.

In the graph that computes everything, each kept value becomes a state output. In a variant, a site
that is reused is read from state, or forecast from several earlier states, and dead-code
elimination takes away the work.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from dit_compile import ops
from dit_compile.ir.fake import describe, evaluate, tensor_of
from dit_compile.ir.origin import Origin, identifier, origin_of
from dit_compile.ir.printer import target_name
from dit_compile.ir.program import (
    Binding,
    Input,
    InputKind,
    Output,
    OutputKind,
    Program,
    add_outputs,
    copy_graph,
    output_args,
    output_node,
    placeholders,
)
from dit_compile.ir.purity import is_pure
from dit_compile.passes.block_cache.sites import Kept, Site
from dit_compile.pipeline.rewriter import Rewriter

aten = torch.ops.aten


@dataclass(frozen=True)
class State:
    """One kept value, as inputs of the Program.

    Attributes:
        kept: the value in the main graph.
        group: the group of its site.
        names: the input for the latest computed value, then those for earlier ones.
        stored: what is returned as state.
    """

    kept: Kept
    group: str
    names: tuple[str, ...]
    stored: fx.Node


def store(
    rw: Rewriter, sites: Sequence[Site], *, depth: int = 1, dtype: torch.dtype | None = None
) -> list[State]:
    """Compute what the sites' states are, in the rewriter's current graph.

    Args:
        rw: the rewriter; each site is one rewrite.
        sites: the sites, no more than the rewriter has left.
        depth: computed values of a site that are kept.
        dtype: what states are kept in; ``None`` for their own dtype.
    """
    states = []
    for site in sites:
        rw.begin(site.kept[0].value)
        for state in states_of(rw, site, depth=depth, dtype=dtype):
            kind = describe(state.stored.meta["val"])
            rw.show(state.kept.value, *(f"%{name} : {kind} state" for name in state.names))
            states.append(state)
    return states


def states_of(
    rw: Rewriter, site: Site, *, depth: int = 1, dtype: torch.dtype | None = None
) -> list[State]:
    """The states of one site, declared and computed in the rewriter's current graph."""
    states = []
    for number, kept in enumerate(site.kept):
        names = declare_ages(rw.program, numbered(site.path, number), depth)
        states.append(State(kept, site.group, names, _stored(rw, kept, dtype)))
    return states


def return_states(program: Program, graph: str, states: Sequence[State]) -> None:
    """Let ``graph`` return what is kept of each of ``states``."""
    add_outputs(program, graph, [(Output(OutputKind.STATE, s.names[0]), s.stored) for s in states])


def add_variant(
    program: Program,
    name: str,
    source: str,
    states: Sequence[State],
    reused: Collection[str],
    held: Collection[str] = (),
    carried: Mapping[str, str] | None = None,
) -> None:
    """Add the graph ``name``: the graph ``source`` with some groups read from state.

    What it computes it returns as state, unless that is to be ``held``; what it reuses it does not.

    Args:
        program: the Program.
        name: the new graph.
        source: the graph that computes everything.
        states: all states.
        reused: the groups that are read from state.
        held: groups that are computed, but whose state stays what it was.
        carried: nodes of the main graph that ``source`` reads as inputs, by their names there.
    """
    module = copy_graph(program.graphs[source])
    graph = module.graph
    read = [state for state in states if state.group in reused]
    stale = {state.names[0] for state in states if state.group in (*reused, *held)}
    outputs = [
        (output, value)
        for output, value in zip(program.outputs[source], output_args(graph), strict=True)
        if not (output.kind is OutputKind.STATE and output.name in stale)
    ]
    output_node(graph).args = (tuple(value for _, value in outputs),)
    current = {node.name: node for node in graph.nodes}
    current |= {old: current[new] for old, new in (carried or {}).items() if new in current}
    _read_states(program, graph, read, current)
    drop_dead(program, graph)
    program.graphs[name] = module
    program.outputs[name] = tuple(output for output, _ in outputs)


def drop_dead(program: Program, graph: fx.Graph) -> None:
    """Erase operators and values made ahead that nobody reads; the caller's inputs stay."""
    for node in reversed(list(graph.nodes)):
        dead = not node.users and (is_pure(node) or program.is_made_ahead(node))
        if dead and node.op != "output":
            graph.erase_node(node)


def numbered(path: str, number: int) -> str:
    """The path of one of several values: of the first, ``path`` itself."""
    return f"{path}.{number}" if number else path


def declare_ages(program: Program, path: str, depth: int) -> tuple[str, ...]:
    """New state inputs for the last ``depth`` values, the latest first; their names."""
    return tuple(declare(program, path, age=age) for age in range(depth))


def declare(program: Program, path: str, *, age: int = 0, peer: bool = False) -> str:
    """A new state input; its name."""
    name = identifier(("peer." if peer else "state.") + path + (f".{age}" if age else ""))
    while name in program.inputs:
        name += "_"
    program.inputs[name] = Input(
        name, InputKind.STATE, path, Binding.LATENT, settled=True, age=age, peer=peer
    )
    return name


def _stored(rw: Rewriter, kept: Kept, dtype: torch.dtype | None) -> fx.Node:
    """The value as it is kept, made right after it."""
    node, replaces = kept.value, [kept.value]
    if kept.base is not None:
        node = rw.call(aten.sub.Tensor, node, kept.base, before=node.next, replaces=replaces)
    if dtype is not None and tensor_of(node).dtype is not dtype:
        node = rw.call(
            aten._to_copy.default, node, dtype=dtype, before=node.next, replaces=replaces
        )
    return node


def enter_states(program: Program, graph: fx.Graph, states: Sequence[State]) -> dict[str, fx.Node]:
    """Let ``graph`` read states, and the coefficients of those that are forecast; by name."""
    first = next(iter(graph.nodes))
    inputs: dict[str, fx.Node] = {}
    for state in states:
        if len(state.names) > 1:
            name = _coefficients(program, state)
            if name not in inputs:
                value = _row_of(program, state)
                inputs[name] = placeholder(graph, first, name, value, Origin(state.group))
        for name in state.names:
            origin = Origin(program.inputs[name].path, *_provenance(state.kept.value))
            inputs[name] = placeholder(graph, first, name, tensor_of(state.stored), origin)
    return inputs


def forecast_of(
    program: Program, state: State, inputs: Mapping[str, fx.Node]
) -> tuple[fx.Node, list[fx.Node]]:
    """What the operator of a forecast takes: coefficients, and the kept values."""
    return inputs[_coefficients(program, state)], [inputs[name] for name in state.names]


def _read_states(
    program: Program, graph: fx.Graph, states: Sequence[State], current: dict[str, fx.Node]
) -> None:
    """Put state in the place of the kept values, which are found by their names."""
    inputs = enter_states(program, graph, states)
    for state in states:
        old = current[state.kept.value.name]
        made = _Made(program, graph, old)
        new = inputs[state.names[0]]
        if len(state.names) > 1:
            new = made(ops.forecast, *forecast_of(program, state, inputs))
        if tensor_of(new).dtype is not tensor_of(old).dtype:
            new = made(aten._to_copy.default, new, dtype=tensor_of(old).dtype)
        if state.kept.base is not None:
            new = made(aten.add.Tensor, current[state.kept.base.name], new)
        old.replace_all_uses_with(new, propagate_meta=False)
        current[old.name] = new


@dataclass(frozen=True)
class _Made:
    """Makes nodes in the place of ``old``."""

    program: Program
    graph: fx.Graph
    old: fx.Node

    def __call__(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        origin = origin_of(self.old)
        with self.graph.inserting_before(self.old):
            name = target_name(target).rpartition(".")[2]
            node = self.graph.create_node("call_function", target, args, kwargs, name)
        node.meta["origin"] = Origin(origin.path, origin.source, (self.old.name,))
        node.meta["val"] = evaluate(node, self.program.fake_mode)
        return node


def read_sizes(program: Program, graph: fx.Graph) -> None:
    """Let ``graph`` read the caller's sizes, as the graphs do that were copied from the main one.

    A state of ``(h//2)*(w//2)`` tokens tells neither ``h`` nor ``w``, and compilers ask for both.
    """
    start = next(iter(graph.nodes))
    for source in placeholders(program.main):
        if program.kind_of(source) is InputKind.SIZE:
            with graph.inserting_before(start):
                node = graph.placeholder(str(source.target))
            node.meta.update(source.meta)


def placeholder(
    graph: fx.Graph, before: fx.Node, name: str, value: torch.Tensor, origin: Origin
) -> fx.Node:
    """An input of ``graph`` in front of the node ``before``."""
    with graph.inserting_before(before):
        node = graph.placeholder(name)
    node.meta["val"], node.meta["origin"] = value, origin
    return node


def _provenance(node: fx.Node) -> tuple[str, tuple[str, ...]]:
    origin = origin_of(node)
    return origin.source, origin.parents


def _coefficients(program: Program, state: State) -> str:
    """The input that holds the coefficients of a group's forecast, declared if it is missing."""
    name = identifier(f"forecast.{state.group}")
    if name not in program.inputs:
        program.inputs[name] = Input(
            name, InputKind.COEFFICIENTS, state.group, Binding.LATENT, settled=True
        )
    return name


def _row_of(program: Program, state: State) -> torch.Tensor:
    """The fake value of a forecast's coefficients."""
    device = tensor_of(state.stored).device
    with program.fake_mode:
        return torch.empty(len(state.names), dtype=torch.float32, device=device)
