"""Nested graphs, put in the place of their calls."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

from dit_compile.errors import DitcWarning
from dit_compile.ir.program import copy_graph, output_node
from dit_compile.ir.recompute import mark

#: What a call of a ``torch.compiler.nested_compile_region`` becomes.
COMPILED_REGION = torch.ops.higher_order.invoke_subgraph
#: What a call of ``torch.utils.checkpoint.checkpoint`` becomes.
CHECKPOINT = torch.ops.higher_order.tag_activation_checkpoint


def without_regions(module: fx.GraphModule) -> fx.GraphModule:
    """A graph from Dynamo with the bodies of its regions in place; itself if it has none.

    ditc finds by itself what repeats, and compiles that once. What a checkpoint says, that its
    values are computed again for the backward pass, is said of each operator in it.
    """
    if not (_calls(module) or _calls(module, CHECKPOINT)):
        return module
    module = copy_graph(module)
    inline_compiled_regions(module)
    _inline_checkpoints(module)
    return module


def inline_compiled_regions(module: fx.GraphModule) -> None:
    """Inline all compiled regions, in place.

    Calls may share a body, which was traced in the module of the first of them; the nodes of the
    others are told their own.
    """
    traced_in: dict[str, str] = {}
    for call in _calls(module):
        handle: Any = call.args[0]
        here = _path(call)
        inline(module, call, moved=(traced_in.setdefault(str(handle.target), here), here))


def _inline_checkpoints(module: fx.GraphModule) -> None:
    """Inline all checkpointed regions, in place, and mark their operators as torch marks them.

    AOTAutograd takes the marks along when it traces the forward pass, and its partitioner computes
    what bears them anew in the backward pass. Between regions one value is kept, which it tells by
    their numbers.
    """
    for number, call in enumerate(_calls(module, CHECKPOINT)):
        if "_checkpoint_context_fn" in parts(module, call)[1].meta:
            warnings.warn(
                "ditc: a checkpoint's context_fn is not heeded: all of its region is computed "
                "again in the backward pass",
                DitcWarning,
                stacklevel=2,
            )
        for node in inline(module, call):
            mark(node, number)


def inline(
    module: fx.GraphModule, call: fx.Node, moved: tuple[str, str] = ("", "")
) -> Iterable[fx.Node]:
    """Put the body of one nested graph in the place of its call; return its operators.

    Args:
        module: the graph around it.
        call: what calls the body, which is the first of its arguments that is an attribute; the
            body's own inputs come last.
        moved: the path of a module, and that of another that the body's nodes are said to be in
            instead.
    """
    graph = module.graph
    settings, body = parts(module, call)
    handle: Any = call.args[len(settings)]
    body = without_regions(body)
    inputs = body.graph.find_nodes(op="placeholder")
    given = call.args[len(call.args) - len(inputs) :]
    mapping: dict[fx.Node, Any] = dict(zip(inputs, given, strict=True))
    with graph.inserting_before(call):
        for inner in body.graph.nodes:
            if inner.op == "get_attr":
                name = f"{handle.target}_{inner.target}".replace(".", "_")
                setattr(module, name, getattr(body, str(inner.target)))
                mapping[inner] = graph.get_attr(name)
                mapping[inner].meta.update(inner.meta)
            elif inner.op in ("call_function", "call_method"):
                mapping[inner] = graph.node_copy(inner, mapping.__getitem__)
                _move(mapping[inner], *moved)
    results: Any = fx.map_arg(output_node(body.graph).args[0], mapping.__getitem__)
    if isinstance(results, fx.Node):
        results = (results,)
    for user in list(call.users):
        assert user.target is operator.getitem
        user.replace_all_uses_with(results[user.args[1]])
        graph.erase_node(user)
    graph.erase_node(call)
    if not handle.users:
        graph.erase_node(handle)
    return [made for inner, made in mapping.items() if inner.op.startswith("call_")]


def parts(module: fx.GraphModule, call: fx.Node) -> tuple[tuple[Any, ...], fx.GraphModule]:
    """What a call of a nested graph states ahead of the body, and the body."""
    is_body = [isinstance(arg, fx.Node) and arg.op == "get_attr" for arg in call.args]
    at = is_body.index(True)
    handle: Any = call.args[at]
    return call.args[:at], getattr(module, str(handle.target))


def _calls(module: fx.GraphModule, target: Any = COMPILED_REGION) -> list[fx.Node]:
    return module.graph.find_nodes(op="call_function", target=target)


def _path(node: fx.Node) -> str:
    """The innermost module's path as torch writes it, empty if it is not known."""
    entries = list(node.meta.get("nn_module_stack", {}).values())
    return str(entries[-1][0]) if entries else ""


def _move(node: fx.Node, old: str, new: str) -> None:
    if old == new or not (old and new):
        return
    node.meta["nn_module_stack"] = {
        key: (new + path[len(old) :] if path == old or path.startswith(f"{old}.") else path, kind)
        for key, (path, kind) in node.meta.get("nn_module_stack", {}).items()
    }
