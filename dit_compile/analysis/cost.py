"""What a graph costs: operations and bytes of each node, and a lower bound on the graph's time.

Costs are sympy expressions in the graph's symbolic sizes; how each operator is counted is said in
:mod:`dit_compile.analysis.cost_rules`. Bytes are those that cross an operator's boundary if each
operator runs on its own. A view moves none, an expanded tensor is as large as what it stores, and
a tensor that one operator takes twice is read once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

import sympy
from torch import fx

from dit_compile.analysis.cost_rules import (
    cost_of,
    is_view,
    rule_of,
    stored_bytes,
    tensors_of,
)
from dit_compile.errors import AnalysisError
from dit_compile.ir.hints import Hints

if TYPE_CHECKING:
    from dit_compile.analysis.roofline import Roofline

__all__ = [
    "Bound",
    "Cost",
    "CostValue",
    "GraphCost",
    "bound_parts",
    "cost_of",
    "graph_bound",
    "graph_cost",
    "node_cost",
]


@dataclass(frozen=True)
class CostValue:
    """A :class:`Cost` with numbers for the symbolic sizes.

    Attributes:
        flops: floating-point operations.
        bytes_read: bytes of the operators' inputs, parameters included.
        bytes_written: bytes of the operators' results.
        parameter_bytes: the part of ``bytes_read`` that comes from weights.
    """

    flops: int
    bytes_read: int
    bytes_written: int
    parameter_bytes: int

    @property
    def bytes_moved(self) -> int:
        """Bytes read and written."""
        return self.bytes_read + self.bytes_written

    @staticmethod
    def sum(costs: Iterable[CostValue]) -> CostValue:
        """The sum of many costs."""
        costs = list(costs)
        return CostValue(
            *(sum(getattr(cost, each.name) for cost in costs) for each in fields(CostValue))
        )


@dataclass(frozen=True)
class Cost:
    """Work of one node, or of several that each run on their own.

    Attributes:
        flops: floating-point operations.
        bytes_read: bytes of the operators' inputs, parameters included.
        bytes_written: bytes of the operators' results.
        parameter_bytes: the part of ``bytes_read`` that comes from weights, or from views of them.
    """

    flops: sympy.Expr = sympy.S.Zero
    bytes_read: sympy.Expr = sympy.S.Zero
    bytes_written: sympy.Expr = sympy.S.Zero
    parameter_bytes: sympy.Expr = sympy.S.Zero

    def __post_init__(self) -> None:
        for each in fields(self):
            object.__setattr__(self, each.name, sympy.sympify(getattr(self, each.name)))

    def __add__(self, other: Cost) -> Cost:
        return Cost.sum((self, other))

    @staticmethod
    def sum(costs: Iterable[Cost]) -> Cost:
        """The sum of many costs, in time linear in their number."""
        costs = list(costs)
        return Cost(*(sympy.Add(*(getattr(c, each.name) for c in costs)) for each in fields(Cost)))

    def evaluate(self, hints: Hints | None = None) -> CostValue:
        """The numbers for the sizes in ``hints``.

        Raises:
            AnalysisError: a symbol has no hint.
        """
        return CostValue(*(_number(getattr(self, each.name), hints) for each in fields(self)))


@dataclass(frozen=True)
class GraphCost:
    """Costs of a graph's nodes.

    Attributes:
        total: the sum over all nodes; a tensor that several nodes read counts for each of them.
        per_node: the cost of each node of the graph.
        unknown: operators that have no formula and are not known to be pointwise, and how often
            each occurs; what these add to ``total`` is a guess.
    """

    total: Cost
    per_node: Mapping[fx.Node, Cost]
    unknown: Mapping[str, int]

    def by(self, key: Callable[[fx.Node], Hashable]) -> dict[Hashable, Cost]:
        """Costs grouped by a property of the node, such as its module path, in graph order."""
        groups: dict[Hashable, list[Cost]] = {}
        for node, cost in self.per_node.items():
            groups.setdefault(key(node), []).append(cost)
        return {name: Cost.sum(costs) for name, costs in groups.items()}


def node_cost(node: fx.Node, weights: Collection[fx.Node]) -> Cost:
    """The cost of one node if it runs on its own.

    Inputs and outputs of the graph, views, and nodes that yield no tensor (sizes, assertions) cost
    nothing.

    Args:
        node: a node of a functional ATen graph whose nodes carry fake values.
        weights: the nodes of its graph that are weights.

    Raises:
        AnalysisError: ``node`` calls a module or a method.
    """
    if node.op in ("placeholder", "get_attr", "output"):
        return Cost()
    rule = rule_of(node)
    if not tensors_of(node) or is_view(node):
        return Cost()
    reads = rule.reads(node)
    return Cost(
        rule.flops(node),
        sympy.Add(*reads.values()),
        stored_bytes(node),
        sympy.Add(*(size for source, size in reads.items() if root_of(source) in weights)),
    )


def graph_cost(graph: fx.Graph, weights: Collection[fx.Node]) -> GraphCost:
    """The costs of all nodes of ``graph``, each run on its own.

    Raises:
        AnalysisError: the graph calls modules or methods, or ``weights`` holds nodes of another.
    """
    weights = _checked(graph, weights)
    per_node = {node: node_cost(node, weights) for node in graph.nodes}
    guessed = Counter(str(node.target) for node in graph.nodes if _guessed(node))
    return GraphCost(Cost.sum(per_node.values()), per_node, dict(guessed))


def _guessed(node: fx.Node) -> bool:
    return (
        node.op == "call_function"
        and bool(tensors_of(node))
        and not is_view(node)
        and not rule_of(node).known
    )


def _checked(graph: fx.Graph, weights: Collection[fx.Node]) -> frozenset[fx.Node]:
    """``weights`` as a set; nodes of a copy of the graph would silently match nothing."""
    for node in weights:
        if node.graph is not graph:
            raise AnalysisError(f"weight %{node.name} is not a node of this graph")
    return frozenset(weights)


def root_of(node: fx.Node) -> fx.Node:
    """The node whose data ``node`` is, or is a view of."""
    while node.op == "call_function" and is_view(node):
        node = node.all_input_nodes[0]
    return node


# --- numbers for symbolic sizes --------------------------------------------------------------


def _number(expression: sympy.Expr, hints: Hints | None) -> int:
    expression = sympy.sympify(expression)
    if not expression.is_Integer:
        expression = expression.xreplace({k: sympy.Integer(v) for k, v in (hints or {}).items()})
    if expression.free_symbols:
        names = ", ".join(sorted(map(str, expression.free_symbols)))
        raise AnalysisError(f"no size is given for {names}; pass hints (see dit_compile.ir.hints)")
    return int(expression)


# --- lower bound on time ---------------------------------------------------------------------


@dataclass(frozen=True)
class Bound:
    """A lower bound on a graph's time and what it is made of.

    Attributes:
        seconds: the bound.
        arithmetic_seconds: the part of ``seconds`` in which arithmetic is the limit.
        flops: operations of the heavy operators.
        weight_bytes: bytes of weights that must be read.
        other_bytes: all other bytes that must move.
    """

    seconds: float
    arithmetic_seconds: float
    flops: int
    weight_bytes: int
    other_bytes: int


def graph_bound(
    graph: fx.Graph, weights: Collection[fx.Node], roofline: Roofline, hints: Hints | None = None
) -> float:
    """The least seconds that one call of ``graph`` can take; see :func:`bound_parts`."""
    return bound_parts(graph, weights, roofline, hints).seconds


def bound_parts(
    graph: fx.Graph, weights: Collection[fx.Node], roofline: Roofline, hints: Hints | None = None
) -> Bound:
    """A lower bound on the time of ``graph``, from its own operations and bytes.

    The model is a compiler that fuses everything but the heavy operators (products, convolutions,
    attention), and a device that runs these one after another, each limited by arithmetic or by
    bandwidth:

    - A heavy operator takes ``max(flops / peak, bytes / bandwidth)``. The peak is that of the dtype
      of its first input. The bytes are those of its inputs and its result.
    - Other operators take no time. What they compute from the graph's inputs alone (a mask, a cast
      of a weight) is made where a heavy operator needs it: only those inputs count as read.
    - Each byte is read from memory once in a call, however many operators read it: weights, inputs
      and heavy operators' results. A heavy operator pays for what none before it has read.
    - What other operators read of the graph's inputs and weights is read by the first heavy one
      that uses what they compute, so it may hide behind arithmetic. What none uses, and results of
      the graph that are not a heavy operator's, are moved at the end. A result that was made from
      a heavy operator's by fused operators costs only what it is larger than that.

    The bound holds as far as weights and activations come from memory: where all of them fit in a
    cache from one call to the next, bytes can move faster than ``roofline.bandwidth``.

    Args:
        graph: a functional ATen graph whose nodes carry fake values.
        weights: the nodes of ``graph`` that are weights.
        roofline: the device.
        hints: a size for each symbol.

    Raises:
        AnalysisError: a symbol has no hint, the roofline lacks a dtype, the graph calls modules or
            methods, or ``weights`` holds nodes of another graph.
    """
    model = _FusedModel(_checked(graph, weights), roofline, hints)
    for node in graph.nodes:
        if node.op == "output":
            model.finish(node)
        elif node.op == "call_function" and tensors_of(node) and not is_view(node):
            model.call(node)
    return Bound(
        model.seconds,
        model.arithmetic_seconds,
        model.flops,
        model.weight_bytes,
        model.other_bytes,
    )


@dataclass
class _FusedModel:
    """Walks a graph in order and adds up its bound."""

    weights: frozenset[fx.Node]
    roofline: Roofline
    hints: Hints | None
    seconds: float = 0.0
    arithmetic_seconds: float = 0.0
    flops: int = 0
    weight_bytes: int = 0
    other_bytes: int = 0
    # Bytes of each tensor that nobody has read yet.
    unread: dict[fx.Node, int] = field(default_factory=dict)
    # Bytes that other operators need, to be read by the first heavy one that uses their result.
    pending: dict[fx.Node, int] = field(default_factory=dict)
    # The last heavy operator that a node's value went through; nothing for the graph's inputs.
    maker: dict[fx.Node, fx.Node] = field(default_factory=dict)
    # Bytes of each heavy operator's own result that no result of the graph stands for yet.
    spare: dict[fx.Node, int] = field(default_factory=dict)

    def call(self, node: fx.Node) -> None:
        """Account for one operator that yields tensors and is not a view."""
        rule = rule_of(node)
        flops = _number(rule.flops(node), self.hints) if rule.heavy else 0
        read = sum(self._read(*item, heavy=flops > 0) for item in rule.reads(node).items())
        roots = dict.fromkeys(map(root_of, node.all_input_nodes))
        read += sum(self.pending.pop(root, 0) for root in roots)
        if not flops:
            self.pending[node] = read
            if makers := [self.maker[root] for root in roots if root in self.maker]:
                self.maker[node] = max(makers)
            return
        written = self._stored(node)
        self.flops += flops
        self.other_bytes += written
        self.maker[node] = node
        self.spare[node] = written
        first = next(filter(tensors_of, node.all_input_nodes))
        self._spend(read + written, flops / self.roofline.peak(tensors_of(first)[0].dtype))

    def finish(self, output: fx.Node) -> None:
        """Account for the graph's results, and for reads that no heavy operator has made."""
        self._spend(sum(self.pending.values()))
        for root in dict.fromkeys(map(root_of, output.all_input_nodes)):
            if root.op != "call_function" or not tensors_of(root):
                continue
            size, maker = self._stored(root), self.maker.get(root)
            if maker is not None:
                covered = min(size, self.spare[maker])
                self.spare[maker] -= covered
                size -= covered
            self.other_bytes += size
            self._spend(size)

    def _read(self, source: fx.Node, size: sympy.Expr, *, heavy: bool) -> int:
        root = root_of(source)
        if root.op == "call_function" and not (heavy and root in self.maker):
            return 0
        left = self.unread.setdefault(root, self._stored(root))
        taken = min(left, _number(size, self.hints))
        self.unread[root] = left - taken
        if root in self.weights:
            self.weight_bytes += taken
        else:
            self.other_bytes += taken
        return taken

    def _stored(self, node: fx.Node) -> int:
        return _number(stored_bytes(node), self.hints)

    def _spend(self, moved: int, arithmetic: float = 0.0) -> None:
        """Let time pass that moves bytes and, at once, takes some seconds of arithmetic."""
        memory = moved / self.roofline.bandwidth
        self.seconds += max(memory, arithmetic)
        if arithmetic > memory:
            self.arithmetic_seconds += arithmetic
