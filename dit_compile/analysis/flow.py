"""Dataflow of one graph: what its operators do to a stream of tokens, and who needs whom."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from functools import cached_property

import torch
from torch import fx

from dit_compile.ir.program import Binding, Program

#: One tensor in, the same elements out, perhaps laid out or rounded anew.
SAME_ELEMENTS = {
    "_to_copy", "_unsafe_view", "alias", "clamp", "clone", "contiguous", "detach", "dropout",
    "feature_dropout", "flatten", "lift_fresh_copy", "movedim", "nan_to_num", "native_dropout",
    "permute", "reshape", "squeeze", "swapaxes", "t", "to", "transpose", "type_as", "unflatten",
    "unsqueeze", "view", "view_as",
}  # fmt: skip
#: Elements are picked, repeated or put side by side, none is computed.
_MOVES = SAME_ELEMENTS | {
    "cat", "chunk", "concat", "constant_pad_nd", "expand", "expand_as", "flip", "gather",
    "getitem", "index", "index_copy", "index_put", "index_select", "masked_scatter", "narrow",
    "pad", "repeat", "repeat_interleave", "roll", "scatter", "select", "select_scatter", "slice",
    "slice_scatter", "split", "split_with_sizes", "stack", "tensor_split", "tile", "unbind",
    "where",
}  # fmt: skip
#: Of these only some arguments carry elements; the others are positions.
_CARRYING = {
    "gather": (0,), "index": (0,), "index_select": (0,), "index_copy": (0, 3), "index_put": (0, 2),
    "masked_scatter": (0, 2), "scatter": (0, 3), "where": (1, 2),
}  # fmt: skip
#: The second argument says which shape or dtype is wanted; its elements are not read.
_LIKE_SECOND = {"expand_as", "reshape_as", "type_as", "view_as"}
#: Only the shape or dtype of the arguments is read.
_LIKE_ALL = {
    "empty_like", "full_like", "new_empty", "new_full", "new_ones", "new_zeros", "ones_like",
    "rand_like", "randn_like", "sym_numel", "sym_size", "sym_stride", "zeros_like",
}  # fmt: skip
NORMS = {
    "adaln_norm", "batch_norm", "group_norm", "instance_norm", "layer_norm",
    "native_group_norm", "native_layer_norm", "rms_norm",
}  # fmt: skip
_PRODUCTS = {"baddbmm", "bmm", "einsum", "linear", "matmul", "mm"}
_HEAVY = _PRODUCTS | {
    "_grouped_mm", "_int_mm", "_scaled_grouped_mm", "_scaled_mm", "addbmm", "addmm", "bilinear",
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "convolution",
}  # fmt: skip
NONLINEAR = {
    "celu", "elu", "erf", "gelu", "glu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu",
    "mish", "pow", "prelu", "relu", "relu6", "selu", "sigmoid", "silu", "softplus", "square",
    "tanh",
}  # fmt: skip


def op_name(node: fx.Node) -> str:
    """The operator's name without namespace and overload, ``""`` if ``node`` calls none."""
    if node.op != "call_function":
        return ""
    packet = getattr(node.target, "overloadpacket", node.target)
    return str(getattr(packet, "__name__", ""))


def is_fused_attention(node: fx.Node) -> bool:
    """Whether ``node`` is a whole attention: query, key and value lead its arguments."""
    name = op_name(node).lstrip("_")
    return name.startswith("scaled_dot_product") or name == "flex_attention"


def is_heavy(node: fx.Node) -> bool:
    """Whether ``node`` is a matrix product, a convolution or an attention."""
    if op_name(node) in _HEAVY or is_fused_attention(node):
        return True
    if op_name(node) in NORMS:
        return False
    # An operator that is not torch's own counts when it contracts with a matrix of weights.
    namespace = getattr(node.target, "namespace", "aten")
    return namespace not in {"aten", "prims"} and any(
        arg.op == "placeholder" and len(sizes(arg)) > 1 for arg in node.all_input_nodes
    )


def is_move(node: fx.Node) -> bool:
    """Whether ``node`` picks, repeats or lays out elements and computes none."""
    return op_name(node) in _MOVES


