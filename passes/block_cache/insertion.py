"""The one mechanism behind all caching methods: a site's value leaves and enters the graph.

In the graph that computes everything, each site's value becomes a state output. In a variant, a
site that is reused becomes a state input, and dead-code elimination takes away the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

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
    output_args,
    output_node,
)
from dit_compile.ir.purity import is_pure


@dataclass(frozen=True)
class Site:
    """A value worth reusing across steps.

    Attributes:
        path: readable and unique in the model, such as ``transformer_blocks.7.attn1``.
        node: the value, in the main graph.
    """

    path: str
    node: fx.Node


def add_state_outputs(program: Program, sites: Sequence[Site]) -> dict[str, str]:
    """Let the main graph return each site's value as state.

    Returns:
        The state's name for each site's path.
    """
    graph = program.main
    names: dict[str, str] = {}
    for site in sites:
        name = identifier(f"state.{site.path}")
        while name in program.inputs:
            name += "_"
        program.inputs[name] = Input(name, InputKind.STATE, site.path, Binding.LATENT, settled=True)
        names[site.path] = name
    end = output_node(graph)
    end.args = ((*output_args(graph), *(site.node for site in sites)),)
    program.outputs[MAIN] += tuple(Output(OutputKind.STATE, names[site.path]) for site in sites)
    return names


def make_variant(
    program: Program, name: str, reused: Sequence[Site], names: dict[str, str]
) -> None:
    """Add the graph ``name``: the main graph with ``reused`` sites read from state.

    State outputs of the main graph are left out: a variant reuses, it does not refresh what it
    does not compute.
    """
    module = copy_graph(program.graphs[MAIN])
    graph = module.graph
    by_name = {node.name: node for node in graph.nodes}
    outputs = [
        (output, value)
        for output, value in zip(program.outputs[MAIN], output_args(graph), strict=True)
        if output.kind is not OutputKind.STATE
    ]
    output_node(graph).args = (tuple(value for _, value in outputs),)
    for site in reversed(reused):  # each goes first, so that they stand in order
        old = by_name[site.node.name]
        with graph.inserting_before(next(iter(graph.nodes))):
            new = graph.placeholder(names[site.path])
        new.meta["val"] = old.meta["val"]
        new.meta["origin"] = Origin(site.path, origin_of(old).source, origin_of(old).parents)
        old.replace_all_uses_with(new, propagate_meta=False)
    _drop_dead(program, graph)
    module.recompile()
    program.graphs[name] = module
    program.outputs[name] = tuple(output for output, _ in outputs)


def _drop_dead(program: Program, graph: fx.Graph) -> None:
    """Erase operators and values made ahead that nobody reads; the caller's inputs stay."""
    for node in reversed(list(graph.nodes)):
        dead = not node.users and (is_pure(node) or program.is_made_ahead(node))
        if dead and node.op != "output":
            graph.erase_node(node)
