"""Linears that read the same input as one product."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from dit_compile.errors import PipelineError
from dit_compile.ir.memory import is_returned
from dit_compile.ir.origin import origin_of
from dit_compile.ir.program import Program
from dit_compile.pipeline.base import Kind, Pass
from dit_compile.pipeline.rewriter import Rewriter

aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class FuseQKV(Pass):
    """Merge linears that read the same input into one, and split the result.

    Before:  %q = aten.linear(%x, @wq); %k = aten.linear(%x, @wk); %v = aten.linear(%x, @wv)
    After:   %qkv = aten.linear(%x, @wq|wk|wv); %q, %k, %v = aten.split_with_sizes(%qkv, ...)
    Fires only if: same input node, same block, same dtype, weights known, result not returned to
    the caller, and all merged weights fit ``max_bytes``; linears with a bias and linears without
    one are merged apart.

    Attributes:
        min_siblings: the fewest linears that are worth merging.
        max_bytes: memory that merged weights may take beside the originals. Beyond it nothing is
            merged, so that blocks stay alike.
    """

    name: ClassVar[str] = "fuse-qkv"
    kind: ClassVar[Kind] = Kind.EXACT
    bakes_weights: ClassVar[bool] = True
    min_siblings: int = 2
    max_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        if self.min_siblings < 2:
            raise PipelineError(
                f"fuse-qkv: min-siblings must be at least 2, not {self.min_siblings}"
            )

    def run(self, program: Program, rw: Rewriter) -> None:
        """Merge each group of sibling linears."""
        for graph in rw.graphs():
            groups = [
                group
                for siblings in _siblings(graph)
                if len(siblings) >= self.min_siblings
                for group in self._groups(siblings, program, rw)
            ]
            size = sum(_bytes(parameter) for parameter in _distinct(groups))
            for group in groups:
                if size <= self.max_bytes:
                    _merge(group, rw)
                else:
                    rw.miss(group[0], f"merged weights would take {size / 1e6:,.1f} MB")

    def _groups(
        self, siblings: list[fx.Node], program: Program, rw: Rewriter
    ) -> list[list[fx.Node]]:
        """The siblings to merge, with and without a bias apart; why the others stay is recorded."""
        biased, bare = [], []
        for node in siblings:
            unknown = next((p for p in _parameters(node) if not program.is_weight(p)), None)
            if unknown is not None:
                rw.miss(node, "the weight is computed, not a parameter", unknown)
            elif is_returned(node):
                rw.miss(node, "the caller would get a slice of the merged result")
            elif len(_parameters(node)) == 2:
                biased.append(node)
            else:
                bare.append(node)
        for few, others in ((biased, bare), (bare, biased)):
            for node in few if others and len(few) < self.min_siblings else ():
                rw.miss(node, "some of the linears have a bias and some have none", others[0])
        return [group for group in (biased, bare) if len(group) >= self.min_siblings]


def _siblings(graph: fx.Graph) -> list[list[fx.Node]]:
    """Linears with a matrix for a weight, by input, weight dtype and block, in graph order."""
    groups: dict[tuple[object, ...], list[fx.Node]] = {}
    for node in graph.find_nodes(op="call_function", target=aten.linear.default):
        weight = node.args[1].meta["val"]
        if weight.dim() == 2:
            groups.setdefault((node.args[0], weight.dtype, _block(node)), []).append(node)
    return list(groups.values())


def _block(node: fx.Node) -> str:
    """The module path up to its first number: siblings in different blocks stay apart.

    Merging across blocks would tie together what is repeated, compiled once and cached by block.
    """
    parts = origin_of(node).path.split(".")
    for position, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: position + 1])
    return ""


def _parameters(node: fx.Node) -> list[fx.Node]:
    """Weight and, if there is one, bias of a linear."""
    return [arg for arg in node.args[1:3] if isinstance(arg, fx.Node)]


def _distinct(groups: list[list[fx.Node]]) -> dict[fx.Node, None]:
    """The parameters of all groups, each once."""
    return {
        parameter: None for group in groups for node in group for parameter in _parameters(node)
    }


def _bytes(parameter: fx.Node) -> int:
    value = parameter.meta["val"]
    return int(value.numel()) * int(value.element_size())


def _merge(siblings: list[fx.Node], rw: Rewriter) -> None:
    """One linear over the concatenated weights, then a split along the features."""
    first = siblings[0]
    rw.begin(first)
    parameters = [
        rw.derive(aten.cat.default, list(column), path=_joined(column, rw), before=first)
        for column in zip(*map(_parameters, siblings), strict=True)
    ]
    sizes = [node.args[1].meta["val"].shape[0] for node in siblings]  # type: ignore[union-attr]
    product = rw.call(
        aten.linear.default, first.args[0], *parameters, before=first, replaces=siblings
    )
    parts = rw.call(
        aten.split_with_sizes.default, product, sizes, -1, before=first, replaces=siblings
    )
    pieces = [
        rw.call(operator.getitem, parts, position, before=first, replaces=[old])
        for position, old in enumerate(siblings)
    ]
    for old, piece in zip(siblings, pieces, strict=True):
        rw.replace(old, piece)


def _joined(column: tuple[fx.Node, ...], rw: Rewriter) -> str:
    """``blocks.0.attn.to_q.weight|to_k.weight|to_v.weight`` for the weights of one column."""
    paths = [rw.program.inputs[str(node.target)].path for node in column]
    prefix = paths[0].rpartition(".")[0].rpartition(".")[0]
    while prefix and not all(path.startswith(f"{prefix}.") for path in paths):
        prefix = prefix.rpartition(".")[0]
    if not prefix:
        return "|".join(paths)
    return f"{prefix}." + "|".join(path[len(prefix) + 1 :] for path in paths)
