"""Samples are found where they are: cutting the inputs cuts every result at the same place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dit_compile.analysis.sample_rules  # noqa: F401  (registers the rules)
from dit_compile.analysis.samples import find_samples
from dit_compile.capture.export import capture_module
from dit_compile.ir.program import Program, output_args

BATCH = 4
Function = Callable[[Tensor], Tensor]

TABLE = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
SQUARE = torch.randn(8, 8, generator=torch.Generator().manual_seed(2))


class Plain(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def captured(function: Function, x: Tensor) -> Program:
    with torch.no_grad():
        return capture_module(Plain(function), (x,))


def heads(x: Tensor) -> Tensor:
    """``[B, N, D]`` as ``[B * heads, N, D / heads]``."""
    return x.unflatten(-1, (2, -1)).transpose(1, 2).flatten(0, 1)


#: What is done to ``[B, 6, 8]``, and where its samples come to lie.
APART: dict[str, tuple[Function, int]] = {
    "pointwise": (lambda x: F.silu(x) * 2 + TABLE, 0),
    "a row for all": (lambda x: x + x.sum(1, keepdim=True) * TABLE[None, :1], 0),
    "transposed": (lambda x: x.permute(1, 2, 0), 2),
    "transposed and multiplied": (lambda x: SQUARE @ x.permute(1, 2, 0), 2),
    "heads in the batch": (heads, 0),
    "heads and back": (lambda x: heads(x).unflatten(0, (-1, 2)).transpose(1, 2).flatten(2), 0),
    "another dimension in front": (lambda x: x[None].expand(3, -1, -1, -1).flatten(2), 1),
    "reduced in front": (lambda x: x.transpose(0, 1).sum(0), 0),
    "reduced behind": (lambda x: x.transpose(0, 1).amax(-1), 1),
    "variance": (lambda x: x.var(-1, keepdim=True), 0),
    "norms": (lambda x: F.rms_norm(F.layer_norm(x, [6, 8]), [8]), 0),
    "linear": (lambda x: F.linear(x, SQUARE), 0),
    "addmm": (lambda x: torch.addmm(SQUARE[0], x[:, 0], SQUARE), 0),
    "samples by samples": (lambda x: x @ x.transpose(1, 2), 0),
    "a matrix for all": (lambda x: SQUARE[None] @ x.transpose(1, 2), 0),
    "bmm": (lambda x: torch.bmm(heads(x), heads(x).transpose(1, 2)), 0),
    "attention": (
        lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=torch.ones(6, 6).tril() > 0),
        0,
    ),
    "einsum": (lambda x: torch.einsum("bnd,de->ebn", x, SQUARE), 1),
    "softmax": (lambda x: x.softmax(-1).cumsum(1), 0),
    "pieces": (lambda x: torch.cat(x.chunk(2, -1)[::-1], -1), 0),
    "unbound": (lambda x: torch.stack(x.unbind(1), 0), 1),
    "sliced": (lambda x: x[:, 2:5, ::2], 0),
    "selected": (lambda x: x.transpose(0, 1)[3], 0),
    "squeezed": (lambda x: x[:, None].transpose(0, 1).squeeze(0), 0),
    "repeated": (lambda x: x.repeat(2, 1, 3, 1), 1),
    "interleaved": (lambda x: x.repeat_interleave(3, 0), 0),
    "a token for each": (lambda x: torch.cat([TABLE[None, :1].expand(len(x), -1, -1), x], 1), 0),
    "one repeated for each": (lambda x: torch.cat([TABLE[:1].repeat(len(x), 1, 1), x], 1), 0),
    "masks": (lambda x: ((x > 0) & (TABLE > 0)).float(), 0),
    "zeros for each": (lambda x: torch.cat([x.new_zeros(len(x), 1, 8), x], 1), 0),
    "padded": (lambda x: F.pad(x, (1, 1)), 0),
    "convolved": (lambda x: F.conv1d(x, TABLE[:, :6, None]), 0),
    "group norm": (lambda x: F.group_norm(x, 3), 0),
    "resized": (lambda x: F.interpolate(x, scale_factor=2.0), 0),
    "embedded": (lambda x: F.embedding(x[..., 0].abs().long() % 6, TABLE), 0),
    "indexed": (lambda x: x[:, torch.tensor([2, 0])], 0),
    "index of each": (lambda x: TABLE[x[:, 0, 0].abs().long() % 6], 0),
    "gathered": (lambda x: x.gather(1, x.abs().long() % 6), 0),
    "outer": (lambda x: torch.outer(x[:, 0, 0], TABLE[0]), 0),
    "complex": (lambda x: torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (4, 2)))), 0),
    "as another": (lambda x: x.to(torch.float64).type_as(TABLE), 0),
}

MIXED: dict[str, Function] = {
    "mean over samples": lambda x: x - x.mean(0),
    "mean over all": lambda x: x / x.mean(),
    "softmax over samples": lambda x: x.softmax(0),
    "running sum": lambda x: x.cumsum(0),
    "norm over samples": lambda x: F.layer_norm(x.permute(1, 2, 0), [BATCH]),
    "turned round": lambda x: x.flip(0),
    "rolled": lambda x: x.roll(1),
    "doubled": lambda x: torch.cat([x, x]),
    "repeated": lambda x: x.repeat(2, 1, 1),
    "as a second batch": lambda x: x + TABLE[:BATCH, None].repeat(1, 6, 1),
    "halves": lambda x: x.chunk(2)[0] + x.chunk(2)[1],
    "every other": lambda x: x[::2],
    "one sample": lambda x: x[0] + x,
    "samples folded behind": lambda x: x.transpose(0, 1).reshape(-1, 8),
    "samples split": lambda x: x.unflatten(0, (2, -1)),
    "gram matrix": lambda x: x[:, 0] @ x[:, 0].T,
    "product over samples": lambda x: x.permute(1, 2, 0) @ x.transpose(0, 1),
    "attention over samples": lambda x: F.scaled_dot_product_attention(*[x.transpose(0, 1)] * 3),
    "einsum over samples": lambda x: torch.einsum("bnd,bne->de", x, x),
    "a row of its own": lambda x: x[:, :4] + torch.arange(BATCH)[:, None, None],
    "as weights": lambda x: F.linear(TABLE, x[:, 0]),
    "picked by samples": lambda x: x[x[:, 0, 0].abs().long() % BATCH],
    "batch norm": lambda x: F.batch_norm(x, None, None, training=True),
    "along the wrong dimension": lambda x: x[:, :4] + x[:, :4].transpose(0, 1),
}


def inputs() -> Tensor:
    return torch.randn(BATCH, 6, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", APART)
def test_half_of_the_inputs_gives_half_of_the_result(name: str) -> None:
    function, dim = APART[name]
    x = inputs()
    program = captured(function, x)
    found = find_samples(program, BATCH)
    (output,) = output_args(program.main)
    assert not found.misses
    assert found.dims[output] == dim
    whole, half = function(x), function(x[BATCH // 2 :])
    size = whole.shape[dim] // 2
    torch.testing.assert_close(whole.narrow(dim, size, size), half)


@pytest.mark.parametrize("name", MIXED)
def test_what_mixes_samples_is_a_miss(name: str) -> None:
    program = captured(MIXED[name], inputs())
    found = find_samples(program, BATCH)
    (output,) = output_args(program.main)
    assert output not in found.dims
    assert found.misses[output].reason


def test_all_that_follows_a_miss_has_the_same_cause() -> None:
    def function(x: Tensor) -> Any:
        return F.silu(x.flip(0)) + 1

    program = captured(function, inputs())
    found = find_samples(program, BATCH)
    (miss,) = set(found.misses.values())
    assert "flip" in str(miss.node.target)
    assert len(found.misses) == 3


def test_what_has_no_samples_is_no_miss() -> None:
    program = captured(lambda x: x + (TABLE.flip(0) @ SQUARE).softmax(0), inputs())
    assert not find_samples(program, BATCH).misses
