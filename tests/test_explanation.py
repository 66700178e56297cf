"""``ditc.explain``."""

from __future__ import annotations

import io
import json

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from dit_compile.errors import BindingError, CaptureError, OptionError, PipelineError
from dit_compile.explanation import Explanation, example_inputs, explain
from dit_compile.ir.printer import print_program
from dit_compile.ir.program import Binding
from tests.ir.models import Function, Transformer, noise, seeded

X, C = noise(2, 4, 8), noise(2, 8)


@pytest.fixture(scope="module")
def explanation() -> Explanation:
    return explain(seeded(Transformer), (X,), {"c": C}, bindings={"c": "timestep"})


def test_every_stage_is_kept(explanation: Explanation) -> None:
    stages = len(explanation.run.records) + 1
    assert len(explanation.texts) == len(explanation.costs) == stages
    assert explanation.texts[-1] == print_program(explanation.program)
    assert "aten.layer_norm" in explanation.texts[0]
    assert explanation.costs[0].bytes_moved > explanation.costs[-1].bytes_moved


def test_numbers_and_structure_are_checked(explanation: Explanation) -> None:
    for record in explanation.run.records:
        assert ("error_growth" in record.details) is record.changed
        assert ("verify_seconds" in record.details) is record.changed
    assert 0 < explanation.verify_seconds < explanation.run.seconds
    assert explanation.capture_seconds > 0


def test_what_was_found(explanation: Explanation) -> None:
    found = explanation.analysis
    assert found["inputs"] == [
        {"name": "x", "binding": "latent", "settled": True},
        {"name": "c", "binding": "timestep", "settled": True},
    ]
    counts = found["nodes_by_binding"]
    assert list(counts) == ["weight", "invariant", "timestep", "latent"]
    assert sum(counts.values()) == explanation.run.records[0].nodes_before
    assert counts["timestep"] == 3 * 4  # a linear, unsqueeze, split and 1 + scale
    assert explanation.program.inputs["c"].binding is Binding.TIMESTEP


def test_print(explanation: Explanation) -> None:
    out = io.StringIO()
    explanation.print(Console(file=out, width=160), diffs=True)
    text = out.getvalue()
    assert text.startswith("Transformer   torch ")
    assert "hit/miss" in text
    assert text.endswith(explanation.diff() + "\n")


def test_diff(explanation: Explanation) -> None:
    both = explanation.diff().splitlines()
    one = explanation.diff("fuse-adaln").splitlines()
    assert one[0] == "#4 fuse-adaln @ blocks.0 (x3 identical, shown once)"
    assert set(one) < set(both)
    assert explanation.diff("remove-noops") == "(no change)"
    with pytest.raises(OptionError, match="no pass 'fuse-adln' has run; did you mean 'fuse-adaln'"):
        explanation.diff("fuse-adln")


def test_plain_data(explanation: Explanation) -> None:
    data = explanation.to_dict()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert data["pipeline"] == str(explanation.run.pipeline)
    changed = [item["pass"] for item in data["passes"] if item["changed"]]
    assert changed == ["fuse-qkv", "fuse-adaln", "hoist-timestep"]


def test_no_passes() -> None:
    found = explain(seeded(Transformer), (X, C), passes="")
    assert found.run.records == []
    assert len(found.texts) == 1
    assert found.diff() == "(no change)"
    assert json.dumps(found.to_dict())
    out = io.StringIO()
    found.print(Console(file=out, width=160))
    assert "nodes" in out.getvalue()


def test_without_numerics_the_model_is_not_run() -> None:
    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.nn.functional.dropout(x, 0.5, self.training) * 1

    model = Counting().train()
    found = explain(model, (X,), numerics=False)
    assert "error_growth" not in found.run.records[0].details
    with pytest.raises(OptionError, match=r"call model\.eval\(\)"):
        explain(model, (X,))
    assert found.run.records[0].changed


def test_dynamic_shapes() -> None:
    tokens = torch.export.Dim("tokens", min=2, max=64)
    found = explain(seeded(Transformer), (X, C), dynamic_shapes=({1: tokens}, None))
    symbol = found.texts[0].split("%x: f32[2,")[1].split(",")[0]
    assert not symbol.isdigit()
    assert all(f"f32[2,{symbol},8]" in text for text in found.texts)
    assert json.dumps(found.to_dict())


def test_nested_arguments_go_by_the_order_of_flattening() -> None:
    class Nested(nn.Module):
        def forward(self, pair: tuple[Tensor, dict[str, Tensor]], flag: bool, y: Tensor) -> Tensor:
            first, rest = pair
            return (first - rest["b"]) / rest["a"] - y if flag else first

    args = ((torch.tensor([8.0]), {"a": torch.tensor([2.0]), "b": torch.tensor([4.0])}), True)
    kwargs = {"y": torch.tensor([1.0])}
    found = explain(Nested(), args, kwargs)
    values = example_inputs(found.program, args, kwargs)
    assert [float(value) for value in values.values()] == [8.0, 2.0, 4.0, 1.0]


def test_the_model_is_left_alone() -> None:
    model = seeded(Transformer).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    explain(model, (X, C))
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


class TestErrors:
    def test_pipeline_first(self) -> None:
        """Bad text is found before any time is spent on the model."""
        with pytest.raises(PipelineError, match="unknown pass"):
            explain(Function(lambda x: pytest.fail("traced")), (X,), passes="fuse-everything")

    def test_capture(self) -> None:
        branching = Function(lambda x: x if x.sum() > 0 else -x)
        with pytest.raises(CaptureError, match=r"^torch\.export cannot trace Function: "):
            explain(branching, (X,))

    def test_bindings(self) -> None:
        with pytest.raises(BindingError, match="has no input 'cc'; did you mean 'c'"):
            explain(seeded(Transformer), (X, C), bindings={"cc": "latent"})
