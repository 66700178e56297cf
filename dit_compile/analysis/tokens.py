"""The token axis of every node, found by shape inference with symbolic sizes.

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
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import fx
from torch.utils import _pytree as pytree
from torch.utils._sympy.functions import CleanDiv, FloorDiv

from dit_compile.errors import AnalysisError
from dit_compile.ir.program import InputKind, OutputKind, Program, output_args, placeholders


@dataclass(frozen=True)
class Miss:
    """A node whose sizes could not be told, and why."""

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
        while (have := product(group).value) != (
            want := math.prod(values[start:stop])
        ):
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
_RULES: dict[str, Rule] = {}


def size_rule(*names: str) -> Callable[[Rule], Rule]:
    """Register the rule of operators, named without overload, like ``ditc::gate`` or ``view``."""

    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(names, rule))
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
        rule = _RULES.get(target._schema.name.removeprefix("aten::"))
        tags = target.tags
        if torch.Tag.pointwise in tags and rule is None:
            rule = _pointwise
        elif rule is None and "keepdim" in call.args:
            rule = _reduce
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

    schema = getattr(node.target, "_schema", None)
    names = [argument.name for argument in schema.arguments] if schema else map(str, range(9))
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    defaults = {a.name: a.default_value for a in schema.arguments} if schema else {}
    return defaults | {name: fx.map_arg(value, replaced) for name, value in given.items()}


@size_rule("__and__", "__or__", "__xor__", "polar", "fill", "prelu", "where")
def _pointwise(run: Inference, call: Call) -> Shape:
    return run.broadcast(*filter(is_shape, call.args.values()))


@size_rule(
    "_to_copy",
    "to",
    "type_as",
    "contiguous",
    "clone",
    "alias",
    "detach",
    "dropout",
    "lift_fresh",
    "softmax",
    "_softmax",
    "log_softmax",
    "cumsum",
    "cumprod",
    "sort",
    "argsort",
    "flip",
    "roll",
    "layer_norm",
    "rms_norm",
    "group_norm",
    "batch_norm",
    "instance_norm",
    "normalize",
    "triu",
    "tril",
    "zeros_like",
    "ones_like",
    "full_like",
    "empty_like",
    "rand_like",
    "randn_like",
    "slice_scatter",
    "select_scatter",
    "scatter",
    "scatter_add",
    "scatter_reduce",
    "index_put",
    "index_fill",
    "masked_scatter",
    "bernoulli",
    "leaky_relu",
)
def _same(run: Inference, call: Call) -> Shape:
    return call.first


def _reduce(run: Inference, call: Call) -> Shape:
    dims = call["dim"] if isinstance(call["dim"], Sequence) else [call["dim"]]
    rank = len(call.first)
    gone = {dim % rank for dim in dims if dim is not None} or set(range(rank))
    kept = [const(1) if i in gone else size for i, size in enumerate(call.first)]
    return tuple(size for i, size in enumerate(kept) if call["keepdim"] or i not in gone)


@size_rule("view", "reshape", "_unsafe_view", "flatten", "unflatten", "view_as", "reshape_as")
def _view(run: Inference, call: Call) -> Shape:
    return regroup(call.first, call.real[0])


@size_rule("unsqueeze")
def _unsqueeze(run: Inference, call: Call) -> Shape:
    dim = call.dim(extra=1)
    return (*call.first[:dim], const(1), *call.first[dim:])


@size_rule("squeeze")
def _squeeze(run: Inference, call: Call) -> Shape:
    dims = call.args.get("dim", range(len(call.first)))
    gone = {dim % len(call.first) for dim in (dims if isinstance(dims, Sequence) else [dims])}
    return tuple(s for i, s in enumerate(call.first) if i not in gone or s.value != 1)


@size_rule("permute")
def _permute(run: Inference, call: Call) -> Shape:
    return tuple(call.first[dim] for dim in call["dims"])


@size_rule("transpose", "swapaxes", "t", "numpy_T")
def _transpose(run: Inference, call: Call) -> Shape:
    sizes = list(call.first)
    if "dim0" not in call.args:
        return tuple(reversed(sizes))
    one, two = call["dim0"], call["dim1"]
    sizes[one], sizes[two] = sizes[two], sizes[one]
    return tuple(sizes)


@size_rule("select", "unbind")
def _select(run: Inference, call: Call) -> list[Shape]:
    dim = call.dim()
    return [(*call.first[:dim], *call.first[dim + 1 :])] * len(call.real)


@size_rule("slice", "narrow")
def _slice(run: Inference, call: Call) -> Shape:
    start = call["start"] or 0
    end = start + call["length"] if "length" in call.args else call["end"]
    end = call.first[call.dim()].value if end is None else end
    return _with(call, cut(call.first[call.dim()], start, end, call.args.get("step", 1)))


@size_rule("split", "split_with_sizes", "chunk", "tensor_split")
def _split(run: Inference, call: Call) -> list[Shape]:
    size = call.first[call.dim()]
    lengths = [sizes[call.dim()] for sizes in call.real]
    ends = list(itertools.accumulate(lengths))
    pieces = [cut(size, end - length, end) for end, length in zip(ends, lengths, strict=True)]
    if len(set(lengths)) == 1 and size.symbolic and not all(p.symbolic for p in pieces):
        pieces = [divide(size, len(pieces))] * len(pieces)
    return [_with(call, piece) for piece in pieces]


def _with(call: Call, size: Size) -> Shape:
    """The first tensor's sizes with another one at ``dim``."""
    return (*call.first[: call.dim()], size, *call.first[call.dim() + 1 :])


