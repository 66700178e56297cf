"""The textual IR: one line a node, stable names, weights by path and never by value."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from dit_compile.ir.fake import describe, dtype_name, is_getitem
from dit_compile.ir.origin import origin_of
from dit_compile.ir.program import InputKind, Program, output_args

_HIDDEN_PREFIX = {InputKind.WEIGHT, InputKind.DERIVED}


def print_program(program: Program) -> str:
    """All graphs of ``program`` as text."""
    return "\n\n".join(print_graph(program, name) for name in program.graphs)


def print_graph(program: Program, name: str = "full") -> str:
    """One graph as text. Weights read ``@path``; the origin is a trailing comment."""
    graph = program.graphs[name].graph
    lines = [_header(program, name, graph)]
    body = [(node_text(node, program), _comment(node)) for node in graph.nodes if _is_line(node)]
    width = min(max((len(text) for text, _ in body), default=0), 96)
    lines += [f"  {text:<{width}}  {comment}".rstrip() for text, comment in body]
    lines.append("  return " + ", ".join(_argument(arg, program) for arg in output_args(graph)))
    return "\n".join([*lines, "}"])


def _header(program: Program, name: str, graph: fx.Graph) -> str:
    shown = []
    for node in graph.find_nodes(op="placeholder"):
        spec = program.inputs.get(str(node.target))
        if spec is None or spec.kind in _HIDDEN_PREFIX:
            continue
        role = "state" if spec.kind is InputKind.STATE else str(spec.binding)
        shown.append(f"%{node.name}: {describe(node.meta.get('val'))} {role}")
    results = ", ".join(
        describe(arg.meta.get("val")) if isinstance(arg, fx.Node) else repr(arg)
        for arg in output_args(graph)
    )
    return f"ditc.graph @{name} ({', '.join(shown)}) -> ({results}) {{"


def _is_line(node: fx.Node) -> bool:
    return node.op not in ("placeholder", "output") and not is_unpacked(node)


def is_unpacked(node: fx.Node) -> bool:
    """Whether ``node`` picks one of several results and is shown in its producer's line."""
    return is_getitem(node) and isinstance(node.args[0], fx.Node) and _unpacks(node.args[0])


def _unpacks(node: fx.Node) -> bool:
    """Whether each user of ``node`` picks another one of its results."""
    value = node.meta.get("val")
    if not isinstance(value, (list, tuple)) or not all(map(is_getitem, node.users)):
        return False
    picked = [user.args[1] for user in node.users]
    return len(set(picked)) == len(picked) and set(picked) <= set(range(len(value)))


def unpacked(node: fx.Node) -> list[fx.Node | None] | None:
    """The nodes that pick the results of ``node`` in its own line, ``None`` if it has no such."""
    value = node.meta.get("val")
    if not isinstance(value, (list, tuple)) or not _unpacks(node):
        return None
    picked = {user.args[1]: user for user in node.users}
    return [picked.get(i) for i in range(len(value))]


def node_text(node: fx.Node, program: Program | None = None) -> str:
    """One node as ``%y = aten.linear(%x, @w, @b) : bf16[2,256,1152]``."""
    left = f"%{node.name}"
    value: Any = node.meta.get("val")
    kind = describe(value)
    picked = unpacked(node)
    if picked is not None:
        left = ", ".join(f"%{user.name}" if user else "_" for user in picked)
        kind = results_text([describe(item) for item in value])
    return f"{left} = {target_name(node.target)}({_arguments(node, program)}) : {kind}"


def results_text(kinds: Sequence[str]) -> str:
    """The types of several results: ``f32[2] x3`` where all are alike."""
    return f"{kinds[0]} x{len(kinds)}" if len(set(kinds)) == 1 else ", ".join(kinds)


def target_name(target: Any) -> str:
    """``aten.linear`` for the default overload, ``aten.add.Tensor`` shown as ``aten.add``."""
    if isinstance(target, torch._ops.OpOverload):
        return f"{target.namespace}.{target._schema.name.split('::')[1]}"
    return getattr(target, "__name__", str(target))


def _arguments(node: fx.Node, program: Program | None) -> str:
    shown = [_argument(arg, program) for arg in node.args]
    shown += [f"{key}={_argument(value, program)}" for key, value in node.kwargs.items()]
    return ", ".join(shown)


def _argument(arg: Any, program: Program | None) -> str:
    if isinstance(arg, fx.Node):
        spec = program.inputs.get(str(arg.target)) if program and arg.op == "placeholder" else None
        if spec is not None and spec.kind in _HIDDEN_PREFIX:
            return f"@{spec.path}"
        return f"%{arg.name}"
    if isinstance(arg, (list, tuple)):
        return "[" + ", ".join(_argument(item, program) for item in arg) + "]"
    return literal(arg)


def literal(arg: Any) -> str:
    """The text of an argument that is a constant."""
    if isinstance(arg, torch.dtype):
        return dtype_name(arg)
    if isinstance(arg, Mapping):
        return "{" + ", ".join(f"{k}: {literal(v)}" for k, v in arg.items()) + "}"
    if arg == sys.maxsize and isinstance(arg, int):
        return "end"
    return repr(arg) if isinstance(arg, str) else str(arg)


def _comment(node: fx.Node) -> str:
    origin = origin_of(node)
    parts = [origin.path] if origin.path else []
    if origin.parents and origin.parents != (node.name,):
        parents = ", ".join(origin.parents[:6]) + (", ..." if len(origin.parents) > 6 else "")
        parts.append(f"from {parents}")
    return f"# {' '.join(parts)}" if parts else ""
