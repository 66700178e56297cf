"""How each operator is counted: a registry of formulas, and the formulas of torch's operators.

The conventions:

- One multiply-add counts as 2. Only the products of linear layers, matrix products, convolutions
  and attention are counted for those operators, not their bias or softmax, which is how
  ``torch.utils.flop_counter`` counts. Causal attention counts the unmasked scores alone.
- A pointwise operator counts 1 for each element of its result, transcendental functions included;
  a normalisation or softmax a few for each element of its input; moving data counts 0.
- An operator without a formula counts as pointwise.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import fx
from torch.utils import _pytree as pytree

from dit_compile import ops
from dit_compile.errors import AnalysisError
from dit_compile.ir.schema import argument
from dit_compile.kernels.attention import flash_attention
from dit_compile.kernels.packed import packed_linear

aten = torch.ops.aten

Flops = Callable[[fx.Node], sympy.Expr]
Reads = Callable[[fx.Node], Mapping[fx.Node, sympy.Expr]]


# --- sizes -----------------------------------------------------------------------------------


def tensors_of(value: Any) -> list[torch.Tensor]:
    """The tensors that the value of a node, or a fake value, consists of."""
    if isinstance(value, fx.Node):
        value = value.meta.get("val")
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def expression_of(size: int | torch.SymInt) -> sympy.Expr:
    """A size or stride as a sympy expression."""
    return size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(size)


def sizes_of(value: Any) -> list[sympy.Expr]:
    """Sizes of the first tensor of a node or fake value."""
    return [expression_of(size) for size in tensors_of(value)[0].shape]


def elements(value: Any) -> sympy.Expr:
    """Number of elements of the first tensor of a node or fake value."""
    return sympy.Mul(*sizes_of(value))


def stored_bytes(value: Any) -> sympy.Expr:
    """Bytes behind the tensors of a node or fake value; dimensions of stride 0 count once."""
    return sympy.Add(*map(_stored, tensors_of(value)))


def _stored(tensor: torch.Tensor) -> sympy.Expr:
    sizes = [expression_of(size) for size in tensor.shape]
    if tensor.layout is torch.strided:
        strides = map(expression_of, tensor.stride())
        sizes = [size for size, stride in zip(sizes, strides, strict=True) if stride != 0]
    return sympy.Mul(tensor.dtype.itemsize, *sizes)


# --- registry --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """How to count one operator.

    Attributes:
        flops: gives the floating-point operations of a node.
        reads: gives the bytes that a node reads of each of its tensor inputs.
        heavy: whether it runs at the device's peak rate and is not fused for free.
        known: whether this is a formula, or pointwise by torch's own tag, and not a guess.
    """

    flops: Flops
    reads: Reads
    heavy: bool = False
    known: bool = True


_RULES: dict[Any, Rule] = {}


def whole_inputs(node: fx.Node) -> dict[fx.Node, sympy.Expr]:
    """Bytes of each tensor input of ``node``, read whole and once."""
    return {source: stored_bytes(source) for source in node.all_input_nodes if tensors_of(source)}


def cost_of(
    *targets: Any, heavy: bool = False, reads: Reads = whole_inputs
) -> Callable[[Flops], Flops]:
    """Register the decorated function, from a node to its FLOPs, as the formula of operators.

    Args:
        targets: operators such as ``torch.ops.aten.linear.default`` or, for all overloads at once,
            ``torch.ops.aten.linear``. The formula of an overload goes before that of its packet.
        heavy: the operator multiplies matrices or the like, at the device's peak rate, and a
            compiler does not fuse it into its neighbours for free.
        reads: gives the bytes read of each input; by default inputs are read whole and once.

    Raises:
        AnalysisError: one of ``targets`` has a formula already.
    """

    def register(flops: Flops) -> Flops:
        for target in targets:
            if target in _RULES:
                raise AnalysisError(f"{target} has a cost formula already")
        _RULES.update({target: Rule(flops, reads, heavy) for target in targets})
        return flops

    return register


def rule_of(node: fx.Node) -> Rule:
    """The rule by which a call is counted; that of a pointwise operator where there is none.

    Raises:
        AnalysisError: ``node`` is not the call of a function, so its graph is not ATen.
    """
    if node.op != "call_function":
        raise AnalysisError(f"%{node.name} is a {node.op}; costs need a graph of ATen operators")
    target = node.target
    rule = _RULES.get(target) or _RULES.get(getattr(target, "overloadpacket", None))
    if rule is not None:
        return rule
    tagged = isinstance(target, torch._ops.OpOverload) and torch.Tag.pointwise in target.tags
    return Rule(_per_output(1), whole_inputs, known=tagged)


def is_view(node: fx.Node) -> bool:
    """Whether ``node`` only looks at (part of) its first input, so that no data move.

    ``contiguous`` and ``to`` do so if they change neither strides nor dtype nor device; ``reshape``
    is taken to be a view, as one that must copy is traced as ``clone`` and ``_unsafe_view``.
    """
    target = node.target
    if target in (operator.getitem, aten._unsafe_view.default):
        return True
    if not isinstance(target, torch._ops.OpOverload) or not tensors_of(node):
        return False
    if target is aten.einsum.default:
        return len(argument(node, "tensors")) == 1 and rule_of(node).flops(node) == 0
    if target.overloadpacket in (aten.contiguous, aten.to):
        before, after = tensors_of(node.all_input_nodes[0])[0], tensors_of(node)[0]
        same_place = before.dtype == after.dtype and before.device == after.device
        return same_place and _strides(before) == _strides(after)
    return target.is_view


def _strides(tensor: torch.Tensor) -> list[sympy.Expr]:
    return [expression_of(stride) for stride in tensor.stride()]


# --- formulas of families --------------------------------------------------------------------


def _per_output(count: int) -> Flops:
    return lambda node: count * sympy.Add(*(elements(tensor) for tensor in tensors_of(node)))


def _per_input(count: int) -> Flops:
    return lambda node: count * elements(next(filter(tensors_of, node.all_input_nodes)))


def _rows_read(node: fx.Node) -> dict[fx.Node, sympy.Expr]:
    """Of the table that rows are picked from as many bytes as the result has, the rest whole."""
    table = node.args[0]
    assert isinstance(table, fx.Node)
    return {**whole_inputs(node), table: stored_bytes(node)}


def _packets(names: str) -> list[torch._ops.OpOverloadPacket]:
    """Operators by name, without those that this torch does not have."""
    return [getattr(aten, name) for name in names.split() if hasattr(aten, name)]


def _family(flops: Flops, names: str, reads: Reads = whole_inputs) -> None:
    cost_of(*_packets(names), reads=reads)(flops)


_family(
    _per_output(0),
    "_to_copy arange cat clone constant_pad_nd contiguous copy empty empty_like flip full full_like"
    " index_put lift_fresh_copy new_empty new_full new_ones new_zeros one_hot ones ones_like pad"
    " pixel_shuffle pixel_unshuffle rand rand_like randn randn_like repeat repeat_interleave roll"
    " scalar_tensor scatter select_scatter slice_scatter stack to tril triu upsample_nearest2d"
    " upsample_nearest3d zeros zeros_like",
)
_family(_per_output(0), "embedding gather index index_select", reads=_rows_read)
_family(_per_output(1), "complex dropout glu masked_fill outer polar where")
_family(
    _per_input(1),
    "all amax amin any argmax argmin argsort cumsum linalg_vector_norm max mean min prod sort std"
    " sum topk var var_mean",
)
_family(_per_input(4), "_fused_rms_norm rms_norm")
_family(
    _per_input(5),
    "_log_softmax _softmax batch_norm group_norm layer_norm log_softmax native_group_norm"
    " native_layer_norm softmax",
)
cost_of(ops.gated_residual)(_per_output(2))
cost_of(ops.gated_residual_norm)(_per_input(10))
cost_of(ops.norm_rotary)(_per_input(8))


# --- formulas of heavy operators -------------------------------------------------------------


@cost_of(aten.linear, packed_linear, heavy=True)
def _linear(node: fx.Node) -> sympy.Expr:
    return 2 * elements(node) * sizes_of(argument(node, "weight"))[-1]


@cost_of(
    *_packets("mm bmm matmul mv dot _int_mm _scaled_mm _grouped_mm _scaled_grouped_mm"), heavy=True
)
def _matmul(node: fx.Node) -> sympy.Expr:
    return 2 * elements(node) * sizes_of(node.args[0])[-1]


@cost_of(aten.addmm, aten.baddbmm, aten.addmv, heavy=True)
def _add_matmul(node: fx.Node) -> sympy.Expr:
    return 2 * elements(node) * sizes_of(node.args[1])[-1]


@cost_of(aten.conv1d, aten.conv2d, aten.conv3d, heavy=True)
def _conv(node: fx.Node) -> sympy.Expr:
    # A weight is [out, in / groups, *kernel].
    return 2 * elements(node) * sympy.Mul(*sizes_of(argument(node, "weight"))[1:])


@cost_of(aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d, heavy=True)
def _conv_transpose(node: fx.Node) -> sympy.Expr:
    # A weight is [in, out / groups, *kernel]: each input element meets that much of it.
    per_input = sympy.Mul(*sizes_of(argument(node, "weight"))[1:])
    return 2 * elements(argument(node, "input")) * per_input


@cost_of(aten.convolution, heavy=True)
def _convolution(node: fx.Node) -> sympy.Expr:
    return _conv_transpose(node) if argument(node, "transposed") else _conv(node)


@cost_of(aten.scaled_dot_product_attention, flash_attention, heavy=True)
def _attention(node: fx.Node) -> sympy.Expr:
    # The result is [*batch, heads of the query, queries, value width], grouped heads broadcast.
    *outer, queries, value_width = sizes_of(node)
    keys, width = sizes_of(argument(node, "key"))[-2:]
    scores = queries * keys
    if node.target is not flash_attention and argument(node, "is_causal"):
        # Query i sees keys 0 to i; from the last key on, all of them.
        seen = sympy.Min(queries, keys)
        scores = seen * (seen + 1) / 2 + (queries - seen) * keys
    return 2 * sympy.Mul(*outer) * scores * (width + value_width)


@cost_of(aten.einsum, heavy=True)
def _einsum(node: fx.Node) -> sympy.Expr:
    equation, path = argument(node, "equation"), argument(node, "path")
    return einsum_flops(equation, [sizes_of(op) for op in argument(node, "tensors")], path)


def einsum_flops(
    equation: str, shapes: Sequence[Sequence[sympy.Expr]], path: Sequence[int] | None = None
) -> sympy.Expr:
    """FLOPs of an einsum of any number of operands, contracted two at a time.

    The order is that of ``path`` (pairs of positions; results go to the end), else from left to
    right. A pair costs 2 for each point of its iteration space if it sums over a shared label,
    else 1; a label that only one operand has, and nothing needs later, is summed first, at 1 for
    each element. Taking a diagonal and transposing cost nothing.
    """
    terms, output = _labels(equation.replace(" ", ""), [len(shape) for shape in shapes])
    size: dict[str, sympy.Expr] = {}
    for term, shape in zip(terms, shapes, strict=True):
        for label, length in zip(term, shape, strict=True):
            if size.get(label, 1) == 1:  # a size of 1 broadcasts
                size[label] = length

    def space(labels: Collection[str]) -> sympy.Expr:
        return sympy.Mul(*(size[label] for label in labels))

    operands = [set(term) for term in terms]
    if len(operands) == 1:
        return space(operands[0]) if operands[0] - set(output) else sympy.S.Zero
    flops = []
    steps = list(path) if path else [position for _ in operands[1:] for position in (0, 1)]
    for first, second in zip(steps[::2], steps[1::2], strict=True):
        later, earlier = max(first, second), min(first, second)
        right, left = operands.pop(later), operands.pop(earlier)
        needed = set(output).union(*operands)
        for own, other in ((left, right), (right, left)):
            if alone := own - other - needed:
                flops.append(space(own))
                own -= alone
        both = left | right
        flops.append((1 if both <= needed else 2) * space(both))
        operands.insert(len(operands) if path else 0, both & needed)
    return sympy.Add(*flops)


def _labels(equation: str, ranks: Sequence[int]) -> tuple[list[list[str]], list[str]]:
    """One label for each dimension of each operand, and those of the result.

    Dimensions under an ellipsis are named ``.1``, ``.2``, ... from the right, as they broadcast.
    """
    left, arrow, right = equation.partition("->")
    terms: list[list[str]] = []
    for term, rank in zip(left.split(","), ranks, strict=True):
        before, dots, after = term.partition("...")
        hidden = rank - len(before) - len(after) if dots else 0
        terms.append([*before, *(f".{i}" for i in range(hidden, 0, -1)), *after])
    every = [label for term in terms for label in term]
    shared = sorted({x for x in every if x[0] == "."}, key=lambda x: int(x[1:]), reverse=True)
    if not arrow:
        letters = {label for label in every if label[0] != "." and every.count(label) == 1}
        return terms, [*shared, *sorted(letters)]
    before, dots, after = right.partition("...")
    return terms, [*before, *(shared if dots else ()), *after]
