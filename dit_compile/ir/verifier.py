"""The structural verifier: each pass leaves valid IR, so each pass may expect it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from dit_compile.errors import VerificationError
from dit_compile.ir.fake import describe, evaluate, mismatch
from dit_compile.ir.interface import Compared
from dit_compile.ir.origin import Origin, origin_of
from dit_compile.ir.printer import node_text, print_graph
from dit_compile.ir.program import (
    AHEAD,
    PROLOGUE,
    TABLE,
    WEIGHTS,
    InputKind,
    OutputKind,
    Program,
    output_args,
    placeholders,
)
from dit_compile.ir.purity import mutates

_CONTEXT_LINES = 5

#: What reads nothing of a tensor but its sizes.
_SIZES = {torch.ops.aten.sym_size.int, torch.ops.aten.sym_numel.default}


@dataclass
class Verifier:
    """Checks the invariants of the IR; remembers what it has checked, so a re-check is cheap.

    A node is evaluated again only if its operator, arguments or recorded value have changed since
    it was last found right, so the cost of a check follows the size of the change.
    """

    signature: list[Any] | None = None
    _seen: dict[fx.Node, tuple[Any, ...]] = field(default_factory=dict)

    def check(self, program: Program) -> None:
        """Raise if ``program`` breaks an invariant.

        Raises:
            VerificationError: what is wrong, and ten lines of IR around it.
        """
        for name, module in program.graphs.items():
            self._check_graph(program, name, module)
        self._check_signature(program)

    def _check_graph(self, program: Program, name: str, module: fx.GraphModule) -> None:
        graph = module.graph
        try:
            graph.lint()
        except (RuntimeError, ValueError) as error:
            first = str(error).splitlines()[0]  # what follows is the whole graph
            raise VerificationError(f"graph @{name} does not lint: {first}") from error
        for node in graph.nodes:
            for problem in self._problems(program, module, node):
                raise VerificationError(problem + "\n" + excerpt(program, name, node))
        if len(program.outputs[name]) != len(output_args(graph)):
            raise VerificationError(
                f"graph @{name} returns {len(output_args(graph))} values but declares "
                f"{len(program.outputs[name])}"
            )
        self._check_named_outputs(program, name)
        _check_reads(program, name)

    def _problems(self, program: Program, module: fx.GraphModule, node: fx.Node) -> Iterable[str]:
        """The first problem of one node, as a sentence."""
        if node.op == "placeholder":
            if str(node.target) not in program.inputs:
                yield f"placeholder %{node.name} is no declared input of the program"
            return
        if node.op == "output":
            return
        if node.op == "get_attr":
            yield f"%{node.name} reads an attribute; make it an input of the program"
            return
        if node.op != "call_function":
            yield f"%{node.name} is a {node.op}; only calls of operators are allowed"
            return
        if "val" not in node.meta:
            if not program.training:
                yield f"node %{node.name} has no fake value; make nodes with Rewriter.call"
            return
        key = _signature(node)
        if self._seen.get(node) == key:
            return
        yield from self._first_problem(program, node)
        self._seen[node] = key

    def _first_problem(self, program: Program, node: fx.Node) -> Iterable[str]:
        if mutates(node):
            yield f"%{node.name} = {node.target} writes to its argument; use the functional form"
            return
        if not isinstance(node.meta.get("origin"), Origin):
            yield f"node %{node.name} does not know its origin; make nodes with Rewriter.call"
            return
        try:
            actual = evaluate(node, program.fake_mode)
        except Exception as error:  # an operator may raise anything on bad arguments
            first = str(error).strip().splitlines()
            reason = first[0] if first else repr(error)
            yield f"%{node.name} = {node.target} rejects its arguments: {reason}"
            return
        wrong = mismatch(node.meta["val"], actual)
        if wrong:
            yield (
                f"%{node.name} claims {describe(node.meta['val'])}, but its operator "
                f"{node.target} gives {wrong}"
            )

    def _check_named_outputs(self, program: Program, name: str) -> None:
        values = output_args(program.graphs[name].graph)
        for output, value in zip(program.outputs[name], values, strict=True):
            if output.kind in (OutputKind.USER, OutputKind.MEASURE):
                continue
            if output.name not in program.inputs:
                raise VerificationError(
                    f"graph @{name} returns {output.kind.value} {output.name!r}, which is no "
                    "declared input of the program"
                )
            if output.kind is OutputKind.MUTATION:
                continue
            for reader, module in program.graphs.items():
                for node in module.graph.find_nodes(op="placeholder"):
                    if str(node.target) != output.name:
                        continue
                    wrong = mismatch(node.meta["val"], _value(value))
                    if wrong:
                        raise VerificationError(
                            f"graph @{name} returns {output.name!r} with {wrong} as graph "
                            f"@{reader} reads it" + _around(program, name, value)
                        )

    def _check_signature(self, program: Program) -> None:
        """User and mutation outputs must stay what they were when the verifier first looked."""
        for name, _ in program.step_graphs():
            if name in program.schedule.helpers:
                continue  # the caller gets nothing of these
            values = output_args(program.graphs[name].graph)
            returned = [
                value
                for output, value in zip(program.outputs[name], values, strict=True)
                if output.kind in (OutputKind.USER, OutputKind.MUTATION)
            ]
            if self.signature is None:
                self.signature = [_value(value) for value in returned]
            if len(returned) != len(self.signature):
                raise VerificationError(
                    f"graph @{name} returns {len(returned)} results to the caller, not "
                    f"{len(self.signature)}"
                )
            for position, (want, value) in enumerate(zip(self.signature, returned, strict=True)):
                wrong = mismatch(want, _value(value))
                if wrong:
                    raise VerificationError(
                        f"result {position} of graph @{name} has {wrong}; a pass must not change "
                        "what the caller gets" + _around(program, name, value)
                    )


def _check_reads(program: Program, name: str) -> None:
    """What runs ahead of the steps reads only what a Session compares from call to call.

    Raises:
        VerificationError: naming the input that is not compared.
    """
    if name not in AHEAD:
        return
    compared = Compared.of(program.inputs.values())
    known = {
        WEIGHTS: set[str](),
        PROLOGUE: {*compared.context},
        TABLE: {*compared.context, *compared.timesteps},
    }[name]
    for node in placeholders(program.graphs[name].graph):
        spec = program.inputs[str(node.target)]
        if spec.kind not in (InputKind.USER, InputKind.SIZE) or spec.name in known:
            continue
        sizes_alone = spec.kind is InputKind.USER and all(
            user.target in _SIZES for user in node.users
        )
        if name == WEIGHTS or not sizes_alone:
            raise VerificationError(
                f"graph @{name} reads {spec.path!r}, which no Session compares by then: it would "
                "serve values of an earlier call" + _around(program, name, next(iter(node.users)))
            )


def check_printing(program: Program, name: str) -> None:
    """Raise if a graph does not print the same twice.

    Raises:
        VerificationError: naming the first line that differs.
    """
    first, second = print_graph(program, name), print_graph(program, name)
    for left, right in zip(first.splitlines(), second.splitlines(), strict=False):
        if left != right:
            raise VerificationError(f"graph @{name} prints differently twice: {left!r}, {right!r}")


def excerpt(program: Program, name: str, node: fx.Node) -> str:
    """Ten lines of IR around ``node`` with its module path and the user's source line."""
    nodes = [n for n in program.graphs[name].graph.nodes if n.op != "placeholder"]
    at = nodes.index(node) if node in nodes else 0
    lines = [f"  in graph @{name}:"]
    for other in nodes[max(0, at - _CONTEXT_LINES) : at + _CONTEXT_LINES]:
        marker = ">" if other is node else " "
        text = "return ..." if other.op == "output" else node_text(other, program)
        lines.append(f"  {marker} {text}")
    origin = origin_of(node)
    if origin.path:
        lines.append(f"  module: {origin.path}")
    if origin.source:
        lines.append(f"  source: {origin.source}")
    return "\n".join(lines)


def _around(program: Program, name: str, value: Any) -> str:
    """The excerpt around the node that makes ``value``, on lines of its own."""
    return "\n" + excerpt(program, name, value) if isinstance(value, fx.Node) else ""


def _signature(node: fx.Node) -> tuple[Any, ...]:
    """What must stay the same for an earlier check of ``node`` to hold."""
    values = tuple(id(arg.meta.get("val")) for arg in node.all_input_nodes)
    return node.target, node.args, tuple(node.kwargs.items()), id(node.meta["val"]), values


def _value(arg: Any) -> Any:
    return arg.meta["val"] if isinstance(arg, fx.Node) else arg