@size_rule("stack")
def _stack(run: Inference, call: Call) -> Shape:
    sizes = run.broadcast(*call["tensors"])
    dim = call["dim"] % (len(sizes) + 1)
    return (*sizes[:dim], const(len(call["tensors"])), *sizes[dim:])


@size_rule("cat", "concat", "concatenate", "vstack")
def _cat(run: Inference, call: Call) -> Shape:
    shapes = [s for s in call["tensors"] if [size.value for size in s] != [0]]
    dim = call.args.get("dim", 0) % len(shapes[0])
    blank = [(*shape[:dim], const(1), *shape[dim + 1 :]) for shape in shapes]
    sizes = run.broadcast(*blank)
    return (*sizes[:dim], total([shape[dim] for shape in shapes]), *sizes[dim + 1 :])


@size_rule("expand", "expand_as", "broadcast_to")
def _expand(run: Inference, call: Call) -> Shape:
    target = call["other"] if "other" in call.args else tuple(map(const, call.real[0]))
    return run.broadcast(call.first, target)


@size_rule("repeat", "tile")
def _repeat(run: Inference, call: Call) -> Shape:
    times = list(call["repeats"] if "repeats" in call.args else call["dims"])
    rank = max(len(times), len(call.first))
    sizes = [*[const(1)] * (rank - len(call.first)), *call.first]
    times = [*[1] * (rank - len(times)), *times]
    return tuple(product([const(n), s]) if n != 1 else s for n, s in zip(times, sizes, strict=True))


@size_rule("repeat_interleave")
def _interleave(run: Inference, call: Call) -> Shape | None:
    if not isinstance(call.args.get("repeats"), int):
        return None
    if call["dim"] is None:
        return (product([*call.first, const(call["repeats"])]),)
    return _with(call, product([call.first[call.dim()], const(call["repeats"])]))


@size_rule("linear")
def _linear(run: Inference, call: Call) -> Shape:
    run.contract(call["input"][-1], call["weight"][-1])
    return (*call["input"][:-1], *call["weight"][:-1])


@size_rule("matmul", "mm", "bmm", "mv", "dot", "addmm", "baddbmm")
def _matmul(run: Inference, call: Call) -> Shape:
    left, right = [s for s in call.args.values() if is_shape(s)][-2:]
    run.contract(left[-1], right[-2] if len(right) > 1 else right[0])
    batch = run.broadcast(left[:-2], right[:-2])
    return (*batch, *left[-2:-1], *(right[-1:] if len(right) > 1 else ()))


@size_rule("outer", "ger")
def _outer(run: Inference, call: Call) -> Shape:
    return (*call["self"], *call["vec2"])


