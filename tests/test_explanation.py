"""``ditc.explain``."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from dit_compile.errors import BindingError, CaptureError, OptionError, PipelineError
from dit_compile.explanation import Explanation, example_inputs, explain
from dit_compile.ir.fingerprint import fingerprint
from dit_compile.ir.program import Binding
from dit_compile.report.codec import from_json
from dit_compile.report.markdown import markdown
from dit_compile.report.text import stage_text
from tests.ir.models import Function, Transformer, noise, seeded

X, C = noise(2, 4, 8), noise(2, 8)


@pytest.fixture(scope="module")
def explanation() -> Explanation:
    return explain(seeded(Transformer), (X,), {"c": C}, bindings={"c": "timestep"})


def test_every_stage_is_kept(explanation: Explanation) -> None:
    report = explanation.report
    assert [entry.changed for entry in report.passes].count(True) == len(report.stages) - 1
    assert "aten.layer_norm" in stage_text(report, report.stages[0])
    assert "aten.layer_norm" not in stage_text(report, report.stages[-1])
    assert report.stages[0].cost.bytes_moved > report.stages[-1].cost.bytes_moved
    assert report.stages[-1].fingerprint == fingerprint(explanation.program)
    assert report.stages[0].fingerprint == fingerprint(explanation.captured)


def test_numbers_and_structure_are_checked(explanation: Explanation) -> None:
    report = explanation.report
    for entry in report.passes:
        assert (entry.error_growth is not None) is entry.changed
        assert (entry.verify_seconds > 0) is entry.changed
        assert (entry.numerics_seconds > 0) is entry.changed
    assert all(stage.errors and stage.errors["full"] for stage in report.stages)
    seconds = report.seconds
    assert 0 < seconds.verify + seconds.numerics + seconds.report < seconds.pipeline
    assert seconds.capture > 0


def test_what_was_found(explanation: Explanation) -> None:
    found = explanation.report.analysis
    assert found["inputs"] == [
        {"name": "x", "binding": "latent", "settled": True},
        {"name": "c", "binding": "timestep", "settled": True},
    ]
    counts = found["nodes_by_binding"]
    assert list(counts) == ["weight", "invariant", "timestep", "latent"]
    assert sum(counts.values()) == explanation.report.passes[0].nodes_before
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


def test_the_report_is_read_back(explanation: Explanation) -> None:
    report = from_json(explanation.json())
    assert report == explanation.report
    assert report.pipeline == str(explanation.pipeline)
    changed = [entry.name for entry in report.passes if entry.changed]
    assert changed == ["fuse-qkv", "fuse-adaln", "hoist-timestep"]
    assert explanation.markdown() == markdown(report)


def test_no_passes() -> None:
    found = explain(seeded(Transformer), (X, C), passes="")
    assert found.report.passes == []
    assert len(found.report.stages) == 1
    assert found.diff() == "(no change)"
    assert from_json(found.json()) == found.report
    out = io.StringIO()
    found.print(Console(file=out, width=160))
    assert "nodes" in out.getvalue()


def test_without_numerics_the_model_is_not_run() -> None:
    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.nn.functional.dropout(x, 0.5, self.training) * 1

    model = Counting().train()
    found = explain(model, (X,), numerics=False)
    assert found.report.passes[0].error_growth is None
    assert found.report.stages[0].errors is None
    with pytest.raises(OptionError, match=r"call model\.eval\(\)"):
        explain(model, (X,))
    assert found.report.passes[0].changed


def test_dynamic_shapes() -> None:
    tokens = torch.export.Dim("tokens", min=2, max=64)
    found = explain(seeded(Transformer), (X, C), dynamic_shapes=({1: tokens}, None))
    texts = [stage_text(found.report, stage) for stage in found.report.stages]
    symbol = texts[0].split("%x: f32[2,")[1].split(",")[0]
    assert not symbol.isdigit()
    assert all(f"f32[2,{symbol},8]" in text for text in texts)
    assert from_json(found.json()) == found.report
    assert found.report.stages[0].cost.flops > 0


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
