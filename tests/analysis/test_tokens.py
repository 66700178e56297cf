from __future__ import annotations

import inspect
import math
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import sympy
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from dit_compile.analysis import sizes as engine
from dit_compile.analysis import tokens as module_under_test
from dit_compile.analysis.sizes import (
    Size,
    const,
    cut,
    divide,
    product,
    regroup,
    size_rule,
    total,
)
from dit_compile.analysis.tokens import Tokens, describe_tokens, find_tokens, infer_sizes
from dit_compile.capture.export import capture_module
from dit_compile.errors import AnalysisError
from dit_compile.ir.program import MAIN, Binding, Input, InputKind, Output, OutputKind, Program
from tests import zoo
from tests.analysis import structures
from tests.analysis.structures import each

HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}


# --- helpers ----------------------------------------------------------------------------------


def program_of(fn: Callable[..., Any], *args: Tensor) -> Program:
    """A static program of ``fn``, whose inputs are named as its arguments are."""
    with torch.no_grad():
        module = make_fx(fn, tracing_mode="fake", pre_dispatch=True, _allow_non_fake_inputs=True)(
            *args
        )
    names = list(inspect.signature(fn).parameters)
    for node, name in zip(module.graph.find_nodes(op="placeholder"), names, strict=True):
        node._rename(name)
        node.target = name
    output = next(iter(module.graph.find_nodes(op="output")))
    values = output.args[0]
    output.args = (tuple(values) if isinstance(values, (list, tuple)) else (values,),)
    return Program(
        graphs={MAIN: module},
        outputs={MAIN: (Output(OutputKind.USER),) * len(output.args[0])},
        inputs={name: Input(name, InputKind.USER, name, Binding.LATENT) for name in names},
        fake_mode=FakeTensorMode(),
    )


def result(fn: Callable[..., Any], *args: Tensor) -> str:
    """The inferred sizes of what ``fn`` returns, as text."""
    program = program_of(fn, *args)
    sizes, _ = infer_sizes(program)
    node = next(iter(program.main.find_nodes(op="output"))).args[0][0]
    return ", ".join("?" if size is None else str(sympy.expand(size)) for size in sizes[node])


def captured(model: nn.Module, inputs: dict[str, Any], **options: Any) -> Program:
    with torch.no_grad():
        return capture_module(model.eval(), (), inputs | {"return_dict": False}, **options)


def roles(tokens: Tokens) -> Counter[tuple[str, str]]:
    return Counter((axis.role, str(axis.count)) for axis in tokens.axes.values())


def check_numbers(program: Program) -> None:
    """Every inferred size must have the real number at the captured shapes."""
    sizes, numbers = infer_sizes(program)
    for node, exprs in sizes.items():
        for expr, real in zip(exprs, getattr(node.meta["val"], "shape", ()), strict=False):
            if expr is not None and isinstance(real, int):
                assert expr.subs(numbers) == real, (node, exprs)


def check_axes(tokens: Tokens) -> None:
    for node, axis in tokens.axes.items():
        for one in (axis, *axis.others):
            real = node.meta["val"].shape[one.dim]
            real = real if isinstance(real, int) else real.node.hint
            assert one.count.subs(tokens.sizes) == real, (node, one)


# --- models -----------------------------------------------------------------------------------


def dit() -> tuple[nn.Module, dict[str, Any]]:
    model = diffusers.DiTTransformer2DModel(
        **HEADS, in_channels=4, num_layers=1, sample_size=8, num_embeds_ada_norm=10
    )
    return model, {
        "hidden_states": torch.randn(3, 4, 8, 8),
        "timestep": torch.tensor([3, 4, 5]),
        "class_labels": torch.tensor([1, 2, 3]),
    }


def pixart() -> tuple[nn.Module, dict[str, Any]]:
    model = diffusers.PixArtTransformer2DModel(
        **HEADS, num_layers=1, sample_size=8, cross_attention_dim=32, caption_channels=24
    )
    return model, {
        "hidden_states": torch.randn(2, 4, 8, 12),
        "encoder_hidden_states": torch.randn(2, 7, 24),
        "timestep": torch.tensor([3, 4]),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        "encoder_attention_mask": torch.ones(2, 7),
    }


