"""Fake values: what each node's result looks like, and how to compute it for a new node."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import sympy
import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols, statically_known_true
from torch.utils import _pytree as pytree
from torch.utils._sympy.functions import FloorDiv
from torch.utils._sympy.solve import try_solve
from torch.utils._sympy.symbol import SymT, symbol_is_type

from dit_compile.errors import VerificationError


def value_of(node: fx.Node) -> Any:
    """The fake value of ``node``.

    Raises:
        VerificationError: the node carries none.
    """
    try:
        return node.meta["val"]
    except KeyError:
        raise VerificationError(
            f"node %{node.name} has no fake value; make nodes with Rewriter.call"
        ) from None


def tensor_of(node: fx.Node) -> FakeTensor:
    """The fake tensor of a node that yields exactly one tensor."""
    value = value_of(node)
    if not isinstance(value, torch.Tensor):
        raise VerificationError(f"node %{node.name} does not yield a tensor but {type(value)}")
    return value  # type: ignore[return-value]


def fake_arguments(node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """``node``'s arguments with nodes replaced by their fake values."""
    args = fx.map_arg(node.args, value_of)
    kwargs = fx.map_arg(node.kwargs, value_of)
    return tuple(args), dict(kwargs)


def evaluate(node: fx.Node, mode: FakeTensorMode) -> Any:
    """Run ``node``'s operator on its arguments' fake values and return the fake result."""
    args, kwargs = fake_arguments(node)
    sizes = mode.shape_env
    minting = sizes.ignore_fresh_unbacked_symbols() if sizes else contextlib.nullcontext()
    plain = torch._C._DisableAutocast()  # casts are operators of the graph
    with mode, minting, plain, enable_python_dispatcher(), torch.no_grad():
        return node.target(*args, **kwargs)  # type: ignore[operator]


def leaves(value: Any) -> Iterator[Any]:
    """The tensors and numbers of a node's value in order."""
    yield from pytree.tree_leaves(value)


def device_types(nodes: Iterable[fx.Node]) -> set[str]:
    """``cpu``, ``cuda`` and so on, of all tensors among the values of ``nodes``."""
    values = (leaf for node in nodes for leaf in leaves(node.meta.get("val")))
    return {value.device.type for value in values if isinstance(value, torch.Tensor)}


def same_size(left: Any, right: Any) -> bool:
    """Whether two sizes are equal for every binding of the symbols, without adding a guard.

    Sizes that only the data tells (the number of nonzero elements) get a new symbol each time an
    operator is evaluated, so two such symbols are taken to be equal.
    """
    if isinstance(left, int) and isinstance(right, int):
        return left == right
    if _is_told_by_data(left) and _is_told_by_data(right):
        return True
    return bool(statically_known_true(left == right)) or _settled(left) == _settled(right)


def _settled(size: Any) -> Any:
    """A size as an expression, with the numbers that guards have settled parts of it to be.

    Torch puts in what a guard says of a symbol, but not what it says of a quotient: after
    ``32*(h//2) == 384`` it knows that ``h//2 == 12``, and not that ``(h//2)*w == 12*w``.
    """
    if isinstance(size, int):
        return size
    expression, unknown = size.node.expr, sympy.Dummy(integer=True)
    for guard in size.node.shape_env.guards:
        if isinstance(guard.expr, sympy.Eq):
            for part in guard.expr.atoms(FloorDiv) & expression.atoms(FloorDiv):
                solved = try_solve(guard.expr.xreplace({part: unknown}), unknown)
                if solved is not None and solved[1].is_Integer:
                    expression = expression.xreplace({part: solved[1]})
    return expression


def unify_sizes(dropped: fx.Node, kept: fx.Node, mode: FakeTensorMode) -> None:
    """Let ``kept``'s symbols for sizes that only the data tells stand for those of ``dropped``.

    Both compute the same from the same, so their sizes are equal whatever the data.
    """
    if mode.shape_env is None:
        return
    for old, new in zip(leaves(value_of(dropped)), leaves(value_of(kept)), strict=True):
        olds, news = (v.shape if isinstance(v, torch.Tensor) else (v,) for v in (old, new))
        for left, right in zip(olds, news, strict=True):
            if _is_told_by_data(left) and left.node.expr != _expression(right):
                mode.shape_env._eliminate_unbacked(left.node.expr, _expression(right))


