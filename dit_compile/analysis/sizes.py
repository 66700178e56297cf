"""Shape inference with symbolic sizes.

Sizes are baked into static graphs (``view(x, [2, 256, 1152])``), so the graph is interpreted anew:
each dimension of a user input is a symbol, and each operator's rule carries expressions beside the
captured numbers. A size that no input explains is a constant; where a constant meets an expression
of the same number (a positional table added to the tokens), the expression stands for both. Where
two inputs' sizes must agree (tokens and their rotary table), their symbols become one. An operator
without a rule makes its result's sizes unknown and is reported. Sizes that were traced symbolically
are compared with what the rules say.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import fx
from torch.utils import _pytree as pytree
from torch.utils._sympy.functions import CleanDiv, FloorDiv

from dit_compile.ir.program import InputKind, Program
from dit_compile.ir.schema import arguments


@dataclass(frozen=True)
class Miss:
    """A node about which an analysis could not tell, and why."""

    node: fx.Node
    reason: str


@dataclass(frozen=True)
class Size:
    """One dimension: its captured number and, unless it is unknown, its expression.

    ``factors`` are what it was flattened from, outermost first, and ``parts`` what was
    concatenated, so that a later view or slice can take it apart again.
    """

    value: int
    expr: Any  # a sympy expression, None where it is unknown
    factors: tuple[Size, ...] = ()
    parts: tuple[Size, ...] = ()

    @property
    def symbolic(self) -> bool:
        """Whether an input's size is behind it."""
        return self.expr is not None and bool(self.expr.free_symbols)


Shape = tuple[Size, ...]


def const(value: int) -> Size:
    """A size that no input explains."""
    return Size(value, sympy.Integer(value))


def unknown(value: int) -> Size:
    """A size that no rule tells."""
    return Size(value, None)


def product(sizes: Sequence[Size]) -> Size:
    """The size of ``sizes`` flattened into one dimension."""
    kept = [f for s in sizes if s.expr != 1 for f in (s.factors or (s,))]
    if len(sizes) == 1 or len(kept) == 1:
        return sizes[0] if len(sizes) == 1 else kept[0]
    value = math.prod(size.value for size in kept) if all(s.value >= 0 for s in kept) else -1
    if any(size.expr is None for size in kept):
        return unknown(value)
    return Size(value, sympy.Mul(*(size.expr for size in kept)), tuple(kept))


def total(sizes: Sequence[Size]) -> Size:
    """The size of ``sizes`` concatenated; equal ones are also a leading factor, like a batch."""
    parts = tuple(p for size in sizes for p in (size.parts or (size,)) if p.expr != 0)
    value = sum(size.value for size in parts) if all(size.value >= 0 for size in parts) else -1
    if len(parts) == 1 or any(size.expr is None for size in parts):
        return parts[0] if len(parts) == 1 else unknown(value)
    same = all(size.expr == sizes[0].expr for size in sizes)
    factors = (const(len(sizes)), *(sizes[0].factors or sizes[:1])) if same else ()
    return Size(value, sympy.Add(*(size.expr for size in parts)), factors, parts)


