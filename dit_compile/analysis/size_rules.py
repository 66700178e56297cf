"""How each operator turns the sizes of its arguments into those of its results."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import sympy
import torch

from dit_compile.analysis.sizes import (
    Call,
    Inference,
    Miss,
    Shape,
    Size,
    const,
    cut,
    divide,
    is_shape,
    product,
    regroup,
    size_rule,
    total,
    unknown,
)


@size_rule("*", "__and__", "__or__", "__xor__", "polar", "fill", "prelu", "where")
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
    "ditc::adaln_norm",
    "ditc::gated_residual",
    "ditc::gated_residual_norm",
    "ditc::norm_rotary",
)
def _same(run: Inference, call: Call) -> Shape:
    return call.first


@size_rule("keepdim")
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
