"""``torch.vmap`` inside a model, written out as operators on whole batches.

Dynamo's graph says where a batched dimension begins and ends; the functional trace ahead of
autograd cannot follow that, so what lies between is traced by itself, and put back as ATen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._functorch import predispatch
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from dit_compile.ir.program import copy_graph, output_args, placeholders
from dit_compile.ir.recompute import MARKS

_BEGIN, _END = predispatch._vmap_increment_nesting, predispatch._vmap_decrement_nesting
_KEPT = ("nn_module_stack", "stack_trace", *MARKS)


def without_vmaps(module: fx.GraphModule, mode: FakeTensorMode) -> fx.GraphModule:
    """A graph from Dynamo with all batched parts written out; itself if it has none."""
    if not any(node.target is _BEGIN for node in module.graph.nodes):
        return module
    module = copy_graph(module)
    for span in list(_spans(module.graph)):
        _write_out(module, span, mode)
    for node in list(module.graph.nodes):
        if node.target is predispatch.lazy_load_decompositions:
            module.graph.erase_node(node)
    module.recompile()
    return module


def _spans(graph: fx.Graph) -> Iterator[list[fx.Node]]:
    """The outermost batched parts, each from its beginning to its end."""
    depth = 0
    span: list[fx.Node] = []
    for node in graph.nodes:
        depth += node.target is _BEGIN
        if depth and node.op != "get_attr":
            span.append(node)
        if node.target is _END:
            depth -= 1
            if depth == 0:
                yield span
                span = []


def _write_out(module: fx.GraphModule, span: Sequence[fx.Node], mode: FakeTensorMode) -> None:
    inside = set(span)
    inputs = list(
        dict.fromkeys(n for node in span for n in node.all_input_nodes if n not in inside)
    )
    results = [node for node in span if any(user not in inside for user in node.users)]
    graph = fx.Graph()
    became = {node: graph.placeholder(node.name) for node in inputs}
    for node in span:
        became[node] = graph.node_copy(node, became.__getitem__)
    graph.output([became[node] for node in results])
    body = fx.GraphModule(module, graph)
    made = write_out(module, lambda *args: fx.Interpreter(body).run(*args), inputs, span[-1], mode)
    for old, new in zip(results, made, strict=True):
        old.replace_all_uses_with(new, delete_user_cb=lambda user: user not in inside)
    for node in reversed(span):
        module.graph.erase_node(node)


def write_out(
    module: fx.GraphModule,
    function: Callable[..., Sequence[Any]],
    inputs: Sequence[fx.Node],
    after: fx.Node,
    mode: FakeTensorMode,
) -> list[Any]:
    """Trace a function to ATen, and put its operators into a graph from Dynamo.

    Args:
        module: the graph.
        function: takes the values of ``inputs``.
        inputs: nodes of the graph.
        after: the node that the operators are put behind, whose place in the model they get.
        mode: the fake mode of the graph's values.

    Returns:
        Nodes of the graph for what the function returns, in order.
    """
    examples = [_example(module, node, mode) for node in inputs]
    with mode, enable_python_dispatcher():
        traced = make_fx(function)(*examples)
    became: dict[fx.Node, Any] = dict(zip(placeholders(traced.graph), inputs, strict=True))
    for inner in traced.graph.nodes:
        if inner.op in ("placeholder", "output"):
            continue
        with module.graph.inserting_after(after):
            new = module.graph.node_copy(inner, became.__getitem__)
        if inner.op == "get_attr":
            new.target = f"{after.name}_{inner.target}"
            setattr(module, new.target, getattr(traced, str(inner.target)))
        kept = {key: after.meta[key] for key in _KEPT if key in after.meta}
        new.meta = {**kept, "example_value": inner.meta.get("val")}
        became[inner] = after = new
    results = output_args(traced.graph)
    return [became[arg] if isinstance(arg, fx.Node) else arg for arg in results]


def _example(module: fx.GraphModule, node: fx.Node, mode: FakeTensorMode) -> Any:
    if node.op != "get_attr":
        return node.meta["example_value"]
    value: Any = module
    for part in str(node.target).split("."):
        value = getattr(value, part)
    if isinstance(value, torch.Tensor) and not isinstance(value, FakeTensor):
        return mode.from_tensor(value, static_shapes=True)
    return value
