"""``ditc.export``: what is in a bundle, for all kinds of models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dit_compile as ditc
from dit_compile.calibration.plan import Plan, Weight
from dit_compile.errors import (
    BackendError,
    BundleError,
    CaptureError,
    OptionError,
    PipelineError,
    PlanError,
)

DIM = 16


class Small(nn.Module):
    """A convolution, a product, attention, a squeeze of nothing, and a second result."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv = nn.Conv2d(4, DIM, 2, stride=2, dtype=dtype)
            self.qkv = nn.Linear(DIM, 3 * DIM, dtype=dtype)
            self.tied = nn.Linear(DIM, DIM, dtype=dtype)
        self.eval()

    def forward(self, x: Tensor, flag: bool = True) -> tuple[Tensor, Tensor]:
        tokens = self.conv(x).flatten(2).transpose(1, 2).squeeze(1)
        q, k, v = self.qkv(tokens).unflatten(-1, (6, -1)).transpose(1, 2).chunk(3, 1)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        mixed = self.tied(self.tied(mixed)) if flag else mixed
        return mixed, mixed.mean(1)


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def check(path: Path) -> None:
    """The models are valid, and their shapes follow from each other."""
    for model in path.glob("*.onnx"):
        onnx.checker.check_model(str(model), full_check=True)
        loaded = onnx.load(model, load_external_data=False)
        onnx.shape_inference.infer_shapes(loaded, strict_mode=True, data_prop=True)


def domains(path: Path) -> set[str]:
    model = onnx.load(path / "full.onnx", load_external_data=False)
    return {node.domain for node in model.graph.node}


