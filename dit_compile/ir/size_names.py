"""Readable names for the symbolic sizes of a Program."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from dit_compile.ir.program import InputKind, Program, placeholders


def named_sizes(program: Program) -> dict[str, str]:
    """A name for each symbol, after the first input that has it as an axis: ``latents_2``."""
    names: dict[str, str] = {}
    for module in program.graphs.values():
        for node in placeholders(module.graph):
            spec, value = program.inputs[str(node.target)], node.meta["val"]
            if spec.kind is InputKind.SIZE:
                names.setdefault(str(value), spec.name)
            if spec.kind is not InputKind.USER or not isinstance(value, torch.Tensor):
                continue
            sizes: list[Any] = list(value.shape)
            for axis, size in enumerate(sizes):
                if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol:
                    names.setdefault(str(size), f"{spec.name}_{axis}")
    return names


def rename_sizes(expression: str, names: Mapping[str, str]) -> str:
    """``expression`` with its symbols replaced by their names."""
    return re.sub(r"\b[A-Za-z_]\w*\b", lambda m: names.get(m.group(), m.group()), expression)