def sd3() -> tuple[nn.Module, dict[str, Any]]:
    model = diffusers.SD3Transformer2DModel(
        **HEADS,
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        joint_attention_dim=24,
        caption_projection_dim=32,
        pooled_projection_dim=16,
        pos_embed_max_size=12,
    )
    return model, {
        "hidden_states": torch.randn(2, 4, 8, 12),
        "encoder_hidden_states": torch.randn(2, 7, 24),
        "pooled_projections": torch.randn(2, 16),
        "timestep": torch.tensor([3.0, 4.0]),
    }


def flux() -> tuple[nn.Module, dict[str, Any]]:
    model = diffusers.FluxTransformer2DModel(
        **HEADS,
        in_channels=16,
        joint_attention_dim=24,
        axes_dims_rope=(4, 4, 8),
        num_layers=1,
        num_single_layers=1,
        pooled_projection_dim=20,
    )
    return model, {
        "hidden_states": torch.randn(2, 12, 16),
        "encoder_hidden_states": torch.randn(2, 7, 24),
        "pooled_projections": torch.randn(2, 20),
        "timestep": torch.tensor([0.3, 0.4]),
        "img_ids": torch.randn(12, 3),
        "txt_ids": torch.zeros(7, 3),
    }


def wan() -> tuple[nn.Module, dict[str, Any]]:
    model = diffusers.WanTransformer3DModel(
        **HEADS,
        in_channels=4,
        out_channels=4,
        text_dim=24,
        freq_dim=32,
        ffn_dim=64,
        rope_max_seq_len=32,
        num_layers=1,
    )
    return model, {
        "hidden_states": torch.randn(2, 4, 3, 8, 12),
        "timestep": torch.tensor([3, 4]),
        "encoder_hidden_states": torch.randn(2, 7, 24),
    }


def latte() -> tuple[nn.Module, dict[str, Any]]:
    model = diffusers.LatteTransformer3DModel(
        **HEADS,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        cross_attention_dim=32,
        caption_channels=24,
        sample_size=8,
        patch_size=2,
        norm_type="ada_norm_single",
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        video_length=3,
        norm_elementwise_affine=False,
    )
    return model, {
        "hidden_states": torch.randn(2, 4, 3, 8, 12),
        "timestep": torch.tensor([3, 4]),
        "encoder_hidden_states": torch.randn(2, 7, 24),
    }


TEXT = "encoder_hidden_states_1"


