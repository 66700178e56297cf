"""Autocast made explicit: its regions are entered while tracing, its casts become operators.

What follows capture runs with autocast off.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import fx
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import disable_autocast_cache
from torch.utils._python_dispatch import TorchDispatchMode

from dit_compile.errors import CaptureError
from dit_compile.ir.fake import fake_arguments, leaves

aten = torch.ops.aten

#: What Dynamo, and a pre-dispatch trace, write around a region of autocast.
ENTER: Callable[..., Any] = torch.amp.autocast_mode._enter_autocast
EXIT: Callable[..., Any] = torch.amp.autocast_mode._exit_autocast


def entering(module: fx.GraphModule) -> fx.GraphModule:
    """``module``, or a copy in which autocast is really entered where Dynamo's graph says so.

    A pre-dispatch trace only records the functions that Dynamo writes, and would go on without
    autocast; ``torch.autocast`` itself is recorded *and* has its effect.
    """
    effects = {ENTER: _enter, EXIT: _exit}
    if not any(node.target in effects for node in module.graph.nodes):
        return module
    copy = fx.GraphModule(module, deepcopy(module.graph))
    for node in copy.graph.nodes:
        node.target = effects.get(node.target, node.target)
    copy.recompile()
    return copy


def _enter(*settings: Any) -> torch.autocast:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it has to say, it says in eager too
        region = torch.autocast(*settings)
        region.__enter__()  # type: ignore[no-untyped-call]
        return region


def _exit(region: torch.autocast) -> None:
    region.__exit__(None, None, None)


def make_casts_explicit(graph: fx.Graph, mode: FakeTensorMode) -> None:
    """Write the casts of autocast's regions into ``graph``, and take the regions out.

    Each operator runs again on its arguments' fake values, in the region that it stands in and
    without autocast: the casts of arguments that make the difference become operators.

    Raises:
        CaptureError: an operator whose casts cannot be told.
    """
    regions: list[torch.autocast] = []
    try:
        for node in list(graph.nodes):
            if node.target is ENTER:
                regions.append(_enter(*node.args))
            elif node.target is EXIT:
                _exit(regions.pop())
            elif isinstance(node.target, torch._ops.OpOverload) and _is_on():
                _write_casts(node, mode)
    finally:
        while regions:
            _exit(regions.pop())
    for node in reversed(list(graph.nodes)):
        if node.target in (ENTER, EXIT):
            graph.erase_node(node)


def _is_on() -> bool:
    return bool(torch._C._is_any_autocast_enabled())


def _write_casts(node: fx.Node, mode: FakeTensorMode) -> None:
    want, casts = _run(node, mode)
    with torch._C._DisableAutocast():
        own = _run(node, mode)[1]
        for arg, dtype in casts.items():
            if own.get(arg) != dtype:
                node.replace_input_with(arg, _cast(arg, dtype, node, mode))
        if want is None or not want.is_floating_point:
            return
        if _run(node, mode)[0] != want:  # autocast chose the dtype by an option, not by a cast
            for arg in node.all_input_nodes:
                node.replace_input_with(arg, _cast(arg, want, node, mode))
        if _run(node, mode)[0] != want:
            raise CaptureError(f"cannot make autocast explicit for {node.target} (%{node.name})")


def _run(
    node: fx.Node, mode: FakeTensorMode
) -> tuple[torch.dtype | None, Mapping[fx.Node, torch.dtype]]:
    """The dtype of a node's first result, ``None`` if it cannot run, and how it casts arguments."""
    args, kwargs = fake_arguments(node)
    recorder = _Recorder(node.all_input_nodes)
    try:
        with mode, torch.no_grad(), disable_autocast_cache(), recorder:
            result = node.target(*args, **kwargs)  # type: ignore[operator]
    except (RuntimeError, TypeError):  # mixed dtypes that only autocast accepts
        return None, {}
    made = (value for value in leaves(result) if isinstance(value, torch.Tensor))
    return next((value.dtype for value in made), None), recorder.casts


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees which of the values of ``nodes`` are cast, and to which dtype."""

    def __init__(self, nodes: Sequence[fx.Node]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.nodes = nodes
        self.casts: dict[fx.Node, torch.dtype] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten._to_copy.default and kwargs.get("dtype") is not None:
            for node in self.nodes:
                if node.meta["val"] is args[0]:
                    self.casts.setdefault(node, kwargs["dtype"])
        return func(*args, **kwargs)


def _cast(arg: fx.Node, to: torch.dtype, at: fx.Node, mode: FakeTensorMode) -> fx.Node:
    """``arg`` as ``to``, made in front of ``at``; itself if there is nothing to cast."""
    value = arg.meta["val"]
    if not isinstance(value, torch.Tensor) or not value.dtype.is_floating_point:
        return arg
    if value.dtype == to:
        return arg
    with at.graph.inserting_before(at):
        new = at.graph.call_function(aten._to_copy.default, (arg,), {"dtype": to})
    new.meta.update({key: kept for key, kept in at.meta.items() if key != "val"})
    with mode, torch.no_grad():
        new.meta["val"] = value.to(to)
    return new
