"""fold-weights, hoist-invariant, hoist-timestep: one cut at three moments."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dit_compile as ditc
from dit_compile.analysis.binding import settle
from dit_compile.errors import PipelineError, VerificationError
from dit_compile.ir.program import (
    PROLOGUE,
    TABLE,
    WEIGHTS,
    Binding,
    InputKind,
    Program,
    placeholders,
)
from dit_compile.ir.verifier import Verifier
from dit_compile.pipeline.pipeline import Pipeline
from tests import zoo
from tests.passes.irtest import Rewritten, capture, check, ops, randn, rewrite, weights

D = 16
HOISTS = "fold-weights,hoist-invariant,hoist-timestep"


def waves(t: Tensor) -> Tensor:
    half = D // 2
    angles = t[:, None] * torch.exp(-math.log(1e3) * torch.arange(half) / half)
    return torch.cat([angles.sin(), angles.cos()], -1)


class Conditioned(nn.Module):
    """Tokens attend to a prompt and are modulated by the timestep."""

    def __init__(self) -> None:
        super().__init__()
        self.time, self.modulation = nn.Linear(D, D), nn.Linear(D, 2 * D)
        self.q, self.k, self.v = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, D)

    # RUN: fold-weights,hoist-invariant,hoist-timestep
    # CHECK: ditc.graph @full
    # CHECK-NOT: aten.exp
    # CHECK-NOT: @k.weight
    # CHECK-NOT: @modulation.weight
    # CHECK: aten.linear(%x, @q.weight, @q.bias)
    # CHECK: aten.scaled_dot_product_attention(
    # CHECK: ditc.graph @weights
    # CHECK: aten.exp
    # CHECK: ditc.graph @prologue
    # CHECK: aten.linear(%prompt, @k.weight, @k.bias)
    # CHECK: ditc.graph @table
    # CHECK: @modulation.weight, @modulation.bias)
    def forward(self, x: Tensor, t: Tensor, prompt: Tensor) -> Tensor:
        scale, shift = self.modulation(F.silu(self.time(waves(t))))[:, None].chunk(2, -1)
        x = x + F.scaled_dot_product_attention(self.q(x), self.k(prompt), self.v(prompt))
        return x * (1 + scale) + shift


def example(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    return randn(2, 6, D, dtype=dtype), torch.tensor([900.0, 900.0]), randn(2, 5, D, dtype=dtype)


def hoisted(model: nn.Module, *inputs: Tensor, passes: str = HOISTS) -> Rewritten:
    program = capture(weights(model), *inputs)
    settle(program)
    return rewrite(passes, program, *inputs)


def test_each_value_moves_to_its_graph() -> None:
    check(weights(Conditioned()), *example(), edit=settle)


def test_the_cut_goes_before_broadcasts_and_views() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.modulation = nn.Linear(D, 2 * D)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            gate, shift = self.modulation(waves(t))[:, None].chunk(2, -1)
            return x * gate + shift.expand(-1, x.shape[1], -1)

    done = hoisted(Gated(), *example()[:2])
    (row,) = (done.after.producer(out.name) for out in done.after.outputs[TABLE])
    assert row.meta["val"].shape == (2, 2 * D)  # not [2, 1, 2D], and not two pieces of it
    assert ops(done.after)["aten.unsqueeze"] == ops(done.after)["aten.expand"] == 1


def test_a_dynamic_shape() -> None:
    dim = torch.export.Dim("tokens", min=2, max=64)
    shapes = {"x": {1: dim}, "t": None, "prompt": None}
    check(weights(Conditioned()), *example(), dynamic_shapes=shapes, edit=settle)


def test_half_precision_keeps_the_rule() -> None:
    class Half(Conditioned):
        def forward(self, x: Tensor, t: Tensor, prompt: Tensor) -> Tensor:
            scale = self.modulation(F.silu(self.time(waves(t).to(x.dtype))))[:, None, :D]
            x = x + F.scaled_dot_product_attention(self.q(x), self.k(prompt), self.v(prompt))
            return x * (1 + scale)

    done = hoisted(Half().bfloat16(), *example(torch.bfloat16))
    assert {WEIGHTS, PROLOGUE, TABLE} <= done.after.graphs.keys()


def test_a_wide_mask_stays_narrow() -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            bias = ((1 - mask.float()) * -1e4)[:, None, :].expand(-1, x.shape[1], -1)
            return F.scaled_dot_product_attention(x, x, x, attn_mask=bias)

    mask = torch.tensor([[1, 1, 1, 0, 0, 0]] * 2)
    program = capture(Masked(), randn(2, 6, D), mask)
    settle(program)
    assert str(program.inputs["mask"].binding) == "invariant"
    done = rewrite(HOISTS, program, randn(2, 6, D), mask)
    (kept,) = (done.after.producer(out.name) for out in done.after.outputs[PROLOGUE])
    assert kept.meta["val"].shape == (2, 6)
    assert ops(done.after)["aten.expand"] == 1


def test_what_does_not_fit_stays() -> None:
    tight = "fold-weights,hoist-invariant,hoist-timestep{max-bytes=10000}"
    done = hoisted(Conditioned(), *example(), passes=tight)
    assert len(done.after.outputs[TABLE]) == 1  # the scale; the shift is as large
    assert done.misses == ["128 bytes for each of 50 steps exceed max-bytes=10000"]
    fits = hoisted(Conditioned(), *example(), passes=tight.replace("}", ",rows=39}"))
    assert len(fits.after.outputs[TABLE]) == 2


def test_a_large_batch_computes_its_modulations_at_each_step() -> None:
    """Each row of a table would do all the arithmetic, and reading it costs more than weights."""
    many = randn(4 * D, 6, D), torch.full((4 * D,), 900.0), randn(4 * D, 5, D)
    done = hoisted(Conditioned(), *many)
    assert TABLE not in done.after.graphs
    assert PROLOGUE in done.after.graphs  # the prompt is projected once, however large
    ratios = [
        re.fullmatch("for all steps at once ([0-9.]+) times as fast, less than .*=2", miss)
        for miss in done.misses
    ]
    assert [float(found.group(1)) < 2 for found in ratios if found] == [True, True]
    any_gain = HOISTS + "{min-speedup=0}"
    assert TABLE in hoisted(Conditioned(), *many, passes=any_gain).after.graphs


def test_where_a_value_does_not_pay_what_it_is_made_of_may() -> None:
    """One modulation, repeated for every token and not broadcast, is kept before it is repeated."""

    class Repeated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.time = nn.Linear(D, 8 * D)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            rows = self.time(waves(t)).repeat_interleave(64, 0)
            return x * rows.reshape(-1, 64, 8 * D).sin()

    done = hoisted(Repeated(), randn(2, 64, 8 * D), torch.tensor([900.0, 900.0]))
    (row,) = (done.after.producer(out.name) for out in done.after.outputs[TABLE])
    assert row.meta["val"].shape == (2, 8 * D)
    assert ops(done.after)["aten.linear"] == 0
    (miss,) = done.misses
    assert "less than min-speedup=2" in miss


def test_what_the_caller_gets_stays() -> None:
    class Returns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(D, D)

        def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            embedded = self.embed(waves(t))
            return x * embedded[:, None], embedded

    done = hoisted(Returns(), *example()[:2], passes="hoist-timestep")
    assert done.misses == ["the caller gets it, and may write into it"]
    assert TABLE not in done.after.graphs


def test_what_costs_nothing_stays() -> None:
    """A view of the prompt is no work."""
    inputs = randn(2, D, D), randn(2, 5, D)

    class View(nn.Module):
        def forward(self, x: Tensor, prompt: Tensor) -> Tensor:
            return x + prompt.transpose(1, 2)[:, :, :1].expand(-1, -1, D)

    program = capture(View(), *inputs)
    settle(program, {"prompt": "invariant"})
    assert PROLOGUE not in rewrite(HOISTS, program, *inputs).after.graphs


def test_random_numbers_are_drawn_at_each_step() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor, prompt: Tensor) -> Tensor:
            return x * (prompt + torch.randn_like(prompt)).sum()

    program = capture(Noisy(), *example()[::2])
    settle(program, {"prompt": "invariant"})
    Pipeline.parse(HOISTS).run(program)
    assert ops(program)["aten.randn_like"] == 1


def test_nothing_moves_while_autograd_records() -> None:
    from dit_compile.capture.export import capture_module

    program = capture_module(Conditioned(), example())
    assert program.training
    settle(program)
    run = Pipeline.parse(HOISTS).run(program)
    assert [record.skipped for record in run.records] == ["autograd records"] * 3


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(PipelineError, match="rows must be at least 1, not 0"):
        Pipeline.parse("hoist-timestep{rows=0}")
    with pytest.raises(PipelineError, match="min-speedup must be at least 0, not -1"):
        Pipeline.parse("hoist-timestep{min-speedup=-1}")


def left(program: Program, paths: tuple[str, ...]) -> set[str]:
    """The given weights that the main graph still reads."""
    read = (program.inputs[str(n.target)] for n in program.main.find_nodes(op="placeholder"))
    weights = {spec.path for spec in read if spec.kind is InputKind.WEIGHT}
    return {path for path in weights if any(part in path for part in paths)}


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        ("dit", ("norm1.linear", "timestep_embedder", "class_embedder", "proj_out_1")),
        ("pixart", ("adaln_single", "caption_projection", "attn2.to_k", "attn2.to_v")),
        ("sd3", ("norm1.linear", "time_text_embed", "norm_out.linear")),
        ("flux", ("norm.linear", "norm1.linear", "time_text_embed", "norm_out.linear")),
        ("wan", ("condition_embedder", "attn2.to_k", "attn2.to_v")),
        ("latte", ("adaln_single", "caption_projection")),
    ],
)
def test_six_families(name: str, gone: tuple[str, ...]) -> None:
    """What embeds the timestep and the prompt leaves the loop, whatever the model."""
    case = zoo.case(name)
    inputs = case.inputs(0, torch.Generator().manual_seed(0))
    found = ditc.explain(zoo.build(case), kwargs=inputs, numerics=name in ("dit", "flux"))
    assert left(found.program, gone) == set()


@pytest.mark.parametrize(("path", "graph"), [("prompt", PROLOGUE), ("t", TABLE)])
def test_what_runs_ahead_depends_only_on_what_is_compared(path: str, graph: str) -> None:
    after = hoisted(Conditioned(), *example()).after
    Verifier().check(after)
    after.bind(path, Binding.LATENT)
    with pytest.raises(VerificationError, match=f"graph @{graph} returns .* '{path}', which no"):
        Verifier().check(after)


def test_sizes_of_a_latent_may_be_known_ahead() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.k, self.v = nn.Conv1d(D, D, 2, 2), nn.Linear(D, D), nn.Linear(D, D)

        def forward(self, x: Tensor, prompt: Tensor) -> Tensor:
            tokens = self.embed(x.mT).mT
            text = self.k(prompt.expand(-1, tokens.shape[1], -1))
            return tokens + F.scaled_dot_product_attention(tokens, text, self.v(text))

    x, prompt = randn(2, 12, D), randn(2, 1, D)
    length = torch.export.Dim("length", min=2, max=64)
    program = capture(weights(Positions()), x, prompt, dynamic_shapes=({1: 2 * length}, None))
    settle(program, {"x": "latent", "prompt": "invariant"})
    after = rewrite("hoist-invariant", program, x, prompt).after
    assert any(node.target == "x" for node in placeholders(after.graphs[PROLOGUE].graph))
