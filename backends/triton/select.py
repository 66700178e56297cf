"""Where a kernel takes the place of an operator."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch._prims_common import make_contiguous_strides_for
from torch.utils._triton import has_triton_package

from dit_compile import ops
from dit_compile.ir.fake import device_types, leaves, same_size
from dit_compile.ir.program import Program

#: The fusions into operators that have a kernel.
PASSES = "fuse-gated-residual,fuse-norm-rotary"

#: Channels of the widest row that one program instance works on.
_MAX_CHANNELS = 16384
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def has_kernels(program: Program) -> bool:
    """Whether ``program`` runs on a GPU that the kernels are for, and needs no derivative."""
    on_gpu = "cuda" in device_types(program.main.nodes)
    return on_gpu and not program.training and torch.version.hip is None and has_triton_package()


def use_kernels(graph: fx.Graph) -> int:
    """Let kernels take the place of ``ditc::`` operators on a GPU.

    Args:
        graph: changed in place; nodes carry fake values.

    Returns:
        How many operators were replaced.
    """
    importlib.import_module("dit_compile.backends.triton.operators")  # it needs Triton
    count = 0
    for target, arguments in _ARGUMENTS.items():
        for node in graph.find_nodes(op="call_function", target=target):
            given = arguments(node) if _is_supported(node) else None
            if given is None:
                continue
            with graph.inserting_before(node):
                kernel = getattr(torch.ops.ditc_triton, target._schema.name.partition("::")[2])
                made = graph.call_function(kernel.default, given)
            made.meta = dict(node.meta)
            node.replace_all_uses_with(made, propagate_meta=False)
            graph.erase_node(node)
            count += 1
    return count


def _is_supported(node: fx.Node) -> bool:
    """Whether all tensors are on one GPU, in a usual dtype, with rows of a known width."""
    tensors = [arg.meta["val"] for arg in node.all_input_nodes]
    return (
        {tensor.device.type for tensor in tensors} == {"cuda"}
        and {tensor.dtype for tensor in tensors} <= set(_DTYPES)
        and _is_narrow(tensors[0].shape[-1])
    )


def _with_contiguous_results(node: fx.Node) -> tuple[Any, ...] | None:
    results = [leaf for leaf in leaves(node.meta["val"]) if isinstance(leaf, torch.Tensor)]
    eps = 4 if node.target is ops.adaln_norm else 6
    args = node.args if len(node.args) == eps else (*node.args, 1e-5)
    return args if all(map(_is_contiguous, results)) else None


def _norm_rotary(node: fx.Node) -> tuple[Any, ...] | None:
    source: Any = node.args[0]
    x, out = source.meta["val"], node.meta["val"]
    across_heads = node.args[7]
    if across_heads and not _is_narrow(x.shape[-2] * x.shape[-1]):
        return None
    if _is_contiguous(out):
        return (*node.args, True)
    as_x = x.dim() <= 4 and all(map(same_size, torch.empty_like(x).stride(), out.stride()))
    return (*node.args, False) if as_x else None


def _is_narrow(channels: Any) -> bool:
    return isinstance(channels, int) and channels <= _MAX_CHANNELS


def _is_contiguous(value: torch.Tensor) -> bool:
    return all(map(same_size, value.stride(), make_contiguous_strides_for(value.shape)))


#: The arguments of the kernel's operator, or none where it would give another layout.
_ARGUMENTS: dict[Any, Callable[[fx.Node], tuple[Any, ...] | None]] = {
    ops.adaln_norm: _with_contiguous_results,
    ops.gated_residual_norm: _with_contiguous_results,
    ops.norm_rotary: _norm_rotary,
}
