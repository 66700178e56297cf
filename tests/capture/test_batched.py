"""``torch.vmap`` and ``flex_attention`` inside a model become operators on whole tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from dit_compile.capture import flex
from dit_compile.errors import DitcWarning
from dit_compile.ir.verifier import Verifier
from tests.capture.test_training import gradients
from tests.capture.through_dynamo import from_dynamo
from tests.passes.irtest import ops, randn, weights

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without")


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


class Vmapped(nn.Module):
    """A batched function of a layer's result and of something from outside it."""

    def __init__(self, use: Callable[..., Any]) -> None:
        super().__init__()
        self.layer, self.use = nn.Linear(4, 4), use

    def forward(self, x: Tensor) -> Any:
        return self.use(self.layer(x), torch.arange(x.shape[1]))


def compared(y: Tensor, ids: Tensor) -> Tensor:
    def row(i: Tensor) -> Tensor:
        return torch.vmap(lambda j: (ids[i] // 2 >= ids[j] // 2) | (j == 0))(ids)

    return torch.vmap(row)(ids).to(y.dtype) @ y


def twice(y: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    first = torch.vmap(lambda row: row / (1 + row.norm()))(y)
    return torch.vmap(torch.sin, in_dims=1, out_dims=1)(first), first


def written(y: Tensor, ids: Tensor) -> Tensor:
    y = y * 1
    y[:, 0] += 1  # so that the graph is traced whole
    return torch.vmap(lambda row: F.softmax(row, -1))(y)


@pytest.mark.parametrize("target", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("use", [compared, twice, written])
@pytest.mark.parametrize("dynamic", [False, True])
def test_vmap(use: Callable[..., Any], target: str, dynamic: bool) -> None:
    model, options = weights(Vmapped(use)), {"strict": True, "target": target}
    fast = torch.compile(model, backend="ditc", fullgraph=True, dynamic=dynamic, options=options)
    with torch.no_grad():
        for x in (randn(2, 6, 4), randn(2, 8, 4)):
            torch.testing.assert_close(fast(x), model(x))


def test_gradients_pass_a_vmap() -> None:
    model, x = weights(Vmapped(lambda y, ids: twice(y, ids)[0])).train(), randn(2, 6, 4)
    wanted = gradients(model, model, x)
    options = {"strict": True, "target": "eager"}
    made = gradients(torch.compile(model, backend="ditc", options=options), model, x)
    for name, value in wanted.items():
        torch.testing.assert_close(made[name], value)


class Attention(nn.Module):
    """Self-attention that each case masks and scores in its own way."""

    def __init__(self, mask: Any = None, score: Any = None, groups: int = 1, **how: Any) -> None:
        super().__init__()
        self.q, self.kv = nn.Linear(32, 32), nn.Linear(32, 64 // groups)
        self.mask, self.score, self.groups, self.how = mask, score, groups, how
        self.register_buffer("chunk", torch.arange(128) // 48)

    def forward(self, x: Tensor) -> Any:
        q = self.q(x).unflatten(-1, (2, 16)).transpose(1, 2)
        k, v = self.kv(x).unflatten(-1, (2, 2 // self.groups, 16)).permute(2, 0, 3, 1, 4)
        mask = None
        if self.mask is not None:
            mask = create_block_mask(
                lambda b, h, m, n: self.mask(self.chunk, b, h, m, n),
                *(x.shape[0], 2, 128, 128),
                device="cpu",
            )
        grouped = self.groups > 1
        return flex_attention(q, k, v, self.score, mask, enable_gqa=grouped, **self.how)


def causal(chunk: Tensor, b: Tensor, h: Tensor, m: Tensor, n: Tensor) -> Tensor:
    return (chunk[m] >= chunk[n]) | (m == n)


def by_head(chunk: Tensor, b: Tensor, h: Tensor, m: Tensor, n: Tensor) -> Tensor:
    return (m >= n + 8 * h) & (b + n < 120)  # rows that see nothing, too


def nearer(score: Tensor, b: Tensor, h: Tensor, m: Tensor, n: Tensor) -> Tensor:
    return torch.where(h > 0, score - (m - n).abs() * 0.1, score)


ATTENTIONS: dict[str, Callable[[], Attention]] = {
    "plain": Attention,
    "masked": lambda: Attention(causal),
    "masked by head": lambda: Attention(by_head),
    "scored": lambda: Attention(score=nearer),
    "both": lambda: Attention(causal, nearer),
    "grouped": lambda: Attention(causal, groups=2),
    "scaled": lambda: Attention(causal, scale=0.5),
    "with its sums": lambda: Attention(causal, return_lse=True),
}


@pytest.mark.parametrize("target", ["eager", pytest.param("inductor", marks=pytest.mark.full)])
@pytest.mark.parametrize(
    "name",
    [name if name == "both" else pytest.param(name, marks=pytest.mark.slow) for name in ATTENTIONS],
)
def test_flex_attention(name: str, target: str) -> None:
    model, x = weights(ATTENTIONS[name]()), randn(2, 128, 32)
    options = {"strict": True, "target": target}
    fast = torch.compile(model, backend="ditc", fullgraph=True, options=options)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x))


@pytest.mark.parametrize("name", ["masked", "grouped", "scaled"])
def test_a_mask_alone_leaves_attention_whole(name: str) -> None:
    program, _ = from_dynamo(weights(ATTENTIONS[name]()), randn(2, 128, 32))
    Verifier().check(program)
    assert ops(program)["aten.scaled_dot_product_attention"] == 1


def test_a_large_mask_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex, "_LARGE", 2**14)
    with pytest.warns(DitcWarning, match="with a dense tensor of 0 MiB, empty blocks included"):
        from_dynamo(weights(Attention(by_head)), randn(2, 128, 32))
