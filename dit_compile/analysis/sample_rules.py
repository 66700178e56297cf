"""Where each operator leaves the samples of its arguments, and which operators mix them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dit_compile.analysis.samples import Call, MixedError, Value, joined, sample_rule


@sample_rule("*", "__and__", "__or__", "__xor__", "polar", "fill", "prelu", "where")
def _pointwise(call: Call) -> int:
    return joined(call.values)


@sample_rule(
    "ditc::adaln_norm", "ditc::gated_residual", "ditc::gated_residual_norm", "ditc::norm_rotary"
)
def _along_the_last(call: Call) -> int:
    return call.apart(joined(call.values), -1)


@sample_rule(
    "_to_copy", "to", "contiguous", "clone", "alias", "detach", "lift_fresh", "dropout",
    "zeros_like", "ones_like", "full_like", "empty_like",
)  # fmt: skip
def _same(call: Call) -> int:
    return call.own()


@sample_rule("type_as")
def _as_type(call: Call) -> int | None:
    return call.first.dim


@sample_rule("softmax", "_softmax", "log_softmax", "cumsum", "cumprod", "sort", "argsort")
def _along_one(call: Call) -> int:
    return call.apart(call.own(), call.dimension())


@sample_rule("flip", "roll")
def _along_several(call: Call) -> int:
    dims = call["dims"] if call["dims"] else range(len(call.first.shape))
    return call.apart(call.own(), *(dim % len(call.first.shape) for dim in dims))


@sample_rule("layer_norm", "rms_norm")
def _norm(call: Call) -> int:
    rank = len(call.first.shape)
    return call.apart(call.own(), *range(rank - len(call["normalized_shape"]), rank))


@sample_rule("keepdim")
def _reduce(call: Call) -> int:
    rank = len(call.first.shape)
    dims = call["dim"] if isinstance(call["dim"], Sequence) else [call["dim"]]
    gone = {dim % rank for dim in dims if dim is not None} or set(range(rank))
    dim = call.apart(call.own(), *gone)
    return dim if call["keepdim"] else dim - sum(each < dim for each in gone)


@sample_rule("view", "reshape", "_unsafe_view", "flatten", "unflatten", "view_as", "reshape_as")
def _view(call: Call) -> int:
    value = call.values[0]
    if value.dim is None:
        raise MixedError("its samples are in an argument that works on all of them")
    before = value.shape[: value.dim]
    for dim, size in enumerate(call.shape):
        ahead = call.shape[:dim]
        if not all(isinstance(each, int) for each in (*before, *ahead, size)):
            break
        if math.prod(ahead) == math.prod(before) and int(size) % call.batch == 0:
            return dim
    raise MixedError("it folds other dimensions in front of the samples, or splits them")


@sample_rule("permute")
def _permute(call: Call) -> int:
    rank = len(call.first.shape)
    order = [int(dim) % rank for dim in call["dims"]]
    return order.index(call.own())


@sample_rule("transpose", "swapaxes", "t", "numpy_T")
def _transpose(call: Call) -> int:
    dim, rank = call.own(), len(call.first.shape)
    if "dim0" not in call.args:
        return rank - 1 - dim
    one, two = int(call["dim0"]) % rank, int(call["dim1"]) % rank
    return {one: two, two: one}.get(dim, dim)


@sample_rule("unsqueeze")
def _unsqueeze(call: Call) -> int:
    dim = call.own()
    return dim + (call.dimension(extra=1) <= dim)


@sample_rule("squeeze")
def _squeeze(call: Call) -> int:
    dim, shape = call.own(), call.first.shape
    dims = call.args.get("dim", range(len(shape)))
    dims = dims if isinstance(dims, Sequence) else [dims]
    gone = {int(d) % len(shape) for d in dims if shape[d] == 1}
    return dim - sum(each < dim for each in gone)


@sample_rule("expand", "expand_as", "broadcast_to", spreads=True)
def _expand(call: Call) -> int | None:
    if call.first.dim is not None:
        return call.first.end
    return 0 if _is_spread(call) else None


@sample_rule(
    "full", "zeros", "ones", "new_full", "new_zeros", "new_ones", spreads=True
)  # fmt: skip
def _filled(call: Call) -> int | None:
    return 0 if _is_batch(call) else None


def _is_spread(call: Call) -> bool:
    """Whether the result repeats one value as often as there are samples, whatever that numbers."""
    missing = len(call.first.shape) < len(call.shape) or call.first.shape[0] == 1
    return missing and _is_batch(call)


def _is_batch(call: Call) -> bool:
    return bool(call.shape) and isinstance(call.shape[0], int) and call.shape[0] == call.batch


@sample_rule("repeat", "tile", spreads=True)
def _repeat(call: Call) -> int | None:
    if call.first.dim is None:
        return 0 if _is_spread(call) else None
    times = list(call["repeats"] if "repeats" in call.args else call["dims"])
    rank = len(call.first.shape)
    times = [*[1] * (rank - len(times)), *times]
    dim = call.own() + len(times) - rank
    if times[dim] != 1:
        raise MixedError("it repeats the samples")
    return dim


@sample_rule("repeat_interleave")
def _interleave(call: Call) -> int:
    if call["dim"] is None and len(call.first.shape) > 1:
        raise MixedError("it flattens the samples")
    return call.own()


@sample_rule("select", "unbind")
def _select(call: Call) -> int:
    dim, gone = call.own(), call.dimension()
    return call.apart(dim, gone) - (gone < dim)


@sample_rule("slice", "narrow")
def _slice(call: Call) -> int:
    dim = call.own()
    whole = call["start"] in (0, None) and call.shape == call.first.shape
    return dim if whole else call.apart(dim, call.dimension())


@sample_rule("split", "split_with_sizes", "chunk", "tensor_split")
def _split(call: Call) -> int:
    return call.apart(call.own(), call.dimension())


@sample_rule("constant_pad_nd", "pad")
def _pad(call: Call) -> int:
    rank = len(call.first.shape)
    return call.apart(call.own(), *range(rank - len(call["pad"]) // 2, rank))


@sample_rule("stack")
def _stack(call: Call) -> int:
    dim = joined(_alike(call)) + len(call.first.shape)
    return dim + (call.dimension(extra=1) <= dim)


@sample_rule("cat", "concat", "concatenate")
def _cat(call: Call) -> int:
    values = [value for value in _alike(call) if value.shape != (0,)]
    rank = len(values[0].shape)
    return call.apart(joined(values) + rank, call["dim"] % rank)


def _alike(call: Call) -> Sequence[Value]:
    """The tensors that are put together; without samples of their own they would be too few."""
    values: Sequence[Value] = call["tensors"]
    if any(value.dim is None and value.shape != (0,) for value in values):
        raise MixedError("it puts values with samples next to values without")
    return values


@sample_rule("linear")
def _linear(call: Call) -> int:
    return call.apart(call.own(), len(call.first.shape) - 1)


@sample_rule("addmm", "baddbmm")
def _add_product(call: Call) -> int:
    values = call.values
    return joined([Value(call.shape, _product(values[-2:]) % len(call.shape)), values[0]])


@sample_rule("matmul", "mm", "bmm")
def _matmul(call: Call) -> int:
    return _product(call.values)


def _product(values: Sequence[Value]) -> int:
    """The samples of a matrix product, from the end: in its rows, its columns or in front."""
    left, right = values
    if len(left.shape) < 2 or len(right.shape) < 2:
        raise MixedError("it is a product with a vector")
    if (left.end, right.end) == (-2, None):
        return -2
    if (left.end, right.end) == (None, -1):
        return -1
    if any(value.end in (-1, -2) for value in values):
        raise MixedError("it sums over the samples, or multiplies each with every other")
    return joined([Value(value.shape[:-2], value.dim) for value in values]) - 2


@sample_rule("scaled_dot_product_attention")
def _attention(call: Call) -> int:
    return call.apart(joined(call.values), -1, -2)


@sample_rule(
    "conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d",
    "conv_transpose3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool2d",
    "adaptive_avg_pool2d", "_adaptive_avg_pool2d", "interpolate", "upsample_nearest1d",
    "upsample_nearest2d", "upsample_nearest3d", "upsample_bilinear2d", "pixel_shuffle",
    "pixel_unshuffle", "group_norm", "instance_norm",
)  # fmt: skip
def _maps(call: Call) -> int:
    """Operators on maps number them by the first dimension."""
    if call.own() != 0:
        raise MixedError("its samples are among channels or places")
    return 0


@sample_rule("embedding")
def _embedding(call: Call) -> int:
    call.plain(call["weight"])
    return int(call["indices"].dim)


@sample_rule("one_hot", "view_as_real")
def _appended(call: Call) -> int:
    return call.own()


@sample_rule("view_as_complex")
def _complex(call: Call) -> int:
    return call.apart(call.own(), len(call.first.shape) - 1)


@sample_rule("index_select")
def _index_select(call: Call) -> int:
    return call.apart(call.own(), call.dimension())


@sample_rule("gather", "take_along_dim")
def _gather(call: Call) -> int:
    values = call.values
    if len({value.dim for value in values}) != 1 or values[0].dim is None:
        raise MixedError("it picks from a value that others share")
    return call.apart(values[0].dim, call.dimension())


@sample_rule("index")
def _index(call: Call) -> int:
    table, indices = call["self"], call["indices"]
    given = [index for index in indices if index is not None]
    at = [dim for dim, index in enumerate(indices) if index is not None]
    if table.dim is None and at == [0]:
        return int(given[0].dim)
    if table.dim is not None and table.dim < at[0]:
        call.plain(*given)
        return int(table.dim)
    raise MixedError("it picks among the samples")


@sample_rule("slice_scatter", "select_scatter")
def _scatter(call: Call) -> int:
    dim = call.dimension()
    source = call["src"]
    moved = source.dim is not None and len(source.shape) < len(call.first.shape)
    if call.first.dim is None or source.dim is None:
        raise MixedError("it puts values with samples next to values without")
    shifted = source.dim + (moved and dim <= source.dim)
    if shifted != call.first.dim:
        raise MixedError("the samples of its arguments lie along different dimensions")
    return call.apart(call.first.dim, dim)


@sample_rule("outer", "ger")
def _outer(call: Call) -> int:
    left, right = call.values
    if left.dim is not None and right.dim is not None:
        raise MixedError("it multiplies each sample with every other")
    return 0 if left.dim is not None else 1


@sample_rule("einsum")
def _einsum(call: Call) -> int:
    terms, arrow, result = call["equation"].replace(" ", "").partition("->")
    if "." in terms or not arrow:
        raise MixedError("its equation does not name all dimensions")
    pairs = list(zip(terms.split(","), call["tensors"], strict=True))
    labels = {term[value.dim] for term, value in pairs if value.dim is not None}
    if len(labels) != 1 or not labels <= set(result):
        raise MixedError("it sums over the samples, or multiplies each with every other")
    (label,) = labels
    if any(label in term and value.dim is None for term, value in pairs):
        raise MixedError("an argument without samples has a size where others have samples")
    return int(result.index(label))
