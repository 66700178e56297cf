"""The way in from torch.compile: the graph that Dynamo hands to a backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn
from torch._dynamo import symbolic_convert
from torch._subclasses import FakeTensor, FakeTensorMode

from dit_compile.capture.batched import without_vmaps
from dit_compile.capture.build import build_program
from dit_compile.capture.flex import without_flex_attention
from dit_compile.capture.functional import trace
from dit_compile.capture.regions import without_regions
from dit_compile.errors import CaptureError
from dit_compile.ir.origin import normalize_path
from dit_compile.ir.program import InputKind, Program, placeholders


def records_gradients(values: Sequence[Any]) -> bool:
    """Whether autograd would record a call on ``values`` now."""
    return torch.is_grad_enabled() and any(
        isinstance(value, torch.Tensor) and value.requires_grad for value in values
    )


def traced_class() -> str:
    """The class of the module whose graph Dynamo hands over now, ``""`` if it is a function's."""
    translator = getattr(symbolic_convert.tls, "current_tx", None)
    owner = (getattr(translator, "f_locals", None) or {}).get("self")
    return type(owner).__name__ if isinstance(owner, nn.Module) else ""


def capture_dynamo(module: fx.GraphModule) -> Program:
    """Turn the graph that Dynamo hands to a backend into a Program.

    Parameters are placeholders of that graph and stay so; the Program's inputs are in Dynamo's
    order, ``constants`` aside. Nothing outside the returned Program is changed, since Dynamo may
    call a backend twice for one compilation.

    Raises:
        CaptureError: the graph has no tensor inputs, or cannot be made functional.
    """
    module = without_regions(module)
    nodes = placeholders(module.graph)
    fakes = [node.meta.get("example_value") for node in nodes]
    mode = _fake_mode(fakes)
    module = without_flex_attention(without_vmaps(module, mode), mode)
    traced = trace(module, fakes, mode)
    described = [(InputKind.WEIGHT, normalize_path(name)) for name in traced.lifted]
    described += [_describe(node) for node in nodes]
    paths = [path for _, path in described[len(traced.lifted) :]]
    for node, fake in zip(
        placeholders(traced.module.graph)[len(traced.lifted) :], fakes, strict=True
    ):
        node.meta["val"] = fake  # the trace's own values have lost requires_grad
    return build_program(
        traced.module,
        described,
        [paths[position] for position in traced.mutated],
        mode,
        constants={
            normalize_path(name): _attribute(module, name).detach() for name in traced.lifted
        },
        training=records_gradients(fakes),
    )


def _fake_mode(fakes: Sequence[Any]) -> FakeTensorMode:
    for fake in fakes:
        if isinstance(fake, FakeTensor):
            return fake.fake_mode
    raise CaptureError("the graph takes no tensors, so there is nothing to compile")


def _describe(node: fx.Node) -> tuple[InputKind, str]:
    """Kind and path of one of Dynamo's placeholders."""
    value = node.meta.get("example_value")
    source = getattr(node, "_dynamo_source", None) or node.meta.get("_dynamo_source")
    if source is None and node.meta.get("grapharg") is not None:
        source = node.meta["grapharg"].source
    name = getattr(source, "name", None)
    raw = name() if callable(name) else name
    path = normalize_path(raw) if raw else node.name
    if isinstance(value, (torch.SymInt, int)):
        return InputKind.SIZE, path
    if (
        isinstance(value, torch.nn.Parameter)
        or "_parameters" in (raw or "")
        or ("_buffers" in (raw or ""))
    ):
        return InputKind.WEIGHT, path
    return InputKind.USER, path


def _attribute(module: fx.GraphModule, name: str) -> torch.Tensor:
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part)
    assert isinstance(value, torch.Tensor)
    return value