def agree(path: Path, model: nn.Module, *args: Tensor, tolerance: float = 1e-5) -> None:
    with torch.no_grad():
        want = model(*args)
    got = ditc.load(path, intra_op_num_threads=1)(*args)
    for have, expected in zip(got, want, strict=True):
        torch.testing.assert_close(have, expected.float(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("opset", "contrib"), [(18, False), (20, True), (23, False)])
def test_opsets(tmp_path: Path, opset: int, contrib: bool) -> None:
    model, x = Small(), noise(2, 4, 8, 8)
    ditc.export(model, (x,), {}, tmp_path / "b", opset=opset, contrib=contrib)
    check(tmp_path / "b")
    assert domains(tmp_path / "b") == ({"", "com.microsoft"} if contrib else {""})
    agree(tmp_path / "b", model, x)


class Few(nn.Module):
    """Attention over fewer axes than four, with masks and without, and a mask for four."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        attend = F.scaled_dot_product_attention
        mask = torch.ones(5, 5).tril().bool()
        wide = x.unflatten(-1, (2, -1)).transpose(1, 2)
        return (
            attend(x, x * 2, x + 1),
            attend(x[0], x[1], x[0], scale=0.3),
            attend(x, x, x, attn_mask=mask.expand(3, 5, 5)),
            attend(wide, wide, wide, attn_mask=mask),
            attend(wide, wide, wide, is_causal=True),
            attend(wide, wide, wide, scale=0.3),
        )


@pytest.mark.parametrize("contrib", [False, True])
def test_attention_of_all_kinds(tmp_path: Path, contrib: bool) -> None:
    x = noise(3, 5, 8)
    ditc.export(Few(), (x,), {}, tmp_path / "b", contrib=contrib)
    check(tmp_path / "b")
    agree(tmp_path / "b", Few(), x)


def test_sizes_that_vary(tmp_path: Path) -> None:
    model, x = Small(), noise(2, 4, 8, 8)
    sizes = {0: torch.export.Dim("n", max=64), 2: torch.export.Dim.DYNAMIC}
    manifest = ditc.export(model, (x,), {}, tmp_path / "b", dynamic_shapes=(sizes,))
    check(tmp_path / "b")
    assert manifest.inputs[0].shape == ("x_0", 4, "x_2", 8)
    assert manifest.results[1].shape == ("x_0", DIM)
    for other in (x, noise(3, 4, 12, 8), noise(1, 4, 20, 8)):
        agree(tmp_path / "b", model, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened_and_said(tmp_path: Path, dtype: torch.dtype) -> None:
    model, x = Small(dtype), noise(2, 4, 8, 8, dtype=dtype)
    manifest = ditc.export(model, (x,), {}, tmp_path / "b")
    check(tmp_path / "b")
    name = str(dtype).removeprefix("torch.")
    assert manifest.notes == (f"{name} was widened to float32",)
    assert manifest.inputs[0].dtype == manifest.results[0].dtype == "float32"
    agree(tmp_path / "b", model, x, tolerance=2e-2)
    agree(tmp_path / "b", model.float(), x.float())


def test_weights_are_stored_once_in_the_order_they_are_read(tmp_path: Path) -> None:
    model = Small()
    manifest = ditc.export(model, (noise(2, 4, 8, 8),), {}, tmp_path / "b")
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    pages = 4096 * len(list(model.parameters()))
    assert weights <= manifest.files["weights.bin"].bytes <= weights + pages
    graph = onnx.load(tmp_path / "b" / "full.onnx", load_external_data=False).graph
    names = {tensor.name for tensor in graph.initializer if tensor.external_data}
    assert {"conv.weight", "qkv.weight.T", "tied.weight.T", "tied.bias"} <= names
    assert "tied.weight" not in names
    assert [value.name for value in graph.input] == ["x"]
    assert [value.name for value in graph.output] == ["output_0", "output_1"]


def test_values_fixed_at_export(tmp_path: Path) -> None:
    model, x = Small(), noise(2, 4, 8, 8)
    manifest = ditc.export(model, (x,), {"flag": False}, tmp_path / "b")
    assert manifest.fixed == {"flag": False}
    loaded = ditc.load(tmp_path / "b", intra_op_num_threads=1)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x, flag=False)[0], model(x, flag=False)[0])
    with pytest.raises(OptionError, match="flag was False at export and cannot be True now"):
        loaded(x, flag=True)
    with pytest.raises(OptionError, match="cannot be 0 now"):
        loaded(x, flag=0)


def test_a_result_that_is_an_input_and_one_twice(tmp_path: Path) -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            y = x + 1
            return x, y, y

    ditc.export(Model(), (noise(2, 3),), {}, tmp_path / "b", passes="")
    check(tmp_path / "b")
    x = np.ones((2, 3), np.float32)
    same, more, again = ditc.load(tmp_path / "b")(x)
    np.testing.assert_array_equal(same, x)
    np.testing.assert_array_equal(more, x + 1)
    np.testing.assert_array_equal(again, x + 1)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return x * 2


class Unknown(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.matrix_exp(x)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (Counting, BackendError, "the model writes into calls"),
        (Unknown, BackendError, "graph @full has no ONNX form.*matrix_exp"),
        (Branching, CaptureError, "cannot trace Branching"),
    ],
)
def test_models_that_have_no_such_form(
    tmp_path: Path, build: Callable[[], nn.Module], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ditc.export(build(), (noise(3, 3),), {}, tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"format": "onxx"}, OptionError, "did you mean 'onnx'"),
        ({"opset": 17}, OptionError, "opset takes 18 to 23, not 17"),
        ({"passes": "exactt"}, PipelineError, "did you mean 'exact'"),
        (
            {"passes": "insert-block-cache{method=magnitude}"},
            PipelineError,
            "must be calibrated first",
        ),
        ({"passes": "exact", "plan": "x.json"}, OptionError, "either passes or plan, not both"),
        ({"plan": "none.json"}, PlanError, "cannot read the plan 'none.json'"),
        (
            {"plan": Plan("exact", 8, {})},
            PlanError,
            "another model: it knows no weight conv",
        ),
    ],
)
def test_wrong_options(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ditc.export(Small(), (noise(2, 4, 8, 8),), {}, tmp_path / "b", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_plan_says_which_passes(tmp_path: Path) -> None:
    model = Small()
    weights = {path: Weight.of(tensor) for path, tensor in model.named_parameters()}
    passes = "remove-noops,eliminate-common"
    plan = Plan(passes, 8, weights).save(tmp_path / "small.plan.json")
    x = noise(2, 4, 8, 8)
    manifest = ditc.export(model, (x,), {}, tmp_path / "b", plan=plan)
    assert manifest.pipeline == passes
    agree(tmp_path / "b", model, x)


def test_nothing_else_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(BundleError, match="is no bundle"):
        ditc.export(Small(), (noise(2, 4, 8, 8),), {}, tmp_path, overwrite=True)
    assert (tmp_path / "mine").read_text() == "x"
