"""From torch-level FX graphs to functional pre-dispatch ATen, and what must be tidied after it."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._functorch.aot_autograd import aot_export_module
from torch._guards import TracingContext
from torch._subclasses import FakeTensorMode

from dit_compile.capture.autocast import ENTER, EXIT, entering, make_casts_explicit
from dit_compile.capture.expand import NotLocalError, expand
from dit_compile.capture.regions import inline, inline_compiled_regions, parts
from dit_compile.errors import CaptureError
from dit_compile.ir.fake import evaluate

aten = torch.ops.aten

_ASSERTS = {aten._assert_tensor_metadata.default, aten._assert_async.msg}
_WITH_AUTOCAST = torch.ops.higher_order.wrap_with_autocast
_MODE_REGIONS = {torch.ops.higher_order.wrap_with_set_grad_enabled, _WITH_AUTOCAST}


@dataclass(frozen=True)
class Traced:
    """A functional graph and what its leading outputs mean.

    Attributes:
        module: the graph; placeholders are the lifted attributes, then the inputs in order.
        lifted: names of attributes of the traced module that became leading placeholders.
        mutated: for each leading output, the position of the input that it must be copied into.
    """

    module: fx.GraphModule
    lifted: tuple[str, ...]
    mutated: tuple[int, ...]


@contextlib.contextmanager
def _tracing_under(mode: FakeTensorMode) -> Iterator[None]:
    """Make ``mode`` the tracing context's, so that symbolic sizes and guards reach Dynamo."""
    context = TracingContext.try_get()
    if context is None:
        yield
        return
    saved, context.fake_mode = context.fake_mode, mode
    try:
        yield
    finally:
        context.fake_mode = saved


def trace(module: fx.GraphModule, fakes: Sequence[Any], mode: FakeTensorMode) -> Traced:
    """Trace ``module`` on ``fakes`` to functional pre-dispatch ATen.

    Raises:
        CaptureError: an input mutation that cannot be expressed as an output.
    """
    with _tracing_under(mode):
        try:
            return Traced(expand(module, mode), (), ())
        except NotLocalError:
            pass  # slower, and sees the graph as one
        traced, signature = aot_export_module(
            entering(module), list(fakes), trace_joint=False, pre_dispatch=True
        )
    lifted = (*signature.parameters, *signature.buffers)
    if signature.buffers_to_mutate:
        names = ", ".join(map(str, signature.buffers_to_mutate.values()))
        raise CaptureError(f"the graph writes to its own constant {names}; pass it as an input")
    position = {name: i for i, name in enumerate(signature.user_inputs)}
    mutated = tuple(position[name] for name in signature.user_inputs_to_mutate.values())
    assert isinstance(traced, fx.GraphModule)
    return Traced(traced, lifted, mutated)


def tidy(module: fx.GraphModule, mode: FakeTensorMode, *, training: bool) -> None:
    """Bring a traced graph into the form that passes rely on, in place.

    Nested graphs that only set a mode, or say that they repeat, are inlined, autocast's casts and
    the ends of regions without gradients become operators, metadata assertions go away,
    ``aten.copy`` becomes operators that have a derivative, and each node gets a fake value.
    """
    _inline_mode_regions(module)
    inline_compiled_regions(module)
    _erase_assertions(module.graph)
    _name_values(module.graph, mode)
    make_casts_explicit(module.graph, mode)
    _make_detached_explicit(module.graph, mode, training=training)
    _replace_copies(module.graph, mode)
    module.graph.lint()
    module.recompile()


def _inline_mode_regions(module: fx.GraphModule) -> None:
    """Inline the bodies of ``wrap_with_autocast`` and ``wrap_with_set_grad_enabled``."""
    graph = module.graph
    for call in list(graph.nodes):
        if call.target not in _MODE_REGIONS:
            continue
        settings, body = parts(module, call)
        _inline_mode_regions(body)
        if call.target is _WITH_AUTOCAST:
            with graph.inserting_before(call):
                region = graph.call_function(ENTER, settings)
            with graph.inserting_after(call):
                graph.call_function(EXIT, (region,))
        inline(module, call)


def _erase_assertions(graph: fx.Graph) -> None:
    for node in reversed(list(graph.nodes)):
        if node.target in _ASSERTS and not node.users:
            graph.erase_node(node)


def _make_detached_explicit(graph: fx.Graph, mode: FakeTensorMode, *, training: bool) -> None:
    """Take out the switches of gradient mode, so that no node's meaning depends on its place.

    While autograd records, what a region without gradients computed is detached where others read
    it.
    """
    recording = True
    recorded: dict[fx.Node, bool] = {}
    for node in list(graph.nodes):
        if node.target is torch._C._set_grad_enabled:
            recording = bool(node.args[0])
            graph.erase_node(node)
        else:
            recorded[node] = recording or node.op == "output"
    if not training:
        return
    for node, kept in recorded.items():
        readers = [user for user in node.users if recorded[user]]
        value = node.meta.get("val")
        if kept or not readers or not isinstance(value, torch.Tensor):
            continue
        with graph.inserting_after(node):
            detached = graph.call_function(aten.detach.default, (node,))
        detached.meta.update({k: v for k, v in node.meta.items() if k != "val"})
        detached.meta["val"] = evaluate(detached, mode)
        for user in readers:
            user.replace_input_with(node, detached)


def _name_values(graph: fx.Graph, mode: FakeTensorMode) -> None:
    """Give a fake value to the nodes that tracing left without one."""
    for node in graph.nodes:
        if node.op == "call_function" and "val" not in node.meta and _is_operator(node):
            node.meta["val"] = evaluate(node, mode)


def _is_operator(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) or node.target in {
        operator.getitem,
        operator.add,
        operator.sub,
        operator.mul,
        operator.floordiv,
        operator.mod,
        operator.truediv,
        operator.pow,
        operator.neg,
        torch.sym_max,
        torch.sym_min,
        torch.sym_float,
    }


def _replace_copies(graph: fx.Graph, mode: FakeTensorMode) -> None:
    """``aten.copy(a, b)``, which has no derivative, becomes ``b`` cast and expanded to ``a``."""
    for node in list(graph.find_nodes(op="call_function", target=aten.copy.default)):
        target, source = node.args[0].meta["val"], node.args[1]
        with graph.inserting_before(node):
            made = []
            new = source
            if source.meta["val"].dtype != target.dtype:
                new = graph.call_function(aten._to_copy.default, (new,), {"dtype": target.dtype})
                made.append(new)
            if source.meta["val"].dim() != target.dim() or not all(
                isinstance(a, int) and a == b
                for a, b in zip(source.meta["val"].shape, target.shape, strict=True)
            ):
                sizes = _size_arguments(graph, node.args[0])
                new = graph.call_function(aten.expand.default, (new, sizes))
                made.append(new)
            if not made:
                new = graph.call_function(aten.clone.default, (new,))
                made.append(new)
        for fresh in made:
            fresh.meta.update({k: v for k, v in node.meta.items() if k != "val"})
            fresh.meta["val"] = evaluate(fresh, mode)
        node.replace_all_uses_with(new)
        graph.erase_node(node)


def _size_arguments(graph: fx.Graph, like: fx.Node) -> list[Any]:
    """The sizes of ``like``, symbolic ones read from it by a node of the graph."""
    sizes: list[Any] = []
    for dim, size in enumerate(like.meta["val"].shape):
        if isinstance(size, int):
            sizes.append(size)
            continue
        reader = graph.call_function(aten.sym_size.int, (like, dim))
        reader.meta["val"] = size
        sizes.append(reader)
    return sizes
