"""Where a node comes from: module path, the user's source line, the nodes it stands for."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

_TORCH = os.path.join(os.path.dirname(torch.__file__), "")
_BRACKETED = re.compile(r"\[\s*['\"]?([^'\"\]]+)['\"]?\s*\]")
_MODULES = re.compile(r"(?<![^.])(__dict__\.)?_(modules|parameters|buffers)\.")
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


@dataclass(frozen=True)
class Origin:
    """Provenance of one node.

    Attributes:
        path: dotted path of the innermost module that made it, ``""`` at the top of the model.
        source: ``file:line`` of the user's code, ``""`` where it is not known.
        parents: names of the captured nodes that this node stands for, first ones first.
    """

    path: str = ""
    source: str = ""
    parents: tuple[str, ...] = ()


def origin_of(node: fx.Node) -> Origin:
    """Return the origin of ``node``; an empty one if no capture or rewrite has set it."""
    origin = node.meta.get("origin")
    return origin if isinstance(origin, Origin) else Origin()


def merge_origins(nodes: Sequence[fx.Node]) -> Origin:
    """Origin of a node that replaces ``nodes``: their common path, first source, all parents."""
    origins = [origin_of(node) for node in nodes]
    parts = [origin.path.split(".") for origin in origins if origin.path]
    common: list[str] = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    parents = dict.fromkeys(parent for origin in origins for parent in origin.parents)
    source = next((origin.source for origin in origins if origin.source), "")
    return Origin(".".join(common), source, tuple(parents))


def normalize_path(raw: str) -> str:
    """Turn a module or parameter path as torch writes it into the path the user would write.

    ``L['self'].__dict__['_modules']['blocks'].0`` and ``L['self']._modules['blocks'][0]`` both
    become ``blocks.0``.
    """
    path = _BRACKETED.sub(r".\1", raw)
    path = _MODULES.sub("", path + ".").strip(".")
    for root in ("L.self", "self", "L.fn", "L"):
        if path == root:
            return ""
        if path.startswith(root + "."):
            return path[len(root) + 1 :]
    return path


def identifier(path: str) -> str:
    """A valid, readable placeholder name for a dotted path."""
    name = re.sub(r"\W+", "_", path).strip("_")
    return f"_{name}" if not name or name[0].isdigit() else name


def module_path(node: fx.Node) -> str:
    """The innermost module's path, read from torch's ``nn_module_stack``."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    raw = str(next(reversed(stack.values()))[0])
    return normalize_path(raw)


def source_line(node: fx.Node) -> str:
    """The innermost recorded frame outside torch itself, as ``file:line``."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    outside = [frame for frame in frames if not frame[0].startswith(_TORCH)] or frames
    return f"{outside[-1][0]}:{outside[-1][1]}" if outside else ""


def stamp_origins(graph: fx.Graph) -> None:
    """Give each node of a freshly captured graph its origin."""
    for node in graph.nodes:
        node.meta["origin"] = Origin(module_path(node), source_line(node), (node.name,))
