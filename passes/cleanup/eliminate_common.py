"""Compute equal expressions once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from dit_compile.ir.fake import unify_sizes
from dit_compile.ir.memory import would_share
from dit_compile.ir.program import Program
from dit_compile.ir.purity import is_pure
from dit_compile.pipeline.base import Kind, Pass
from dit_compile.pipeline.rewriter import Rewriter


@dataclass(frozen=True, kw_only=True)
class EliminateCommon(Pass):
    """Compute equal expressions once.

    Before:  %a = aten.silu(%c); %b = aten.silu(%c)
    After:   %a = aten.silu(%c), read in both places
    Fires only if: same operator and arguments, nothing written, nothing random, not both returned
    to the caller.
    """

    name: ClassVar[str] = "eliminate-common"
    kind: ClassVar[Kind] = Kind.EXACT

    def run(self, program: Program, rw: Rewriter) -> None:
        """Number values in order; the first of equal nodes stays."""
        for graph in rw.graphs():
            first: dict[Any, fx.Node] = {}
            for node in list(graph.nodes):
                if not is_pure(node):
                    continue
                key = _key(node)
                known = first.setdefault(key, node)
                if known is node:
                    continue
                if shared := would_share(node, known):
                    rw.miss(node, shared, known)
                else:
                    rw.begin(node)
                    unify_sizes(node, known, program.fake_mode)
                    rw.replace(node, known)


def _key(node: fx.Node) -> Any:
    return node.target, _frozen(node.args), _frozen(tuple(sorted(node.kwargs.items())))


def _frozen(arg: Any) -> Any:
    """A hashable form of an argument in which ``1``, ``1.0`` and ``True`` differ."""
    if isinstance(arg, (list, tuple)):
        return tuple(_frozen(item) for item in arg)
    if isinstance(arg, (fx.Node, torch.dtype)) or arg is None:
        return arg
    return type(arg), str(arg)