@pytest.mark.parametrize(
    ("build", "count", "expected"),
    [
        (dit, "H*W/4", {("tokens", "H*W/4")}),
        (pixart, "H*W/4", {("tokens", "H*W/4")}),
        (sd3, "H*W/4", {("tokens", "H*W/4"), ("joint", f"H*W/4 + {TEXT}")}),
        (flux, "N", {("tokens", "N"), ("joint", f"N + {TEXT}")}),
        (wan, "F*H*W/4", {("tokens", "F*H*W/4")}),
        (latte, "F*H*W/4", {("spatial", "H*W/4"), ("temporal", "F")}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_model(build: Any, count: str, expected: set[tuple[str, str]]) -> None:
    program = captured(*build())
    tokens = find_tokens(program)
    assert tokens.latent.name == "hidden_states"
    assert str(tokens.count) == count
    assert not tokens.misses
    assert expected <= set(roles(tokens))
    check_axes(tokens)
    check_numbers(program)
    queries = [
        node
        for node in program.main.nodes
        if node.target is torch.ops.aten.scaled_dot_product_attention.default
    ]
    assert queries
    streams = {tokens.axes[node].role for node in queries if node in tokens.axes}
    assert streams <= {role for role, _ in expected}
    assert all(tokens.axes[node].dim == 2 for node in queries if node in tokens.axes)


def test_latte_says_which_axis_holds_which_tokens() -> None:
    tokens = find_tokens(captured(*latte()))
    found = {
        (axis.role, axis.dim, str(axis.count)): [(o.role, o.dim, str(o.count)) for o in axis.others]
        for node, axis in tokens.axes.items()
        if node.target is torch.ops.aten.layer_norm.default
    }
    assert found[("spatial", 1, "H*W/4")] == [("temporal", 0, "B*F")]
    assert found[("temporal", 1, "F")] == [("spatial", 0, "B*H*W/4")]


AUTO = torch.export.Dim.AUTO
VIDEO = {"hidden_states": [0, 2, 3, 4], "timestep": [0], "encoder_hidden_states": [0, 1]}


@pytest.mark.parametrize(
    ("build", "shapes"),
    [
        (dit, {"hidden_states": [0], "timestep": [0], "class_labels": [0]}),
        (
            sd3,
            {
                "hidden_states": [0, 2, 3],
                "timestep": [0],
                "encoder_hidden_states": [0, 1],
                "pooled_projections": [0],
            },
        ),
        (
            sd3,
            {
                "hidden_states": [2],
                "timestep": [],
                "encoder_hidden_states": [],
                "pooled_projections": [],
            },
        ),
        pytest.param(wan, VIDEO, marks=pytest.mark.slow),
        pytest.param(latte, VIDEO, marks=pytest.mark.slow),
    ],
    ids=["dit", "sd3", "sd3 in height alone", "wan", "latte"],
)
def test_static_and_dynamic_agree(build: Any, shapes: dict[str, list[int]]) -> None:
    model, inputs = build()
    dynamic = {name: dict.fromkeys(dims, AUTO) for name, dims in shapes.items()}
    program = captured(model, inputs, dynamic_shapes={**dynamic, "return_dict": None})
    inner = program.main.find_nodes(op="call_function", target=torch.ops.aten.linear.default)
    assert any(isinstance(size, torch.SymInt) for node in inner for size in node.meta["val"].shape)
    moving, still = find_tokens(program), find_tokens(captured(model, inputs))
    assert not still.misses
    assert not moving.misses
    assert moving.count == still.count
    assert set(roles(still)) <= set(roles(moving))
    check_axes(moving)
    assert attentions(moving) == attentions(still)
    assert len(attentions(still)) > 0


def attentions(tokens: Tokens) -> list[tuple[Any, ...]]:
    """The axes of what attention yields, in the order of the graph; node names differ."""
    return [
        (axis.dim, axis.role, axis.count, axis.others)
        for node, axis in tokens.axes.items()
        if node.target is torch.ops.aten.scaled_dot_product_attention.default
    ]


def test_derived_dimensions_of_a_trace() -> None:
    class Patches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            b, c, h, w = x.shape
            tokens = x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
            tokens = tokens.reshape(b, (h // 2) * (w // 2), 4 * c)
            tokens = attend(tokens, tokens).view(b, h // 2, w // 2, c, 2, 2)
            return tokens.permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)

    half = torch.export.Dim("half", min=2, max=64)
    program = capture_module(
        Patches(), (torch.randn(2, 4, 6, 10),), dynamic_shapes=({2: 2 * half, 3: AUTO},)
    )
    still = find_tokens(capture_module(Patches(), (torch.randn(2, 4, 6, 10),)))
    moving = find_tokens(program)
    assert str(still.count) == str(moving.count) == "H*W/4"
    assert not moving.misses


def test_a_trace_that_says_otherwise_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    class Transposed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.transpose(1, 2).sin()

    program = capture_module(
        Transposed(), (torch.randn(2, 6, 6),), dynamic_shapes=({1: AUTO, 2: AUTO},)
    )
    # a wrong rule that fits the numbers
    monkeypatch.setitem(engine.RULES, "transpose", lambda run, call: call.first)
    misses = find_tokens(program).misses
    reasons = [miss.reason for miss in misses]
    assert reasons == ["inferred x_1, traced x_2", "inferred x_2, traced x_1"]


def test_no_model_is_named_in_the_analysis() -> None:
    words = set(re.findall(r"[a-z0-9]+", inspect.getsource(module_under_test).lower()))
    assert not words & {"diffusers", "pixart", "flux", "latte", "sd3", "wan", "transformer2d"}


# --- rules ------------------------------------------------------------------------------------

x = torch.randn(2, 4, 6, 10)  # B, C, H, W
seq = torch.randn(2, 15, 8)  # B, N, D
weight = torch.randn(32, 4, 2, 2)

RULES: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...], str]] = {
    "view merges": (lambda x: x.view(2, 4, 60), (x,), "x_0, x_1, x_2*x_3"),
    "view splits what it merged": (
        lambda x: x.view(2, 4, 60).view(2, 4, 6, 10),
        (x,),
        "x_0, x_1, x_2, x_3",
    ),
    "view splits into patches": (
        lambda x: x.view(2, 4, 3, 2, 5, 2),
        (x,),
        "x_0, x_1, x_2/2, 2, x_3/2, 2",
    ),
    "view splits and merges at once": (
        lambda x: x.view(2, 4, 60).transpose(1, 2).reshape(2, 6, 40),
        (x,),
        "x_0, x_2, x_1*x_3",
    ),
    "patchify": (
        lambda x: x.view(2, 4, 3, 2, 5, 2).permute(0, 2, 4, 3, 5, 1).reshape(2, 15, 16),
        (x,),
        "x_0, x_2*x_3/4, 4*x_1",
    ),
    "patchify and back": (
        lambda x: (
            x.view(2, 4, 3, 2, 5, 2)
            .permute(0, 2, 4, 3, 5, 1)
            .reshape(2, 15, 16)
            .reshape(2, 3, 5, 2, 2, 4)
            .permute(0, 5, 1, 3, 2, 4)
            .reshape(2, 4, 6, 10)
        ),
        (x,),
        "x_0, x_1, x_2, x_3",
    ),
    "batch of one merges": (
        lambda x: x.view(1, 4, 60).transpose(1, 2).reshape(60, 4),
        (x[:1],),
        "x_0*x_2*x_3, x_1",
    ),
    "heads": (
        lambda x: x.view(2, 15, 2, 4).transpose(1, 2),
        (seq,),
        "x_0, x_2/4, x_1, 4",
    ),
    "frames folded into the batch": (
        lambda x: (
            x.permute(0, 2, 1, 3)
            .reshape(12, 4, 10)
            .view(2, 6, 4, 10)
            .permute(0, 3, 1, 2)
            .reshape(20, 6, 4)
        ),
        (x,),
        "x_0*x_3, x_2, x_1",
    ),
    "einsum unpatchify": (
        lambda x: torch.einsum(
            "nhwpqc->nchpwq",
            F.linear(x.flatten(2).transpose(1, 2), torch.ones(8, 4)).reshape(2, 6, 10, 2, 2, 2),
        ).reshape(2, 2, 12, 20),
        (x,),
        "x_0, 2, 2*x_2, 2*x_3",
    ),
    "conv patch embedding": (
        lambda x: F.conv2d(x, weight, stride=2).flatten(2),
        (x,),
        "x_0, 32, x_2*x_3/4",
    ),
    "conv keeps": (
        lambda x: F.conv2d(x, torch.ones(3, 4, 3, 3), padding=1),
        (x,),
        "x_0, 3, x_2, x_3",
    ),
    "conv that does not divide": (
        lambda x: F.conv2d(x, torch.ones(3, 4, 3, 3), padding=1, stride=4),
        (x,),
        "x_0, 3, floor(x_2/4 - 1/4) + 1, floor(x_3/4 - 1/4) + 1",
    ),
    "streams concatenated": (
        lambda x, y: torch.cat([x, y], 1),
        (seq, torch.randn(2, 7, 8)),
        "x_0, x_1 + y_1, x_2",
    ),
    "streams taken apart by a split": (
        lambda x, y: torch.cat([y, x], 1).split([7, 15], 1)[1],
        (seq, torch.randn(2, 7, 8)),
        "x_0, x_1, x_2",
    ),
    "streams taken apart by a slice": (
        lambda x, y: torch.cat([y, x], 1)[:, 7:],
        (seq, torch.randn(2, 7, 8)),
        "x_0, x_1, x_2",
    ),
    "three streams, the last two taken": (
        lambda x, y: torch.cat([y, x, y], 1)[:, 7:],
        (seq, torch.randn(2, 7, 8)),
        "x_0, x_1 + y_1, x_2",
    ),
    "heads of joint streams": (
        lambda x, y: torch.cat([y, x], 1).view(2, 22, 2, 4).transpose(1, 2)[:, :, 7:],
        (seq, torch.randn(2, 7, 8)),
        "x_0, x_2/4, x_1, 4",
    ),
    "register tokens": (
        lambda x: torch.cat([torch.zeros(2, 3, 8), x], 1)[:, 3:],
        (seq,),
        "x_0, x_1, x_2",
    ),
    "slice from a number": (lambda x: x[:, 3:], (seq,), "x_0, x_1 - 3, x_2"),
    "slice to a negative": (lambda x: x[:, :-2], (seq,), "x_0, x_1 - 2, x_2"),
    "slice to a number": (lambda x: x[:, :5], (seq,), "x_0, 5, x_2"),
    "slice with a step": (lambda x: x[:, :, ::2], (seq,), "x_0, x_1, x_2/2"),
    "chunk": (lambda x: x.chunk(2, -1)[1], (seq,), "x_0, x_1, x_2/2"),
    "guidance batch doubled and halved": (
        lambda x: torch.cat([x, x]).chunk(2)[0],
        (seq,),
        "x_0, x_1, x_2",
    ),
    "padding taken off again": (
        lambda x: F.pad(x, (0, 0, 1, 2))[:, 1:16],
        (seq,),
        "x_0, x_1, x_2",
    ),
    "positions stand aside": (lambda x: x + torch.zeros(1, 15, 8), (seq,), "x_0, x_1, x_2"),
    "expand is joined later": (
        lambda x: torch.zeros(2, 1, 8).expand(2, 15, 8) * x,
        (seq,),
        "x_0, x_1, x_2",
    ),
    "stack and unbind": (
        lambda x: torch.stack([x, x], 1).unbind(2)[0],
        (seq,),
        "x_0, 2, x_2",
    ),
    "attention": (
        lambda x, y: F.scaled_dot_product_attention(x[:, None], y[:, None], y[:, None]),
        (seq, torch.randn(2, 7, 8)),
        "x_0, 1, x_1, x_2",
    ),
    "scores": (
        lambda x, y: (x @ y.transpose(1, 2)).softmax(-1),
        (seq, torch.randn(2, 7, 8)),
        "x_0, x_1, y_1",
    ),
    "mean": (lambda x: x.mean(1, keepdim=True), (seq,), "x_0, 1, x_2"),
    "gather": (
        lambda x, i: x[:, i],
        (seq, torch.tensor([1, 2, 3])),
        "x_0, i_0, x_2",
    ),
    "interleaved frames": (
        lambda x: x.repeat_interleave(3, 0).view(2, 3, 15, 8),
        (seq,),
        "x_0, 3, x_1, x_2",
    ),
    "rotary pairs": (
        lambda x: torch.view_as_real(torch.view_as_complex(x.reshape(2, 15, 4, 2))).flatten(2),
        (seq,),
        "x_0, x_1, x_2",
    ),
}


@pytest.mark.parametrize("case", RULES)
def test_rule(case: str) -> None:
    fn, args, expected = RULES[case]
    assert result(fn, *args) == expected
    check_numbers(program_of(fn, *args))


def test_inputs_that_must_agree_share_a_symbol() -> None:
    rope = torch.randn(60, 4)
    # the earlier input's symbol stands for both, unless the later one says more
    found = result(lambda rope, x: x.flatten(2).transpose(1, 2) * rope, rope, x)
    assert found == "x_0, x_2*x_3, rope_1"
    ids = (torch.randn(7, 8), torch.randn(15, 8))

    def joint(a: Tensor, b: Tensor, text: Tensor, image: Tensor) -> Tensor:
        table = torch.cat([a, b])
        return (torch.cat([text, image], 1) * table, table)[1]  # known only through its use

    assert result(joint, *ids, torch.randn(2, 7, 8), seq) == "a_0 + b_0, a_1"
    program = program_of(joint, *ids, torch.randn(2, 7, 8), seq)
    sizes, _ = infer_sizes(program)
    image = next(node for node in sizes if node.name == "image")
    assert [str(size) for size in sizes[image]] == ["text_0", "b_0", "a_1"]


# --- the latent and its axis ------------------------------------------------------------------


def attend(x: Tensor, keys: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x[:, None], keys[:, None], keys[:, None])[:, 0]


def test_latent_is_found_by_flow_and_not_by_place() -> None:
    def model(text: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        tokens = noise.flatten(2).transpose(1, 2) + t[:, None, None]
        tokens = attend(attend(tokens, tokens), text)
        return tokens.transpose(1, 2).reshape(2, 4, 6, 10)

    tokens = find_tokens(program_of(model, torch.randn(2, 7, 4), torch.randn(2), x))
    assert tokens.latent.name == "noise"
    assert str(tokens.count) == "H*W"
    assert {str(s): n for s, n in tokens.sizes.items()} == {
        "text_1": 7,
        "B": 2,
        "C": 4,
        "H": 6,
        "W": 10,
    }


def test_scores_hold_tokens_twice() -> None:
    def model(x: Tensor) -> Tensor:
        return (x @ x.transpose(1, 2)).softmax(-1) @ x

    tokens = find_tokens(program_of(model, seq))
    (scores,) = (axis for node, axis in tokens.axes.items() if "softmax" in node.name)
    assert (scores.dim, [other.dim for other in scores.others]) == (1, [2])


def test_a_second_latent_of_the_same_shape_comes_after_the_first() -> None:
    def model(control: Tensor, noise: Tensor) -> Tensor:
        flat = [value.flatten(2).transpose(1, 2) for value in (noise, control[:, :4])]
        tokens = attend(flat[0], flat[0]) + flat[1]
        return tokens.transpose(1, 2).reshape(2, 4, 6, 10)

    tokens = find_tokens(program_of(model, torch.randn(2, 5, 6, 10), x))
    assert tokens.latent.name == "noise"  # the output has its channels
    assert {str(axis.count) for axis in tokens.axes.values()} == {"H*W"}


def test_flat_tokens_of_all_samples() -> None:
    def model(x: Tensor) -> Tensor:
        return F.silu(attend(x, x).reshape(30, 8)).view(2, 15, 8)

    tokens = find_tokens(program_of(model, seq))
    (flat,) = (axis for node, axis in tokens.axes.items() if node.name == "silu")
    assert (flat.dim, str(flat.count), str(tokens.count)) == (0, "B*N", "N")


def test_batch_of_one_is_not_taken_for_tokens() -> None:
    def video(x: Tensor) -> Tensor:  # [1, C, F, H, W] through [F, C, H, W] and [1, F*H*W, C]
        frames = x.permute(0, 2, 1, 3, 4).reshape(3, 4, 6, 10)
        tokens = frames.flatten(2).transpose(1, 2).reshape(1, 180, 4)
        return attend(tokens, tokens).reshape(1, 3, 6, 10, 4).permute(0, 4, 1, 2, 3)

    tokens = find_tokens(program_of(video, torch.randn(1, 4, 3, 6, 10)))
    assert str(tokens.count) == "F*H*W"
    assert {str(symbol) for symbol in tokens.sizes} == {"B", "C", "F", "H", "W"}


def test_without_attention_the_leading_dimension_is_the_batch() -> None:
    tokens = find_tokens(program_of(lambda x: F.linear(x, torch.ones(8, 8)) + x.sin(), seq))
    assert {axis.dim for axis in tokens.axes.values()} == {1}


def test_no_token_axis_is_an_error() -> None:
    with pytest.raises(AnalysisError, match="no input has dimensions that reach the output"):
        find_tokens(program_of(lambda x: F.linear(F.silu(x), torch.ones(8, 8)), seq[:, 0]))


def test_unknown_operator_is_a_miss_with_its_culprit() -> None:
    program = program_of(lambda x: F.unfold(x, 2, stride=2).sin().cos(), x)
    sizes, _ = infer_sizes(program)
    assert {n.name: s for n, s in sizes.items()}["im2col"] == (None, None, None)
    with pytest.raises(AnalysisError, match=r"1 sizes are unknown, first at %im2col: no rule"):
        find_tokens(program)


def test_unknown_operator_beside_the_tokens_is_reported() -> None:
    def model(x: Tensor, image: Tensor) -> Tensor:
        return attend(x, x) + F.unfold(image, 2, stride=2).mean((1, 2))[:, None, None]

    tokens = find_tokens(program_of(model, seq, x))
    assert [miss.node.name for miss in tokens.misses] == ["im2col"]
    assert str(tokens.count) == "N"


def test_rules_are_registered_and_held_against_the_real_sizes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(engine.RULES, "im2col", None)  # undone at the end

    def found() -> list[str]:
        program = program_of(lambda x: F.unfold(x, 2, stride=2), x)
        node = next(node for node in infer_sizes(program)[0] if node.name == "im2col")
        return [str(size) for size in infer_sizes(program)[0][node]]

    size_rule("im2col")(
        lambda run, call: (call.first[0], const(16), divide(product(call.first[2:]), 4))
    )
    assert found() == ["x_0", "16", "x_2*x_3/4"]
    size_rule("im2col")(lambda run, call: (call.first[0], const(16), product(call.first[2:])))
    assert found() == ["None", "None", "None"]  # 60 patches are not 15


def test_description_is_plain() -> None:
    found = describe_tokens(find_tokens(program_of(lambda x: attend(x, x), seq)))
    assert found["latent"] == "x"
    assert (found["count"], found["tokens"]) == ("N", 15)
    assert found["sizes"] == {"B": 2, "N": 15, "C": 8}
    assert found["axes"]["x"] == {"dim": 1, "count": "N", "role": "tokens", "others": []}
    assert found["misses"] == []


# --- properties -------------------------------------------------------------------------------

Step = tuple[str, int, int]


def apply(steps: list[Step], value: Tensor) -> Tensor:
    """A chain whose steps mean the same at any sizes."""
    for kind, at, amount in steps:
        rank = value.dim()
        dim = at % rank
        shape = list(value.shape)
        if kind == "merge" and rank > 1 and dim + 1 < rank:
            value = value.reshape([*shape[:dim], shape[dim] * shape[dim + 1], *shape[dim + 2 :]])
        elif kind == "split" and shape[dim] % amount == 0 and rank < 7:
            inner = [shape[dim] // amount, amount]
            value = value.reshape([*shape[:dim], *inner, *shape[dim + 1 :]])
        elif kind == "swap":
            value = value.transpose(dim, (at + amount) % rank)
        elif kind == "expand" and rank < 7:
            value = value.unsqueeze(dim).expand([*shape[:dim], amount, *shape[dim:]])
    return value


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["merge", "split", "swap", "expand"]), st.integers(0, 6), st.integers(2, 3)
    ),
    max_size=7,
)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_inferred_sizes_hold_at_other_sizes_too(steps: list[Step]) -> None:
    here, there = torch.empty(6 * 5, 6 * 7, 6 * 11), torch.empty(6 * 13, 6 * 17, 6 * 5)
    program = program_of(lambda x: apply(steps, x).sin(), here.to("meta"))
    check_numbers(program)
    sizes, _ = infer_sizes(program)
    last = next(iter(program.main.find_nodes(op="output"))).args[0][0]
    numbers = {
        sympy.Symbol(f"x_{i}", integer=True, positive=True): n for i, n in enumerate(there.shape)
    }
    real = apply(steps, there.to("meta")).shape
    for size, number in zip(sizes[last], real, strict=True):
        assert size is None or size.subs(numbers) == number


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.data())
def test_any_view_keeps_the_number_of_elements(values: list[int], data: st.DataObject) -> None:
    symbols = sympy.symbols(f"a:{len(values)}", integer=True, positive=True)
    sizes = tuple(Size(n, s) for n, s in zip(values, symbols, strict=True))
    left, target = math.prod(values), []
    while left > 1:
        target.append(data.draw(st.sampled_from([d for d in range(2, left + 1) if left % d == 0])))
        left //= target[-1]
    target = data.draw(st.permutations(target + [1] * data.draw(st.integers(0, 2)))) or [1]
    found = regroup(sizes, target)
    assert [size.value for size in found] == target
    known = [size.expr for size in found if size.expr is not None]
    numbers = dict(zip(symbols, values, strict=True))
    assert all(size.expr is None or size.expr.subs(numbers) == size.value for size in found)
    if len(known) == len(found):
        assert math.prod(known) == math.prod(symbols)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.data())
