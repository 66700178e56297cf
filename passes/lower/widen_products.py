"""Multiply in float32 where the processor has no instructions for half precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from dit_compile.analysis.measured import Ways, speedup_of
from dit_compile.ir.fake import dtype_name
from dit_compile.ir.program import Program
from dit_compile.pipeline.base import Kind, Pass
from dit_compile.pipeline.rewriter import Rewriter

aten = torch.ops.aten

_HALF = (torch.bfloat16, torch.float16)

#: Operators and the shapes on which they are measured.
_PROBES: dict[Any, tuple[tuple[int, ...], ...]] = {
    aten.linear.default: ((256, 512), (512, 512)),
    aten.matmul.default: ((256, 512), (512, 512)),
    aten.mm.default: ((256, 512), (512, 512)),
    aten.bmm.default: ((4, 256, 128), (4, 128, 256)),
    aten.conv2d.default: ((2, 16, 32, 32), (256, 16, 2, 2)),
    aten.conv3d.default: ((1, 16, 2, 32, 32), (256, 16, 1, 2, 2)),
}


@dataclass(frozen=True, kw_only=True)
class WidenProducts(Pass):
    """Multiply in float32 where the processor has no instructions for half precision.

    Before:  %y = aten.linear(%x, @w, @b)                                        : bf16
    After:   %y = aten.to(aten.linear(aten.to(%x, f32), aten.to(@w, f32), ...), bf16)
    Fires only if: on a CPU, and the operator was measured to be ``min_speedup`` times as fast that
    way. torch's own half-precision products sum in float32 as well, so only rounding moves.

    Attributes:
        min_speedup: how much faster a product must be by way of float32, casts included.
    """

    name: ClassVar[str] = "widen-products"
    kind: ClassVar[Kind] = Kind.EXACT
    min_speedup: float = 1.5

    def run(self, program: Program, rw: Rewriter) -> None:
        """Put casts around the products of all graphs, those that run ahead of the steps too."""
        for name, module in program.graphs.items():
            rw.graph_name = name
            for node in list(module.graph.nodes):
                if node.target not in _PROBES or not _is_half_on_cpu(node):
                    continue
                gain = speedup(node.target, node.meta["val"].dtype)
                if gain >= self.min_speedup:
                    _widen(node, rw)
                else:
                    rw.miss(node, f"by way of float32 it is {gain:.1f}x as fast")


def _widen(node: fx.Node, rw: Rewriter) -> None:
    rw.begin(node)

    def cast(value: fx.Node, dtype: torch.dtype) -> fx.Node:
        return rw.call(aten.to.dtype, value, dtype, before=node, replaces=[node])

    def widened(arg: Any) -> Any:
        return cast(arg, torch.float32) if _is_tensor(arg) else arg

    operator: Any = node.target
    args = map(widened, node.args)
    wide = rw.call(operator, *args, before=node, replaces=[node], **node.kwargs)
    rw.replace(node, cast(wide, node.meta["val"].dtype))


def _is_tensor(arg: Any) -> bool:
    return isinstance(arg, fx.Node) and isinstance(arg.meta["val"], torch.Tensor)


def _is_half_on_cpu(node: fx.Node) -> bool:
    value = node.meta["val"]
    return value.dtype in _HALF and value.device.type == "cpu"


def speedup(target: Any, dtype: torch.dtype) -> float:
    """How many times as fast an operator of this dtype is by way of float32, on this machine."""

    def ways() -> Ways:
        given = [torch.ones(shape, dtype=dtype) for shape in _PROBES[target]]
        return (
            lambda: target(*given),
            lambda: target(*(value.float() for value in given)).to(dtype),
        )

    return speedup_of(f"{target} of {dtype_name(dtype)} in float32", ways)