def _expression(size: Any) -> sympy.Expr:
    return size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(size)


def _is_told_by_data(size: Any) -> bool:
    if not isinstance(size, torch.SymInt):
        return False
    symbol = size.node.expr
    return bool(symbol.is_Symbol) and symbol_is_type(symbol, SymT.UNBACKED_INT)


def describe(value: Any) -> str:
    """``bf16[2,4096,1152]`` for a tensor, the type's name otherwise."""
    if isinstance(value, torch.Tensor):
        sizes = ",".join(str(size) for size in value.shape)
        return f"{dtype_name(value.dtype)}[{sizes}]"
    if isinstance(value, (list, tuple)):
        return "(" + ", ".join(describe(item) for item in value) + ")"
    return type(value).__name__


_SHORT = {
    torch.float32: "f32",
    torch.float64: "f64",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "b8",
    torch.complex64: "c64",
    torch.complex128: "c128",
}


def dtype_name(dtype: torch.dtype) -> str:
    """Short name of a dtype, as printed in the IR."""
    return _SHORT.get(dtype, str(dtype).removeprefix("torch."))


def disagreement(node: fx.Node, actual: Any) -> str | None:
    """Say how the fake value of ``node`` differs from what its operator gave; ``None`` if it fits.

    The operator mints a symbol where only the data tells a size. What the graph claims of such a
    size was learned from what came after it, and is not contradicted by a new symbol.
    """
    wrong = mismatch(node.meta["val"], actual)
    if wrong is None:
        return None
    known = free_unbacked_symbols(list(_symbolic(fake_arguments(node))))
    minted = free_unbacked_symbols(list(_symbolic(actual))) - known
    return mismatch(node.meta["val"], actual, minted) if minted else wrong


def _symbolic(value: Any) -> Iterator[Any]:
    kinds = (torch.Tensor, torch.SymInt, torch.SymFloat, torch.SymBool)
    yield from (leaf for leaf in leaves(value) if isinstance(leaf, kinds))


def mismatch(expected: Any, actual: Any, free: Collection[sympy.Symbol] = ()) -> str | None:
    """Say how two fake values differ in structure, shape, dtype or device; ``None`` if they agree.

    Strides are not compared: a backend is free to choose the layout of intermediate values. Sizes
    of ``actual`` in the symbols ``free`` may be anything.
    """

    def fits(want: Any, have: Any) -> bool:
        named = have.node.expr.free_symbols if isinstance(have, torch.SymInt) else set()
        return not named.isdisjoint(free) or same_size(want, have)

    left, right = list(leaves(expected)), list(leaves(actual))
    if len(left) != len(right):
        return f"{len(right)} results, not {len(left)}"
    for want, have in zip(left, right, strict=True):
        if isinstance(want, torch.Tensor) != isinstance(have, torch.Tensor):
            return f"a {type(have).__name__}, not a {type(want).__name__}"
        if not isinstance(want, torch.Tensor):
            continue
        if want.dtype != have.dtype:
            return f"dtype {dtype_name(have.dtype)}, not {dtype_name(want.dtype)}"
        if want.device != have.device:
            return f"device {have.device}, not {want.device}"
        if want.dim() != have.dim() or not all(map(fits, want.shape, have.shape)):
            return f"shape {describe(have)}, not {describe(want)}"
    return None


def same_laziness(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether two tensors must be read alike."""
    return left.is_conj() == right.is_conj() and left.is_neg() == right.is_neg()


def is_operator(node: fx.Node) -> bool:
    """Whether ``node`` computes something; picking one of several results does not."""
    return node.op == "call_function" and not is_getitem(node)


def is_getitem(node: fx.Node) -> bool:
    """Whether ``node`` picks one result of an operator with several."""
    return node.op == "call_function" and node.target is operator.getitem