def test_any_cut_has_the_length_of_the_slice(values: list[int], data: st.DataObject) -> None:
    symbols = sympy.symbols(f"a:{len(values)}", integer=True, positive=True)
    size = total([Size(n, s) for n, s in zip(values, symbols, strict=True)])
    bound = st.integers(-size.value - 1, size.value + 1)
    start, end, step = data.draw(bound), data.draw(bound), data.draw(st.integers(1, 3))
    found = cut(size, start, end, step)
    assert found.value == len(range(size.value)[start:end:step])
    numbers = dict(zip(symbols, values, strict=True))
    assert found.expr is None or found.expr.subs(numbers) == found.value


# --- the sweep --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", each(case.name for case in zoo.CASES))
def test_zoo(name: str) -> None:
    case = zoo.case(name)
    inputs = case.inputs(1, torch.Generator().manual_seed(0))
    program, _ = structures.captured(name, 1)
    assert program.constants, "torch.export refused it, and Dynamo passes the weights"
    check_numbers(program)
    if inputs[case.latent].__class__ is Tensor and inputs[case.latent].dim() == 2:
        with pytest.raises(AnalysisError, match="no input has dimensions"):
            find_tokens(program)  # a single embedding has no tokens
        return
    tokens = find_tokens(program)
    assert tokens.latent.name.startswith(case.latent)
    check_axes(tokens)
    assert all("depends on the data" in miss.reason for miss in tokens.misses)
