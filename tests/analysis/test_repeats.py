"""Repeats: regions alike but for what they read, found from the nodes alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from dit_compile.analysis.repeats import Repeat, find_repeats
from dit_compile.ir.program import Program
from tests.passes.irtest import capture, randn, weights

aten = torch.ops.aten

D = 8
HEAVY = (aten.linear.default, aten.scaled_dot_product_attention.default)


class Block(nn.Module):
    """A residual MLP behind a norm."""

    def __init__(self, width: int = 2 * D, eps: float = 1e-5) -> None:
        super().__init__()
        self.up, self.down, self.eps = nn.Linear(D, width), nn.Linear(width, D), eps

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        normed = F.layer_norm(x, (D,), eps=self.eps) * (1 + c) + c
        return x + torch.tanh(c) * self.down(F.gelu(self.up(normed)))


class Chain(nn.Module):
    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.into, self.blocks = nn.Linear(D, D), nn.ModuleList(blocks)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        x = self.into(x)
        for block in self.blocks:
            x = block(x, c)
        return F.layer_norm(x, (D,))


def program_of(*blocks: nn.Module) -> Program:
    return capture(weights(Chain(*blocks)), randn(2, 4, D), randn(2, 1, D))


def repeats(model: Program) -> list[Repeat]:
    return find_repeats(model.main, HEAVY)


def shapes(found: list[Repeat]) -> list[tuple[int, int]]:
    return [(len(repeat.regions), len(repeat.regions[0])) for repeat in found]


def test_equal_blocks_are_one_repeat() -> None:
    (found,) = repeats(program_of(*(Block() for _ in range(6))))
    assert shapes([found]) == [(5, 10)], "the first norm and what follows the last one stay"
    assert sum(node.target in HEAVY for node in found.regions[0]) == 2
    weights_read = [reads for reads in found.operands if len(set(reads)) == 5]
    assert len(weights_read) >= 4, "each block's weights are operands"
    assert any(len(set(reads)) == 1 for reads in found.operands), "all read one condition"


def test_the_border_separates_nothing_that_would_be_fused() -> None:
    (found,) = repeats(program_of(*(Block() for _ in range(4))))
    for before, after in zip(found.regions, found.regions[1:], strict=False):
        for value in (before[position] for position in found.results):
            readers = [user for user in value.users if user in after]
            upto = next(i for i, node in enumerate(after) if node.target in HEAVY)
            late = not any(node.target in HEAVY for node in before[before.index(value) :])
            fused = [user for user in readers if late and after.index(user) < upto]
            assert value.target in HEAVY or not fused


@pytest.mark.parametrize("other", [{"width": 4 * D}, {"eps": 1e-6}])
def test_blocks_that_differ_are_told_apart(other: dict[str, Any]) -> None:
    kinds = [{}, {}, {}, other, other, other, other, {}]
    found = repeats(program_of(*(Block(**kind) for kind in kinds)))
    assert len(found) == 2
    for repeat in found:
        for nodes in zip(*repeat.regions, strict=True):
            assert len({(node.target, node.meta["val"].shape) for node in nodes}) == 1
    assert repeats(program_of(Block(), Block(eps=1e-6), Block(4 * D))) == []


def test_alternating_blocks_have_a_period_of_two() -> None:
    found = repeats(program_of(*(Block(D * (1 + i % 2)) for i in range(6))))
    assert [length for _, length in shapes(found)] == [20]


def test_a_region_that_reads_another_way_ends_the_run() -> None:
    class Skips(Chain):
        def forward(self, x: Tensor, c: Tensor) -> Tensor:
            kept = []
            for number, block in enumerate(self.blocks):
                kept.append(x)
                x = block(x if number != 3 else kept[1], c)
            return x

    program = capture(weights(Skips(*(Block() for _ in range(6)))), randn(2, 4, D), randn(2, 1, D))
    for found in repeats(program):
        for region in found.regions:
            assert len(region) == len(found.regions[0])
    assert sum(len(found.regions) for found in repeats(program)) >= 2


def test_views_of_operands_are_no_results() -> None:
    """A called region returns memory of its own, so one that returns a view is no repeat as is."""

    class Views(nn.Module):
        def forward(self, x: Tensor, ws: Tensor) -> list[Tensor]:
            views = []
            for w in ws.unbind(0):
                view = w.view(D, D).transpose(0, 1).unsqueeze(0).squeeze(0)
                x = F.linear(x, view).sin().cos().exp()
                views.append(view)
            return [x, *views]

    program = capture(Views(), randn(2, D), randn(5, D, D))
    for found in repeats(program):
        for region in found.regions:
            results = [region[position] for position in found.results]
            assert not any(node.target is aten.squeeze.dim for node in results)


def test_random_regions_stay_in_place() -> None:
    """Numbers are drawn in the order of the graph; a call would hide that."""

    class Noisy(Block):
        def forward(self, x: Tensor, c: Tensor) -> Tensor:
            return super().forward(x + torch.rand_like(x), c)

    assert repeats(program_of(*(Noisy() for _ in range(6)))) == []


def test_short_or_light_stretches_are_left_alone() -> None:
    def light(x: Tensor) -> Tensor:
        for _ in range(40):
            x = x.sin().cos().exp().tanh()
        return x

    assert repeats(capture(light, randn(2, 2))) == []
    assert find_repeats(fx.Graph(), HEAVY) == []