def sizes(node: fx.Node) -> tuple[Hashable, ...]:
    """Sizes of the node's tensor, symbols as expressions, so that comparing them adds no guard."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return ()
    return tuple(size if isinstance(size, int) else size.node.expr for size in value.shape)


def same_shape(left: fx.Node, right: fx.Node) -> bool:
    """Whether two tensors have the same shape as far as numbers tell; symbols may be equal."""
    a, b = sizes(left), sizes(right)
    return len(a) == len(b) and all(
        x == y or not (isinstance(x, int) or isinstance(y, int)) for x, y in zip(a, b, strict=True)
    )


def read_by(node: fx.Node) -> list[fx.Node]:
    """The arguments whose elements ``node`` reads; not those of which it takes the shape alone."""
    if not node.all_input_nodes or op_name(node) in _LIKE_ALL:
        return []
    return node.all_input_nodes[:1] if op_name(node) in _LIKE_SECOND else node.all_input_nodes


def carriers(node: fx.Node) -> list[fx.Node]:
    """The arguments whose elements go on in ``node`` one by one: what a stream flows through."""
    name = op_name(node)
    if name in _CARRYING:
        picked = [node.args[at] for at in _CARRYING[name] if at < len(node.args)]
        return [arg for arg in picked if isinstance(arg, fx.Node)]
    if name in _MOVES:
        return read_by(node)
    if name in NORMS:
        return node.all_input_nodes[:1]
    if is_heavy(node) or not sizes(node):
        return []
    return [arg for arg in read_by(node) if same_shape(arg, node)]


def is_copy(node: fx.Node) -> bool:
    """Whether ``node`` only lays out, rounds or scales its one argument."""
    if op_name(node) in {"mul", "div"}:
        return len(node.all_input_nodes) == 1 and node.args[0] is node.all_input_nodes[0]
    return op_name(node) in SAME_ELEMENTS and bool(node.all_input_nodes)


class Flow:
    """Who depends on whom in one graph, as sets of bits, one for each node that is not dead."""

    def __init__(self, program: Program, graph: fx.Graph) -> None:
        self.nodes = _live(graph)
        self.at = {node: i for i, node in enumerate(self.nodes)}
        self.before: list[int] = []  # the node and all it depends on
        self.after = [1 << i for i in range(len(self.nodes))]  # it and all that depends on it
        reads = [[self.at[arg] for arg in read_by(node)] for node in self.nodes]
        for i, args in enumerate(reads):
            bits = 1 << i
            for arg in args:
                bits |= self.before[arg]
            self.before.append(bits)
        for i in range(len(self.nodes) - 1, -1, -1):
            for arg in reads[i]:
                self.after[arg] |= self.after[i]
        self.heavy = self.bits(filter(is_heavy, self.nodes))
        inputs = [node for node in self.nodes if node.op == "placeholder"]
        self._given = self.bits(node for node in inputs if not _is_weight(program, node))

    def bits(self, nodes: Iterable[fx.Node]) -> int:
        """The set of ``nodes``."""
        bits = 0
        for node in nodes:
            bits |= 1 << self.at[node]
        return bits

    def members(self, bits: int) -> Iterator[fx.Node]:
        """The nodes of a set, in order."""
        while bits:
            low = bits & -bits
            yield self.nodes[low.bit_length() - 1]
            bits ^= low

    def has(self, bits: int, node: fx.Node) -> bool:
        """Whether ``node`` is in the set ``bits``."""
        return bool(bits >> self.at[node] & 1)

    def users(self, node: fx.Node) -> list[fx.Node]:
        """The users of ``node`` that are not dead."""
        return [user for user in node.users if user in self.at]

    def depends(self, node: fx.Node, source: fx.Node) -> bool:
        """Whether ``node`` is ``source`` or is computed from it."""
        return self.has(self.before[self.at[node]], source)

    def between(self, source: fx.Node, node: fx.Node) -> int:
        """The nodes on the ways from ``source``, left out, to ``node``."""
        return self.after[self.at[source]] & self.before[self.at[node]] & ~(1 << self.at[source])

    def varies(self, node: fx.Node) -> bool:
        """Whether ``node`` depends on more than the weights."""
        return bool(self.before[self.at[node]] & self._given)

    @cached_property
    def cores(self) -> dict[fx.Node, tuple[fx.Node, ...]]:
        """Each attention's last node, with what it mixes: key and value, or all three operands.

        An attention written out is a product of two values that are no weights, one of which comes
        from another such product with no weights in between; with a softmax or, as in linear
        attention, without.
        """
        found: dict[fx.Node, tuple[fx.Node, ...]] = {}
        products: dict[fx.Node, frozenset[fx.Node]] = {}  # products of values that reach a node
        for node in self.nodes:
            if is_fused_attention(node):
                found[node] = tuple(arg for arg in node.args[1:3] if isinstance(arg, fx.Node))
                continue
            args = _factors(node)
            reached = frozenset[fx.Node]().union(*(products.get(arg, ()) for arg in args))
            if op_name(node) in _PRODUCTS and sum(map(self.varies, args)) >= 2:
                for inner in reached:
                    others = [arg for arg in args if inner not in products.get(arg, ())]
                    found[node] = (*others, *_factors(inner))
                products[node] = frozenset({node})
            elif reached and not is_heavy(node):
                products[node] = reached
        return found

    @cached_property
    def core_bits(self) -> int:
        """The set of :attr:`cores`."""
        return self.bits(self.cores)


def _factors(node: fx.Node) -> list[fx.Node]:
    """The arguments of a product without what is added to it, of any other node all."""
    if op_name(node) in {"addbmm", "addmm", "baddbmm"}:
        return [arg for arg in node.args[1:3] if isinstance(arg, fx.Node)]
    return node.all_input_nodes


def _live(graph: fx.Graph) -> list[fx.Node]:
    """The nodes that the outputs need, in order."""
    needed = set(graph.find_nodes(op="output"))
    for node in reversed(graph.nodes):
        if node in needed:
            needed.update(node.all_input_nodes)
    return [node for node in graph.nodes if node in needed]


def _is_weight(program: Program, node: fx.Node) -> bool:
    spec = program.inputs.get(str(node.target))
    return spec is not None and spec.binding is Binding.WEIGHT
