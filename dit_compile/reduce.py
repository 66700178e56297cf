"""Shrinks a Program on which a pass fails to the few nodes that make it fail."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import fx

from dit_compile.analysis.binding import node_bindings
from dit_compile.errors import DitcError, OptionError
from dit_compile.ir.fake import is_getitem, is_operator
from dit_compile.ir.origin import identifier, origin_of
from dit_compile.ir.program import (
    MAIN,
    Binding,
    Input,
    InputKind,
    Output,
    OutputKind,
    Program,
    placeholders,
)
from dit_compile.pipeline.instruments import StructuralCheck
from dit_compile.pipeline.pipeline import Pipeline, count_nodes

T = TypeVar("T")
#: A node with the nodes that pick its results: they stay together.
Unit = tuple[fx.Node, ...]


@dataclass(frozen=True)
class Reduced:
    """A small Program on which a pass fails as it did on a large one.

    Attributes:
        program: the small one.
        pipeline: the pass alone.
        position: where the pass stood.
        nodes: operators of the small Program.
        before: operators of the large one.
        tests: how many Programs were tried.
        error: what the pass raises.
    """

    program: Program
    pipeline: Pipeline
    position: int
    nodes: int
    before: int
    tests: int
    error: DitcError


def reduce(program: Program, pipeline: Pipeline) -> Reduced:
    """Find the first pass that fails on ``program``, and the least of it on which it still does.

    Values that are cut off become inputs. The result is minimal in that no single operator can go.

    Args:
        program: the captured Program; it stays as it is.
        pipeline: the passes.

    Raises:
        OptionError: no pass fails, or it fails on no graph alone.
    """
    position, found = _first_failure(program, pipeline)
    alone = Pipeline((pipeline.passes[position],))
    wanted = _signature(_failure(found, alone))
    tests = 0

    def fails(candidate: Program) -> bool:
        nonlocal tests
        tests += 1
        return _signature(_failure(candidate, alone)) == wanted

    for name, _ in found.step_graphs():
        units = list(_units(found.graphs[name].graph))
        if fails(_cut(found, name, units)):
            break
    else:
        raise OptionError(f"{alone} fails on the graphs together, but on none alone")
    least = minimal(units, lambda kept: fails(_cut(found, name, kept)))
    small = _cut(found, name, least)
    error = _failure(small, alone)
    assert error is not None
    return Reduced(small, alone, position, count_nodes(small), count_nodes(program), tests, error)


def minimal(items: Sequence[T], fails: Callable[[Sequence[T]], bool]) -> list[T]:
    """The items that are left when no one of them can go and ``fails`` still hold.

    Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", 2002: leave out
    halves, then quarters, and so on; each half that is not needed is gone for good.
    """
    kept, chunk = list(items), max(1, len(items) // 2)
    while True:
        at, shrunk = 0, False
        while at < len(kept):
            rest = kept[:at] + kept[at + chunk :]
            if rest and fails(rest):
                kept, shrunk = rest, True
            else:
                at += chunk
        if chunk == 1 and not shrunk:
            return kept
        chunk = max(1, min(chunk, len(kept)) // 2)


def _first_failure(program: Program, pipeline: Pipeline) -> tuple[int, Program]:
    """The position of the first pass that raises, and the Program that it raises on."""
    current = program.copy()
    for position, item in enumerate(pipeline):
        before = current.copy()
        if _failure(current, Pipeline((item,)), in_place=True) is not None:
            return position, before
    raise OptionError("no pass fails on this model; there is nothing to reduce")


def _failure(program: Program, pipeline: Pipeline, *, in_place: bool = False) -> DitcError | None:
    try:
        pipeline.run(program if in_place else program.copy(), instruments=[StructuralCheck()])
    except DitcError as error:
        return error
    return None


def _signature(error: DitcError | None) -> object:
    """What makes two failures the same: the kind of error, and the line of code that raised it."""
    if error is None:
        return None
    cause = error.__cause__ or error
    frames = traceback.extract_tb(cause.__traceback__)
    return type(cause), (frames[-1].filename, frames[-1].lineno) if frames else None


# --- cutting a part out of a graph -----------------------------------------------------------


def _units(graph: fx.Graph) -> Iterator[Unit]:
    for node in graph.nodes:
        if is_operator(node):
            yield (node, *(user for user in node.users if is_getitem(user)))


def _cut(program: Program, name: str, units: Sequence[Unit]) -> Program:
    """A Program of the given operators of one graph alone.

    What they read of others becomes an input, with the binding that it had. What nobody of them
    reads is returned.
    """
    source = program.graphs[name].graph
    kept = _closed(source, {node for unit in units for node in unit})
    bindings = node_bindings(program) if name == MAIN else {}
    graph, inputs = fx.Graph(), dict[str, Input]()
    became: dict[fx.Node, fx.Node] = {}
    for node in _entering(source, kept):
        made = graph.placeholder(node.name)
        made.meta.update(node.meta)
        became[node] = made
        spec = _spec(program, node, bindings.get(node, Binding.LATENT))
        made.target = spec.name
        inputs[spec.name] = spec
    for node in source.nodes:
        if node in kept:
            became[node] = graph.node_copy(node, became.__getitem__)
    results = tuple(became[node] for node in source.nodes if node in kept and _ends(node, kept))
    graph.output(results)
    constants = {key: value for key, value in program.constants.items() if key in inputs}
    return Program(
        {MAIN: fx.GraphModule({}, graph)},
        {MAIN: tuple(Output(OutputKind.USER) for _ in results)},
        inputs,
        program.fake_mode,
        constants,
        training=program.training,
    )


def _ends(node: fx.Node, kept: set[fx.Node]) -> bool:
    """Whether ``node`` is a tensor that none of ``kept`` reads."""
    return isinstance(node.meta.get("val"), torch.Tensor) and not kept & set(node.users)


def _closed(graph: fx.Graph, kept: set[fx.Node]) -> set[fx.Node]:
    """``kept`` with the producers of what it reads that is no tensor and so cannot be an input."""
    pending = list(kept)
    while pending:
        for arg in pending.pop().all_input_nodes:
            tensor = isinstance(arg.meta.get("val"), torch.Tensor)
            if arg not in kept and arg.op == "call_function" and not tensor:
                kept.add(arg)
                pending.append(arg)
    return kept


def _entering(graph: fx.Graph, kept: set[fx.Node]) -> Iterator[fx.Node]:
    """What ``kept`` reads and does not make, weights first."""
    read = dict.fromkeys(arg for node in kept for arg in node.all_input_nodes if arg not in kept)
    known = [node for node in placeholders(graph) if node in read]
    yield from known
    yield from (node for node in graph.nodes if node in read and node.op != "placeholder")


def _spec(program: Program, node: fx.Node, binding: Binding) -> Input:
    """The input that stands for a value: itself if it is one of the caller's, else a new one."""
    spec = program.inputs.get(str(node.target)) if node.op == "placeholder" else None
    if spec is not None and spec.kind in (InputKind.WEIGHT, InputKind.USER, InputKind.SIZE):
        return spec
    if spec is not None and spec.binding is Binding.WEIGHT:
        return Input(spec.name, InputKind.WEIGHT, spec.path, Binding.WEIGHT, settled=True)
    path = spec.path if spec else (origin_of(node).path and node.name) or node.name
    binding = spec.binding if spec else binding
    name = spec.name if spec else identifier(f"cut.{node.name}")
    return Input(name, InputKind.USER, path, binding, settled=True)
