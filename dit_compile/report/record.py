"""Watches a pipeline run and keeps every stage as plain data."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import fx

from dit_compile.analysis.cost import CostValue
from dit_compile.analysis.shared_cost import SharedCosts
from dit_compile.analysis.step_cost import StepCost, average
from dit_compile.ir.fake import describe
from dit_compile.ir.origin import origin_of
from dit_compile.ir.printer import is_unpacked, literal, results_text, target_name, unpacked
from dit_compile.ir.program import AHEAD, Input, InputKind, Program, output_args
from dit_compile.pipeline.pipeline import PassRecord
from dit_compile.report.identity import Identities
from dit_compile.report.model import (
    Argument,
    Cost,
    Graph,
    GraphCost,
    Move,
    Node,
    Result,
    Returned,
    Stage,
)
from dit_compile.report.moves import find_moves


class _Reading(NamedTuple):
    """All of a node that a pass can change; as cheap to take as it is to compare."""

    name: str
    args: Any
    kwargs: Any
    value: Any
    picked: list[fx.Node | None] | None
    spec: Input | None

    def same(self, other: _Reading) -> bool:
        """Whether the node reads as it did: values are replaced, never written to."""
        return (
            self.value is other.value
            and self.name == other.name
            and self.args == other.args
            and self.kwargs == other.kwargs
            and self.picked == other.picked
            and self.spec == other.spec
        )


@dataclass
class Recorder:
    """An instrument that keeps each stage: its nodes with their identities, its cost, its mapping.

    Attributes:
        nodes: all forms of all nodes.
        stages: the stages, the captured one first.
        moves: for each pass, how values map to those of the stage before.
        stage_of: for each pass, the index of the stage that it left.
        seconds: time spent here.
    """

    nodes: list[Node] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)
    moves: list[list[Move]] = field(default_factory=list)
    stage_of: list[int] = field(default_factory=list)
    seconds: float = 0.0
    _known: Identities = field(default_factory=Identities)
    _last: dict[fx.Node, tuple[_Reading, int]] = field(default_factory=dict)
    _costs: dict[int, CostValue] = field(default_factory=dict)
    _shared: SharedCosts = field(default_factory=SharedCosts)
    _values: set[int] = field(default_factory=set)

    def start(self, program: Program) -> None:
        """Keep the captured Program, and forget any run before."""
        self.__dict__.update(vars(Recorder()))
        started = time.perf_counter()
        self._keep(program, "")
        self.seconds = time.perf_counter() - started

    def after(self, record: PassRecord, program: Program) -> None:
        """Keep what a pass left."""
        started = time.perf_counter()
        moves: list[Move] = []
        if record.changed:
            before = self._values
            self._keep(program, str(record.details["fingerprint"]))
            moves = find_moves(record.rewrites, self._known, before, self._values)
        self.moves.append(moves)
        self.stage_of.append(len(self.stages) - 1)
        self.seconds += time.perf_counter() - started

    def _keep(self, program: Program, mark: str) -> None:
        self._known.enter(program)
        self._values = set()
        graphs = [self._graph(program, name) for name in program.graphs]
        self.stages.append(Stage(mark, graphs, self._cost(program, graphs)))

    def _graph(self, program: Program, name: str) -> Graph:
        module = program.graphs[name]
        weights = frozenset(program.weight_nodes(module.graph))
        indices = []
        for node in module.graph.nodes:
            if node.op == "output" or is_unpacked(node):
                continue
            index = self._index(node, program, weights)
            indices.append(index)
            self._values.update(self.nodes[index].values())
        returns = [
            Returned(output.kind.value, self._argument(value), output.name)
            for output, value in zip(program.outputs[name], output_args(module.graph), strict=True)
        ]
        return Graph(name, name in AHEAD, indices, returns)

    def _index(self, node: fx.Node, program: Program, weights: frozenset[fx.Node]) -> int:
        """Where the form that ``node`` has now is kept; most nodes keep the one they had."""
        spec = program.inputs.get(str(node.target)) if node.op == "placeholder" else None
        value, picked = node.meta.get("val"), unpacked(node)
        reading = _Reading(node.name, node.args, node.kwargs, value, picked, spec)
        known, index = self._last.get(node, (None, -1))
        if known is not None and known.same(reading):
            return index
        cost = self._shared.of(node, weights)
        form = self._form(node, reading, cost)
        if index < 0 or form != self.nodes[index]:
            index = len(self.nodes)
            self.nodes.append(form)
            self._costs[index] = cost
        self._last[node] = reading, index
        return index

    def _form(self, node: fx.Node, reading: _Reading, cost: CostValue) -> Node:
        origin, spec, picked = origin_of(node), reading.spec, reading.picked
        number, copy_of = self._known[node], self._known.copy_of(node)
        value: Any = reading.value
        if node.op == "placeholder":
            path = spec.path if spec else origin.path
            return Node(number, node.name, "input", describe(value), role=_role(spec), path=path)
        one = picked is None
        return Node(
            number,
            node.name,
            target_name(node.target),
            describe(value) if one else results_text([describe(item) for item in value]),
            overload=_overload(node.target),
            args=[self._argument(arg) for arg in node.args],
            kwargs={key: self._argument(arg) for key, arg in node.kwargs.items()},
            results=None if picked is None else [self._result(user) for user in picked],
            path=origin.path,
            source=origin.source,
            copy_of=copy_of,
            flops=cost.flops,
            bytes=cost.bytes_moved,
        )

    def _result(self, user: fx.Node | None) -> Result | None:
        if user is None:
            return None
        return Result(self._known[user], user.name, describe(user.meta.get("val")))

    def _argument(self, arg: Any) -> Argument:
        if isinstance(arg, fx.Node):
            return f"%{self._known[arg]}"
        if isinstance(arg, (list, tuple)):
            return [self._argument(item) for item in arg]
        return literal(arg)

    def _cost(self, program: Program, graphs: list[Graph]) -> Cost:
        nodes = {graph.name: graph.nodes for graph in graphs}
        totals = {
            name: _total([self._costs[index] for index in nodes[name]])
            for name in program.schedule.graphs()
        }
        return cost_entry(average(program.schedule, totals))


def cost_entry(cost: StepCost) -> Cost:
    """The cost of a step as it is written down."""
    return Cost(
        cost.flops,
        cost.bytes_moved,
        cost.computed,
        cost.steps,
        {
            name: GraphCost(value.flops, value.bytes_moved, value.parameter_bytes)
            for name, value in cost.graphs.items()
        },
    )


def _total(costs: list[CostValue]) -> CostValue:
    add: Callable[[str], int] = lambda name: sum(getattr(cost, name) for cost in costs)  # noqa: E731
    return CostValue(*(add(each.name) for each in dataclasses.fields(CostValue)))


def _role(spec: Input | None) -> str:
    if spec is None:
        return "latent"
    return str(spec.binding) if spec.kind is InputKind.USER else spec.kind.value


def _overload(target: Any) -> str:
    if not isinstance(target, torch._ops.OpOverload):
        return ""
    name = target._overloadname
    return "" if name == "default" else name