@size_rule("einsum")
def _einsum(run: Inference, call: Call) -> Shape | None:
    terms, _, result = call["equation"].replace(" ", "").partition("->")
    if "." in terms:
        return None
    sizes: dict[str, Size] = {}
    for term, shape in zip(terms.split(","), call["tensors"], strict=True):
        for label, size in zip(term, shape, strict=True):
            if label in sizes and label not in result:
                run.contract(sizes[label], size)
            sizes[label] = run.join(sizes[label], size) if label in sizes else size
    return tuple(sizes[label] for label in result)


@size_rule("scaled_dot_product_attention")
def _attention(run: Inference, call: Call) -> Shape:
    query, key, value = call["query"], call["key"], call["value"]
    run.join(query[-1], key[-1])
    keys = run.join(key[-2], value[-2])
    rows = query[-2]
    if call["attn_mask"]:
        rows, keys = run.broadcast(call["attn_mask"], (rows, keys))[-2:]
    run.mixed.append(keys)
    heads = run.broadcast(query[:-3], key[:-3], value[:-3])
    return (*heads, *query[-3:-2], rows, value[-1])


@size_rule("conv1d", "conv2d", "conv3d", "convolution")
def _conv(run: Inference, call: Call) -> Shape | None:
    image, weight = call["input"], call["weight"]
    rank = len(weight) - 2
    if len(image) != len(weight) or call.args.get("transposed"):
        return None
    run.contract(image[1], weight[1])
    named = [call[name] for name in ("stride", "padding", "dilation")]
    strides, pads, dilations = [
        [0 if v == "valid" else v] * rank if isinstance(v, str | int) else [*v] * rank
        for v in named
    ]
    return (
        image[0],
        weight[0],
        *(
            size if pad == "same" else _window(size, kernel.value, stride, pad, dilation)
            for size, kernel, stride, pad, dilation in zip(
                image[2:], weight[2:], strides, pads, dilations, strict=False
            )
        ),
    )


