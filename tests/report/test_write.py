"""Reports of torch.compile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dit_compile import torch_backend
from dit_compile.calibration.plan import Plan, Trial
from dit_compile.errors import DitcWarning, OptionError, ReportError
from dit_compile.report import write
from dit_compile.report.codec import load
from dit_compile.report.record import Recorder
from dit_compile.report.write import check_target, write_numbered
from dit_compile.torch_backend import Options, run_passes
from tests.ir.models import Transformer, noise, seeded, transformer
from tests.report.entries import real


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x.txt", "report='x.txt' must end in .html or .json"),
        ("nowhere/x.html", "report='nowhere/x.html': the folder 'nowhere' does not exist"),
    ],
)
def test_bad_targets_are_found_before_the_model_is_traced(name: str, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        check_target(name)
    assert str(caught.value) == message


def test_each_graph_has_its_own_file(tmp_path: Path) -> None:
    names = [write_numbered(real(), str(tmp_path / "x.json")).name for _ in range(3)]
    assert names == ["x.json", "x.2.json", "x.3.json"]
    assert load(tmp_path / "x.2.json") == real()
    with pytest.raises(ReportError, match="cannot write"):
        write_numbered(real(), str(tmp_path / "gone" / "x.html"))


def compiled(model: Any, path: Path) -> Any:
    torch._dynamo.reset()
    options = {"target": "eager", "report": str(path), "preset": "balanced"}
    return torch.compile(model, backend="ditc", options=options)


def test_through_torch_compile(tmp_path: Path) -> None:
    model = seeded(Transformer)
    with torch.no_grad():
        compiled(model, tmp_path / "run.json")(noise(2, 4, 8), noise(2, 8))
    report = load(tmp_path / "run.json")
    assert [entry.name for entry in report.passes if entry.changed][-1] == "insert-block-cache"
    assert report.schedule is not None
    assert report.stages[0].errors is None
    assert report.seconds.verify > 0


def test_nothing_is_kept_for_a_report_that_nobody_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    def kept(*_: object) -> None:
        raise AssertionError("a stage was kept")

    for name in ("start", "after"):
        monkeypatch.setattr(Recorder, name, kept)
    monkeypatch.setattr(torch_backend, "build_report", kept)
    run_passes(transformer(), Options().pipeline(), Options(strict=True))
    with pytest.raises(AssertionError, match="a stage was kept"):
        run_passes(transformer(), Options().pipeline(), Options(strict=True, report="x.json"))


def test_a_plan_is_in_the_report(tmp_path: Path) -> None:
    trial = Trial("fuse-qkv", 41.2, 0.01, 1.1, 0.5, 1.2)
    plan = Plan("fuse-qkv", 20, {}, [trial], {"torch": "2.13"})
    options = Options(plan=plan, report=str(tmp_path / "run.json"))
    run_passes(transformer(), options.pipeline(), options)
    found = load(tmp_path / "run.json").plan
    assert found is not None
    assert (found["passes"], found["steps"]) == ("fuse-qkv", 20)
    assert found["curve"][0]["psnr"] == 41.2
    assert "weights" not in found


def test_a_report_that_cannot_be_written_changes_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(write, "write_atomically", full)
    model, inputs = seeded(Transformer), (noise(2, 4, 8), noise(2, 8))
    with torch.no_grad():
        fast = compiled(model, tmp_path / "run.html")
        with pytest.warns(DitcWarning, match="cannot write .* No space left on device"):
            found = fast(*inputs)
        assert torch.allclose(found, model(*inputs), atol=1e-5)
