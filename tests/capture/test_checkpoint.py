"""Checkpointed regions: eager's gradients, and their values are not kept for the backward pass."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from dit_compile.errors import DitcWarning
from dit_compile.ir.program import Program
from dit_compile.ir.recompute import MARKS, is_marked
from dit_compile.pipeline.pipeline import Pipeline
from tests import zoo
from tests.capture.test_training import gradients
from tests.capture.through_dynamo import from_dynamo, run
from tests.passes.irtest import randn, weights

ONCE: Callable[..., Any] = partial(checkpoint, use_reentrant=False)


def plainly(block: nn.Module, *args: Any) -> Any:
    """What :func:`checkpoint` is without its effect."""
    return block(*args)


class Block(nn.Module):
    """A feed-forward behind adaptive layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.mod, self.up, self.down = nn.Linear(8, 24), nn.Linear(8, 64), nn.Linear(64, 8)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale, gate = self.mod(F.silu(c))[:, None].chunk(3, -1)
        y = F.layer_norm(x, (8,)) * (1 + scale) + shift
        return x + gate * self.down(F.gelu(self.up(y)))


class Writing(Block):
    """Writes in place, so that the graph is traced whole."""

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        y = super().forward(x, c)
        y[:, 0] += 1
        return y.mul_(2)


class Outer(Block):
    """A region with a region in it."""

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return super().forward(ONCE(super().forward, x, c), c)


class Model(nn.Module):
    def __init__(self, block: Callable[[], nn.Module] = Block, wrap: Any = ONCE) -> None:
        super().__init__()
        self.blocks, self.wrap = nn.ModuleList(block() for _ in range(3)), wrap

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        for block in self.blocks:
            x = self.wrap(block, x, c)
        return x


INPUTS = randn(2, 16, 8), randn(2, 8, seed=1)


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "ditc: target=eager keeps", DitcWarning)
        yield


def through_ditc(model: nn.Module, target: str = "eager") -> Any:
    options = {"target": target, "strict": True}
    return torch.compile(model, backend="ditc", fullgraph=True, options=options)


def kept_bytes(function: Any, *inputs: Tensor) -> int:
    """Bytes of the memory, that of inputs aside, which one call keeps for its backward pass."""
    kept: dict[int, tuple[int, Tensor]] = {}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes(), value  # held, so that no other takes its place
        return value

    own = {value.untyped_storage().data_ptr() for value in (*inputs, *function.parameters())}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        result = function(*inputs)
    result.sum().backward()
    return sum(size for place, (size, _) in kept.items() if place not in own)


@pytest.mark.parametrize("target", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("block", [Block, Writing, Outer])
def test_gradients_are_those_of_eager(target: str, block: Callable[[], nn.Module]) -> None:
    model = weights(Model(block)).train()
    wanted = gradients(model, model, *INPUTS)
    made = gradients(through_ditc(model, target), model, *INPUTS)
    for name, value in wanted.items():
        torch.testing.assert_close(made[name], value, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.slow
@pytest.mark.parametrize("block", [Block, Writing])
def test_as_little_is_kept_as_by_torch_alone(block: Callable[[], nn.Module]) -> None:
    inputs = [value.clone().requires_grad_() for value in INPUTS]
    kept = {}
    for name, wrap in (("checkpointed", ONCE), ("plain", plainly)):
        model = weights(Model(block, wrap)).train()
        torch._dynamo.reset()
        kept[f"{name} by ditc"] = kept_bytes(through_ditc(model, "inductor"), *inputs)
        torch._dynamo.reset()
        kept[f"{name} by torch"] = kept_bytes(torch.compile(model, fullgraph=True), *inputs)
    assert kept["checkpointed by ditc"] <= kept["checkpointed by torch"]
    assert kept["checkpointed by ditc"] < 0.3 * kept["plain by ditc"]


def regions(program: Program) -> Counter[int]:
    """How many operators each region has."""
    nodes = [node for node in program.main.nodes if node.op == "call_function"]
    return Counter(node.meta[MARKS[1]] for node in nodes if is_marked(node))


@pytest.mark.parametrize("block", [Block, Writing, Outer])
def test_every_operator_is_marked(block: Callable[[], nn.Module]) -> None:
    program, values = from_dynamo(weights(Model(block)), *INPUTS, grad=True)
    plain, _ = from_dynamo(weights(Model(block, plainly)), *INPUTS, grad=True)
    found = regions(program)
    total = sum(node.op == "call_function" for node in program.main.nodes)
    assert list(found) == [0, 1, 2]
    assert sum(found.values()) == total
    if block is not Outer:  # whose inner region is a checkpoint either way
        assert not regions(plain)
    for have, want in zip(run(program, values), [weights(Model(block))(*INPUTS)], strict=True):
        torch.testing.assert_close(have, want)


def test_rewrites_keep_the_marks() -> None:
    """Layer norm and modulation become one operator of the region that they were in."""
    program, _ = from_dynamo(weights(Model()), *INPUTS, grad=True)
    Pipeline.parse("exact").run(program)
    fused = program.main.find_nodes(op="call_function", target=torch.ops.ditc.adaln_norm.default)
    assert [node.meta[MARKS[1]] for node in fused] == [0, 1, 2]
    program, _ = from_dynamo(weights(Model(Block, plainly)), *INPUTS, grad=True)
    Pipeline.parse("exact").run(program)
    assert not regions(program)


@pytest.mark.slow
def test_dropout_draws_once() -> None:
    """What is computed again must drop what was dropped."""
    model = Model(lambda: nn.Dropout(0.5), lambda block, x, _: ONCE(block, x)).train()
    x = torch.ones(64, 64, requires_grad=True)
    result = through_ditc(model, "inductor")(x, x)
    result.sum().backward()
    assert 0 < (result == 0).sum() < result.numel()
    torch.testing.assert_close(x.grad, result.detach())


def test_sampling_with_checkpoints_left_on() -> None:
    model = weights(Model())
    with torch.no_grad():
        torch.testing.assert_close(through_ditc(model)(*INPUTS), model(*INPUTS))


def test_what_is_not_kept_is_said() -> None:
    warnings.filterwarnings("always", category=DitcWarning)
    with pytest.warns(DitcWarning, match="target=inductor computes these again"):
        through_ditc(weights(Model()))(*INPUTS)

    def policy(*_: Any, **__: Any) -> CheckpointPolicy:
        return CheckpointPolicy.MUST_SAVE

    chosen = partial(ONCE, context_fn=partial(create_selective_checkpoint_contexts, policy))
    model = weights(Model(Block, chosen)).train()
    wanted = gradients(model, model, *INPUTS)
    with pytest.warns(DitcWarning, match="a checkpoint's context_fn is not heeded"):
        made = gradients(through_ditc(model), model, *INPUTS)
    for name, value in wanted.items():
        torch.testing.assert_close(made[name], value)


@pytest.mark.parametrize("name", ["flux", "pixart"])
def test_real_models(name: str) -> None:
    case = zoo.case(name)
    model: Any = zoo.build(case).train()
    inputs = case.inputs(0, torch.Generator().manual_seed(0))
    found = []
    model.enable_gradient_checkpointing()
    for each in (model, through_ditc(model)):
        model.zero_grad()
        each(**inputs)[0].square().mean().backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, grad in found[0].items():
        torch.testing.assert_close(found[1][name], grad, rtol=1e-4, atol=1e-5)