def _window(size: Size, kernel: int, stride: int, pad: int, dilation: int) -> Size:
    shrink = 2 * pad - dilation * (kernel - 1) - 1
    if size.expr is None:
        return Size((size.value + shrink) // stride + 1, None)
    steps = divide(Size(size.value + shrink, size.expr + shrink), stride)
    return Size(steps.value + 1, sympy.expand(steps.expr + 1))


@size_rule(
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "max_pool2d",
    "upsample_nearest1d",
    "interpolate",
    "upsample_nearest2d",
    "upsample_nearest3d",
    "upsample_bilinear2d",
    "pixel_shuffle",
    "pixel_unshuffle",
    "_adaptive_avg_pool2d",
    "adaptive_avg_pool2d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
)
def _resize(run: Inference, call: Call) -> Shape:
    """Spatial sizes change by a whole factor; channels are what they are."""
    return tuple(
        size
        if size.value == real
        else const(real)
        if not size.symbolic and size.expr is not None
        else divide(size, size.value // real)
        if size.value % real == 0
        else product([size, const(real // size.value)])
        if real % size.value == 0
        else unknown(real)
        for size, real in zip(call.first, call.real[0], strict=True)
    )


@size_rule("pad", "constant_pad_nd")
def _pad(run: Inference, call: Call) -> Shape:
    sizes, amounts = list(call.first), call["pad"]
    for i in range(len(amounts) // 2):
        before, after = amounts[2 * i : 2 * i + 2]
        size = cut(sizes[-1 - i], max(-before, 0), min(after, 0) or sizes[-1 - i].value)
        sizes[-1 - i] = total([const(max(before, 0)), size, const(max(after, 0))])
    return tuple(sizes)


@size_rule("embedding", "one_hot", "view_as_real")
def _appended(run: Inference, call: Call) -> Shape:
    return (*call.args.get("indices", call.first), const(call.real[0][-1]))


@size_rule("view_as_complex")
def _complex(run: Inference, call: Call) -> Shape:
    return call.first[:-1]


@size_rule("index_select", "topk", "gather", "take_along_dim")
def _pick(run: Inference, call: Call) -> Shape:
    index = call.args.get("index", call.args.get("indices"))
    if index is not None and len(index) == len(call.first) != 1:
        return tuple(index)
    return _with(call, const(call["k"]) if index is None else index[0])


@size_rule("index")
def _index(run: Inference, call: Call) -> Shape | None:
    nodes = [i for i in call.node.args[1] if i is not None]  # type: ignore[union-attr]
    if any(node.meta["val"].dtype is torch.bool for node in nodes):  # type: ignore[union-attr]
        return None
    indices = [*call["indices"], *[None] * (len(call.first) - len(call["indices"]))]
    at = [dim for dim, index in enumerate(indices) if index is not None]
    picked = run.broadcast(*(indices[dim] for dim in at))
    kept = [size for size, index in zip(call.first, indices, strict=True) if index is None]
    front = at[0] if at[-1] - at[0] + 1 == len(at) else 0
    return (*kept[:front], *picked, *kept[front:])


@size_rule("new_zeros", "new_ones", "new_full", "new_empty")
def _fresh(run: Inference, call: Call) -> Shape:
    return tuple(map(const, call.real[0]))


@size_rule("index_copy", "index_add")
def _index_copy(run: Inference, call: Call) -> Shape:
    if run.join(call["index"][0], call["source"][call.dim()]).symbolic:
        run.misses.append(Miss(call.node, "where its rows come to lie depends on the data"))
    return call.first


@size_rule("pad_sequence")
def _pad_sequence(run: Inference, call: Call) -> Shape:
    longest = max(shape[0].value for shape in call["sequences"])
    length, *rest = run.broadcast(*(s for s in call["sequences"] if s[0].value == longest))
    lead = (const(len(call["sequences"])), length)
    return (*(lead if call["batch_first"] else reversed(lead)), *rest)


@size_rule("meshgrid")
def _meshgrid(run: Inference, call: Call) -> list[Shape]:
    sizes = [shape[0] if shape else const(1) for shape in call["tensors"]]
    if call.args.get("indexing") == "xy":
        sizes[:2] = sizes[1::-1]
    return [tuple(sizes)] * len(sizes)


def infer_sizes(
    program: Program, graph: fx.Graph | None = None
) -> tuple[dict[fx.Node, tuple[sympy.Expr | None, ...]], dict[sympy.Symbol, int]]:
    """The sizes of every node with one tensor, ``None`` where unknown, and each symbol's number."""
    run = Inference(program, program.main if graph is None else graph)
    return {node: run.expressions(node) for node in run.shapes}, run.numbers


@dataclass(frozen=True)
class TokenAxis:
    """Where a value holds tokens.

    Attributes:
        dim: the dimension.
        count: its length; of ``B*F`` where frames are folded into the batch.
        role: ``tokens`` (all of the latent's), ``joint`` (those and another stream's), or in a
            model that treats them apart ``spatial`` and ``temporal``.
        others: further dimensions that hold tokens, such as the keys of attention scores.
    """

    dim: int
    count: sympy.Expr
    role: str = "tokens"
    others: tuple[TokenAxis, ...] = ()


@dataclass(frozen=True)
class Tokens:
    """The tokens of a graph.

    Attributes:
        latent: the input whose spatial dimensions make the tokens.
        axes: the token axis of each node that has one; maps not yet flattened have none.
        count: number of the latent's tokens in one sample.
        misses: operators whose result sizes are unknown.
        sizes: the captured number of each symbol. Of the latent, ``B`` and ``C`` are batch and
            channels; ``N``, ``H, W``, ``F, H, W`` or ``K, F, H, W`` (several videos) are what
            becomes tokens. Dimension 1 of another input ``text`` is ``text_1``.
    """

    latent: fx.Node
    axes: Mapping[fx.Node, TokenAxis]
    count: sympy.Expr
    misses: tuple[Miss, ...]
    sizes: Mapping[sympy.Symbol, int]


def find_tokens(program: Program, graph: fx.Graph | None = None) -> Tokens:
    """Find the latent among the inputs of ``graph``, and the token axis of each node.

    The latent is the floating-point input whose dimensions reach the output and are attended over.
    Where nothing is attended over, the leading dimension is taken to be the batch.

    Args:
        program: the program that ``graph`` belongs to.
        graph: the full step by default.

    Raises:
        AnalysisError: no input has such dimensions, or nothing is laid out along them.
    """
    run = Inference(program, program.main if graph is None else graph)
    latent, grid = _find_latent(run)
    groups = _groups(run, grid)
    axes = {node: axis for node in run.shapes if (axis := _axis(run, node, grid, groups))}
    counts = [_count(axes, grid, group) for group in _cover(groups, grid)]
    if not counts or None in counts:
        raise AnalysisError(
            f"no value is laid out along tokens of input {latent.name!r}{_hint(run.misses)}"
        )
    names = _readable(run, latent, grid)
    return Tokens(
        latent,
        {node: _rename(axis, names) for node, axis in axes.items()},
        sympy.Mul(*counts).xreplace(names),
        tuple(run.misses),
        {names.get(s, s): number for s, number in run.numbers.items() if s not in run.equal},
    )


def describe_tokens(tokens: Tokens) -> dict[str, Any]:
    """``tokens`` as plain data for a report."""

    def plain(axis: TokenAxis) -> dict[str, Any]:
        return {"dim": axis.dim, "count": str(axis.count), "role": axis.role}

    return {
        "latent": tokens.latent.name,
        "count": str(tokens.count),
        "tokens": int(tokens.count.subs(tokens.sizes)),
        "sizes": {str(symbol): number for symbol, number in tokens.sizes.items()},
        "axes": {
            node.name: plain(axis) | {"others": [plain(other) for other in axis.others]}
            for node, axis in tokens.axes.items()
        },
        "misses": [{"node": miss.node.name, "reason": miss.reason} for miss in tokens.misses],
    }


def _hint(misses: Sequence[Miss]) -> str:
    if not misses:
        return ""
    return f"; {len(misses)} sizes are unknown, first at %{misses[0].node.name}: {misses[0].reason}"


def _outputs(run: Inference) -> Iterator[fx.Node]:
    """The nodes that the caller gets."""
    name = next((n for n, m in run.program.graphs.items() if m.graph is run.graph), "")
    kinds = [output.kind for output in run.program.outputs.get(name, ())]
    for i, node in enumerate(output_args(run.graph)):
        if isinstance(node, fx.Node) and (not kinds or kinds[i] is OutputKind.USER):
            yield node


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _find_latent(run: Inference) -> tuple[fx.Node, list[sympy.Symbol]]:
    """The latent, and its symbols that reach the output and do not number samples."""
    mixed = set().union(*(run.resolve(s.expr).free_symbols for s in run.mixed if s.symbolic))
    best: tuple[Any, ...] = ()
    for place, output in enumerate(_outputs(run)):
        sizes = [expr for expr in run.expressions(output) if expr is not None]
        reached: set[sympy.Basic] = set().union(*(expr.free_symbols for expr in sizes))
        for node in placeholders(run.graph):
            if run.program.kind_of(node) is not InputKind.USER or not _is_float(node):
                continue
            own = run.expressions(node)
            flows = [expr for expr in own if expr in reached]
            # a batch of one is not told apart by what it is flattened with
            alone = [own[0]] if len(flows) > 1 and run.shapes[node][0].value == 1 else []
            grid = [s for s in flows if s in mixed and s not in alone]
            grid = grid or [s for s in flows if s != own[0]]
            if not grid:
                continue
            shapes = [[size.value for size in run.shapes[n]] for n in (node, output)]
            alike = sum(one == two for one, two in zip(*shapes, strict=False))
            score = (bool(mixed & set(grid)), len(grid), -place, alike, len(flows))
            if not best or score > best[0]:
                best = (score, node, list(dict.fromkeys(grid)), set(alone) & mixed)
    if not best:
        raise AnalysisError(f"no input has dimensions that reach the output{_hint(run.misses)}")
    run.equal |= dict.fromkeys(best[3], sympy.Integer(1))
    return best[1], best[2]


def _groups(run: Inference, grid: Sequence[sympy.Symbol]) -> set[frozenset[sympy.Basic]]:
    """The sets of the latent's dimensions that are attended over together."""
    grids = [run.resolve(size.expr).free_symbols & set(grid) for size in run.mixed if size.symbolic]
    if not any(grids):
        exprs = [e for node in run.shapes for e in run.expressions(node) if e is not None]
        grids = [max((e.free_symbols & set(grid) for e in exprs), key=len)]
    return {frozenset(symbols) for symbols in grids if symbols}


def _cover(
    groups: set[frozenset[sympy.Basic]], grid: Sequence[sympy.Symbol]
) -> list[frozenset[sympy.Basic]]:
    """Disjoint groups that hold all of the latent's tokens between them, the largest first."""
    chosen: list[frozenset[sympy.Basic]] = []
    for group in sorted(groups, key=lambda g: (-len(g), sorted(map(str, g)))):
        if not any(group & other for other in chosen):
            chosen.append(group)
    return chosen


def _own(expr: sympy.Expr, grid: set[sympy.Basic]) -> tuple[sympy.Expr, bool]:
    """The latent's tokens among ``expr``, and whether samples or frames are folded in with them."""
    terms = [term for term in sympy.Add.make_args(sympy.expand(expr)) if term.free_symbols & grid]
    return sympy.Add(*terms), any(term.free_symbols - grid for term in terms)


def _axis(
    run: Inference,
    node: fx.Node,
    grid: Sequence[sympy.Symbol],
    groups: set[frozenset[sympy.Basic]],
) -> TokenAxis | None:
    """The token axis of ``node``: first what is purely tokens, then what most dimensions share."""
    found: list[tuple[Any, TokenAxis]] = []
    for dim, expr in enumerate(run.expressions(node)):
        group = frozenset() if expr is None else expr.free_symbols & set(grid)
        if group not in groups:
            continue
        own, folded = _own(expr, set(grid))
        role = "joint" if sympy.expand(own - expr) != 0 else "tokens"
        if len(grid) > len(group):  # parts of a sample's tokens treated apart
            inner = set(grid[-2:]) if len(grid) > 2 else set(grid)
            role = "spatial" if group <= inner else "temporal" if not group & inner else role
        found.append(((folded, -len(group), dim), TokenAxis(dim, expr, role)))
    found.sort(key=lambda item: item[0])
    if not found:
        return None
    first = found[0][1]
    return TokenAxis(first.dim, first.count, first.role, tuple(axis for _, axis in found[1:]))


def _count(
    axes: Mapping[fx.Node, TokenAxis], grid: Sequence[sympy.Symbol], group: frozenset[sympy.Basic]
) -> sympy.Expr | None:
    """The number of tokens of one sample that most values hold along ``group``."""
    votes: Counter[sympy.Expr] = Counter()
    for first in axes.values():
        for axis in (first, *first.others):
            own, _ = _own(axis.count, set(grid))
            if own.free_symbols & set(grid) == group:
                votes[own.subs(dict.fromkeys(own.free_symbols - set(grid), 1))] += 1
    return max(votes, key=lambda own: votes[own]) if votes else None


def _readable(
    run: Inference, latent: fx.Node, grid: Sequence[sympy.Symbol]
) -> dict[sympy.Basic, sympy.Symbol]:
    """Short names for the latent's symbols."""
    letters = {1: "N", 2: "HW", 3: "FHW", 4: "KFHW"}.get(len(grid), "")
    names = dict(zip(grid, letters, strict=False))
    rest = [s for s in run.expressions(latent) if s not in grid and s is not None and s.is_Symbol]
    names |= dict(zip(rest, "BC", strict=True)) if len(rest) == 2 else {}
    return {old: sympy.Symbol(new, integer=True, positive=True) for old, new in names.items()}


def _rename(axis: TokenAxis, names: Mapping[sympy.Basic, sympy.Symbol]) -> TokenAxis:
    others = tuple(_rename(other, names) for other in axis.others)
    return TokenAxis(axis.dim, axis.count.xreplace(names), axis.role, others)