def divide(size: Size, by: int) -> Size:
    """``size / by``; taken to be exact for all sizes if it is for the captured one."""
    if by == 1:
        return size
    if size.value % by or size.expr is None:
        expr = None if size.expr is None else sympy.floor(size.expr / by)
        return Size(size.value // by, expr)
    return Size(size.value // by, size.expr / by)


def cut(size: Size, start: int, end: int, step: int = 1) -> Size:
    """The length of ``[start:end:step]``, along the seams of what was concatenated or flattened."""
    if size.value < 0:
        return unknown(-1)
    whole = end >= size.value
    first = max(start + size.value, 0) if start < 0 else min(start, size.value)
    last = size.value if whole else max(end + size.value if end < 0 else end, first)
    if not size.symbolic or first == last:
        length = -(-(last - first) // step)
        return const(length) if size.expr is not None or not whole else unknown(length)
    if step != 1:
        length = -(-(last - first) // step)
        exact = (last - first) % step == 0
        return divide(cut(size, start, end), step) if exact else unknown(length)
    if first == 0 and whole:
        return size
    seams = list(itertools.accumulate((part.value for part in size.parts), initial=0))
    if first in seams and last in seams:
        return total(size.parts[seams.index(first) : seams.index(last)])
    inner = product(size.factors[1:]) if size.factors and not size.factors[0].symbolic else size
    if inner is not size and first % inner.value == 0 and last % inner.value == 0:
        return product([const((last - first) // inner.value), inner])
    if (whole or end < 0) and start >= 0:  # measured from the far end
        return Size(last - first, size.expr + (last - first - size.value))
    return const(last - first)


def regroup(sizes: Shape, values: Sequence[int]) -> Shape:
    """The sizes of a view of ``sizes`` with the captured numbers ``values``.

    Dimensions are matched from the left wherever the running products agree; what lies between two
    such points is merged or split. A dimension split by a number keeps its symbol on the outside.
    """
    if [size.value for size in sizes] == list(values):
        return sizes
    left = [f for size in sizes if size.expr != 1 for f in (size.factors or (size,))]
    result: list[Size] = []
    while len(result) < len(values):
        start = len(result)
        if values[start] == 1 and not (left and left[0].value == 1):
            result.append(const(1))
            continue
        group, stop = left[:1], start + 1
        while (have := product(group).value) != (want := math.prod(values[start:stop])):
            if (have < want and len(group) == len(left)) or (have > want and stop == len(values)):
                return (*result, *(unknown(value) for value in values[start:]))
            group, stop = (left[: len(group) + 1], stop) if have < want else (group, stop + 1)
        rest = left[len(group) :]
        while (
            rest
            and rest[0].value == 1
            and (
                stop == len(values)
                or (values[stop] != 1 and not any(s.symbolic for s in rest[1:2]))
            )
        ):  # a batch of one goes with its neighbour of the same kind
            group, rest = [*group, rest[0]], rest[1:]
        left = rest
        result += _refactor(group, values[start:stop])
    return tuple(result)


def _refactor(group: Sequence[Size], values: Sequence[int]) -> list[Size]:
    """Deal the factors of ``group`` out to ``values``, which have the same product."""
    if len(values) == 1:
        return [product(group)]
    atoms = list(group)
    single = sum(atom.symbolic for atom in atoms) == 1
    result: list[Size] = []
    for want in values:
        taken: list[Size] = []
        while want > 1:
            head = atoms.pop(0)
            shared = math.gcd(want, head.value)
            if shared == 1 and head.value != 1:  # no seam here; a lone symbol stays outermost
                outer = divide(product(group), math.prod(values[1:]))
                sure = single and outer.expr is not None
                return [outer, *map(const, values[1:])] if sure else [unknown(v) for v in values]
            taken.append(divide(head, head.value // shared))
            want //= shared
            if shared != head.value:
                rest = head.value // shared
                atoms.insert(0, unknown(rest) if head.expr is None else const(rest))
        result.append(product(taken))
    result[-1] = product([result[-1], *atoms])
    return result


@dataclass
class Call:
    """A node while its rule runs: arguments by their schema names, tensors as their sizes."""

    node: fx.Node
    args: dict[str, Any]
    real: list[tuple[int, ...]]  # captured sizes of the results

    def __getitem__(self, name: str) -> Any:
        """An argument by its name."""
        return self.args[name]

    @property
    def first(self) -> Shape:
        """Sizes of the first tensor."""
        return next(value for value in self.args.values() if is_shape(value))

    def dim(self, name: str = "dim", extra: int = 0) -> int:
        """A dimension argument, counted from the front."""
        return int(self[name]) % max(len(self.first) + extra, 1)


def is_shape(value: Any) -> bool:
    """Whether ``value`` is the sizes of one tensor."""
    return type(value) is tuple and all(isinstance(item, Size) for item in value)


Rule = Callable[["Inference", Call], Any]
RULES: dict[str, Rule] = {}


def size_rule(*names: str) -> Callable[[Rule], Rule]:
    """Register the rule of operators, named without overload, like ``ditc::gate`` or ``view``."""

    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, rule))
        return rule

    return register


class Inference:
    """Sizes of every node of a graph, in the symbols of the user inputs."""

    def __init__(self, program: Program, graph: fx.Graph) -> None:
        self.program, self.graph = program, graph
        self.shapes: dict[fx.Node, Any] = {}  # a Shape, or a list of them
        self.numbers: dict[sympy.Symbol, int] = {}  # in the order of the inputs
        self.equal: dict[sympy.Basic, sympy.Expr] = {}  # symbols that others explain
        self.traced: dict[sympy.Basic, sympy.Expr] = {}  # torch's symbols in ours
        self.mixed: list[Size] = []  # dimensions along which one position reads another
        self.misses: list[Miss] = []
        for node in graph.nodes:
            value = node.meta.get("val")
            if node.op == "placeholder" and isinstance(value, torch.Tensor):
                user = program.kind_of(node) is InputKind.USER
                self.shapes[node] = self._input(node, value) if user else self._captured(value)
            elif node.op == "get_attr" and isinstance(value, torch.Tensor):
                self.shapes[node] = self._captured(value)
            elif node.op == "call_function" and _tensors(value):
                self.shapes[node] = self._infer(node, value)

    def resolve(self, expr: sympy.Expr) -> sympy.Expr:
        """``expr`` with symbols replaced by what explains them."""
        while self.equal.keys() & expr.free_symbols:
            expr = expr.xreplace(self.equal)
        return expr

    def expressions(self, node: fx.Node) -> tuple[sympy.Expr | None, ...]:
        """The sizes of a node that yields one tensor; none for any other."""
        shape: Any = self.shapes.get(node)
        if not is_shape(shape):
            return ()
        return tuple(None if size.expr is None else self.resolve(size.expr) for size in shape)

    def join(self, left: Size, right: Size) -> Size:
        """The size of two dimensions that an operator requires to be equal, or one to be 1."""
        if left.value != right.value:
            return right if left.value == 1 else left
        if not left.symbolic or not right.symbolic:
            if left.symbolic or right.symbolic:
                return left if left.symbolic else right
            return right if right.expr is None else left
        if left.value != 1:  # two ones may just broadcast
            self._unify(left, right)
        keys = [
            (len(self.resolve(s.expr).free_symbols), bool(s.factors or s.parts))
            for s in (left, right)
        ]
        return right if keys[1] > keys[0] else left

    def _unify(self, left: Size, right: Size) -> None:
        """Learn from two sizes that must be equal; with the same seams, piece by piece."""
        one, two = self.resolve(left.expr), self.resolve(right.expr)
        if not one.is_Symbol and not two.is_Symbol:  # B*F and b*F
            ratio = sympy.fraction(one / two)
            one, two = ratio if any(side.is_Symbol for side in ratio) else (one, two)
        rank = list(self.numbers).index
        if two.is_Symbol and not (one.is_Symbol and rank(one) > rank(two)):
            one, two = two, one
        if one.is_Symbol and two.free_symbols - {one} == two.free_symbols != set():
            self.equal[one] = two
        elif one != two:
            for mine, other in ((left.parts, right.parts), (left.factors, right.factors)):
                if [piece.value for piece in mine] == [piece.value for piece in other]:
                    for pair in zip(mine, other, strict=True):
                        self.join(*pair)

    def broadcast(self, *shapes: Shape) -> Shape:
        """The sizes of pointwise operands."""
        result: list[Size] = []
        for sizes in itertools.zip_longest(*map(reversed, shapes)):
            present = [size for size in sizes if size is not None]
            merged = present[0]
            for size in present[1:]:
                merged = self.join(merged, size)
            result.append(merged)
        return tuple(reversed(result))

    def contract(self, left: Size, right: Size) -> None:
        """Note that two dimensions are summed over against each other."""
        size = self.join(left, right)
        if left.symbolic and right.symbolic:
            self.mixed.append(size)

    def _captured(self, value: torch.Tensor) -> Shape:
        return tuple(map(self._traced_size, value.shape))

    def _traced_size(self, size: Any) -> Size:
        """A size as it was traced: a constant in a static graph."""
        if isinstance(size, int):
            return const(size)
        number = _number(size)
        expr = size.node.expr.xreplace(self.traced)

        def divided(top: sympy.Expr, by: sympy.Expr) -> sympy.Expr:  # exact as in ``divide``
            exact = top.subs(self.numbers) % by.subs(self.numbers) == 0
            return top / by if exact else sympy.floor(top / by)

        expr = expr.replace(FloorDiv, divided).replace(CleanDiv, divided)
        known = number >= 0 and expr.free_symbols <= self.numbers.keys()
        return Size(number, expr if known else None)

    def _input(self, node: fx.Node, value: torch.Tensor) -> Shape:
        """A symbol for each dimension, except where the trace already knows it from others."""
        sizes: list[Size] = []
        for dim, size in enumerate(value.shape):
            formula: Any = None if isinstance(size, int) else size.node.expr
            unseen: set[Any] = formula.free_symbols - self.traced.keys() if formula else set()
            if formula is not None and formula.free_symbols and not unseen:
                sizes.append(self._traced_size(size))
                continue
            symbol = sympy.Symbol(f"{node.name}_{dim}", integer=True, positive=True)
            self.numbers[symbol] = _number(size)
            if len(unseen) == 1:
                inner = unseen.pop()
                gap = formula.xreplace(self.traced) - symbol
                self.traced.update((inner, root) for root in sympy.solve(gap, inner)[:1])
            sizes.append(Size(self.numbers[symbol], symbol))
        return tuple(sizes)

    def _infer(self, node: fx.Node, value: Any) -> Any:
        tensors = _tensors(value)
        real = [tuple(map(_number, tensor.shape)) for tensor in tensors]
        try:
            call = Call(node, _arguments(node, self.shapes), real)
            results = self._apply(call)
            shapes = results if isinstance(results, list) else [results] * len(tensors)
            if len(shapes) != len(tensors):
                raise ValueError(f"{len(shapes)} results")
        except (ArithmeticError, LookupError, StopIteration, TypeError, ValueError) as error:
            reason = f"its arguments are not what the rule expects: {error!r}"
            self.misses.append(Miss(node, reason))
            shapes = [None] * len(tensors)
        checked = [
            self._check(node, None if shape is None else tuple(shape), tensor.shape)
            for shape, tensor in zip(shapes, tensors, strict=True)
        ]
        return checked[0] if isinstance(value, torch.Tensor) else checked

    def _apply(self, call: Call) -> Any:
        operands = [s for s in pytree.tree_leaves(call.args) if isinstance(s, Size)]
        target: Any = call.node.target
        if target is operator.getitem:
            return call["0"][call["1"]]
        rule = RULES.get(target._schema.name.removeprefix("aten::"))
        tags = target.tags
        if torch.Tag.pointwise in tags and rule is None:
            rule = RULES["*"]
        elif rule is None and "keepdim" in call.args:
            rule = RULES["keepdim"]
        known = all(size.value >= 0 for size in operands)
        new = known and min(pytree.tree_leaves(call.real), default=0) < 0
        if rule is not None and operands:
            if new:
                self.misses.append(Miss(call.node, "its size depends on the data"))
            return rule(self, call)
        if all(size.expr is not None and not size.symbolic for size in operands):
            return [
                tuple(map(const, sizes)) if min(sizes, default=0) >= 0 else None
                for sizes in call.real
            ]
        why = "its size depends on the data" if new else f"no rule for the sizes of {target}"
        self.misses.append(Miss(call.node, why))
        return None

    def _check(self, node: fx.Node, shape: Shape | None, real: Sequence[Any]) -> Shape:
        """Hold a rule's result against the captured numbers and the traced expressions."""
        numbers = [_number(size) for size in real]
        sizes = [unknown(number) for number in numbers]
        if shape is not None:
            pairs = list(zip(shape, numbers, strict=False))
            wrong = any(s.value != n and min(s.value, n) >= 0 for s, n in pairs)
            if wrong or len(shape) != len(numbers):
                self.misses.append(
                    Miss(node, f"inferred {[s.value for s in shape]}, not {numbers}")
                )
            else:  # what depends on data has no number
                sizes = [s if s.value == n >= 0 else unknown(n) for s, n in pairs]
        for dim, size in enumerate(real):
            if isinstance(size, int):
                continue
            traced = self._traced_size(size)
            mine = sizes[dim]
            if mine.symbolic and traced.expr is not None:
                if self._agree(mine, traced):
                    continue
                if not mine.expr.free_symbols < traced.expr.free_symbols:  # more than baked numbers
                    self.misses.append(Miss(node, f"inferred {mine.expr}, traced {traced.expr}"))
            sizes[dim] = traced
        return tuple(sizes)

    def _agree(self, mine: Size, traced: Size) -> bool:
        """Whether two sizes are equal, given numbers for what the trace holds fixed.

        That two inputs must agree in size may be learned here; never that two dimensions of one do.
        """
        moving = set().union(*(expr.free_symbols for expr in self.traced.values()))
        fixed = {s: number for s, number in self.numbers.items() if s not in moving}

        def same() -> bool:
            gap = self.resolve(mine.expr) - self.resolve(traced.expr)
            return bool(sympy.expand(gap.subs(fixed)) == 0)

        if same():
            return True
        apart = self.resolve(mine.expr).free_symbols ^ self.resolve(traced.expr).free_symbols
        owners = [str(symbol).rpartition("_")[0] for symbol in apart]
        if len(set(owners)) == len(owners):
            self._unify(mine, traced)
        return same()


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def _number(size: Any) -> int:
    """The captured number of a size, -1 where it depends on data."""
    if isinstance(size, int):
        return size
    return int(size.node.hint) if size.node.has_hint() else -1


def _arguments(node: fx.Node, shapes: Mapping[fx.Node, Any]) -> dict[str, Any]:
    def replaced(arg: fx.Node) -> Any:
        value = arg.meta.get("val")
        return shapes.get(arg, _number(value) if isinstance(value, int | torch.SymInt) else value)

    return {name: fx.map_arg(value, replaced) for name, value in arguments(node).items()}
