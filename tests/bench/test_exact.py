"""ditc bench exact: what it measures, and that it refuses what it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dit_compile.analysis.roofline import load_or_measure
from dit_compile.bench.cases import CASES, Case, find_case
from dit_compile.bench.exact import BenchOptions, Row, _cells, _means, run_bench
from dit_compile.bench.plot import save_plot
from dit_compile.bench.ways import WAYS, find_way
from dit_compile.bench.worker import Job, measure
from dit_compile.errors import OptionError

FEW = {"hunyuan-dit-512": 4}  # its second half reads what its first half kept


@pytest.mark.full
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_model_runs(case: Case) -> None:
    model = case.build(torch.float32, "cpu", FEW.get(case.name, 1))
    inputs = case.inputs(1, torch.float32, "cpu")
    ladder = case.timesteps(5, torch.float32)
    assert (ladder.diff() < 0).all()
    with torch.no_grad():
        (result,) = model(timestep=ladder[:1], return_dict=False, **inputs)
    assert result.isfinite().all()


def test_names_that_do_not_exist() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
    assert len({way.name for way in WAYS}) == len(WAYS)
    with pytest.raises(OptionError, match="did you mean 'dit-xl-2-256'"):
        find_case("dit-xl-2-265")
    with pytest.raises(OptionError, match="ways are eager, default"):
        find_way("fastest")
    with pytest.raises(OptionError, match="unknown model 'x'"):
        run_bench(BenchOptions(("x",), ("eager",)))
    with pytest.raises(OptionError, match="at least 5 repeats"):
        run_bench(BenchOptions(("dit-xl-2-256",), ("eager",), repeats=4))


def row(model: str, way: str, speedup: float = 1.2, lead: float = 1.1) -> Row:
    return Row(model, way, 1.0, speedup, (1.1, 1.4), lead, (1.0, 1.2), 0.5, 0.0)


def test_the_means_over_models() -> None:
    rows = [row("a", "best"), row("a", "ditc", 1.0, 0.5), row("b", "best"), row("b", "ditc", 4, 2)]
    assert not list(_means(rows[:2]))
    best, ditc = _means(rows)
    assert (best[1], best[3]) == ("best", "1.20x")
    assert (ditc[1], ditc[3], ditc[5]) == ("ditc", "2.00x", "1.00x")
    assert len(ditc) == len(_cells(rows[0]))


def test_the_plot_has_a_bar_for_each_row(tmp_path: Path) -> None:
    rows = [row(model, way) for model in "ab" for way in ("default", "ditc")]
    save_plot(tmp_path / "plot.png", rows)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_ways_agree_and_take_turns() -> None:
    job = Job(
        "dit-xl-2-256", ("eager", "ditc"), "float32", "cpu", 2, 8, 2, 1, torch.get_num_threads()
    )
    torch._dynamo.reset()
    done = measure(job)
    assert {way: len(seconds) for way, seconds in done.seconds.items()} == {"eager": 2, "ditc": 2}
    assert done.error["eager"] == 0
    assert done.error["ditc"] < 1e-5
    assert done.flops > 1e10
    assert done.peak_bytes > 1e8


@pytest.mark.slow
def test_the_whole_bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = BenchOptions(
        ("dit-xl-2-256",),
        ("eager", "ditc"),
        dtype="float32",
        repeats=5,
        blocks=1,
        out=str(tmp_path),
        command="ditc bench exact",
    )
    results = run_bench(options)
    assert [row.way for row in results.rows] == ["eager", "ditc"]
    theirs, ours = results.rows
    assert (theirs.lead, ours.lead) == (theirs.speedup, ours.speedup)  # no way of torch.compile's
    assert ours.cold is not None
    assert ours.warm is not None
    assert ours.cold > ours.seconds
    assert ours.share * ours.seconds == pytest.approx(theirs.share * theirs.seconds)
    operations = ours.share * ours.seconds * load_or_measure("cpu").peak("float32")
    tokens, width = 2 * 256, 1152
    assert 2 * tokens * 12 * width**2 < operations < 2 * tokens * 15 * width**2
    saved = json.loads((tmp_path / "exact.json").read_text())
    assert saved["rows"][1]["cold"] == ours.cold
    assert saved["setup"]["torch"] == torch.__version__
    assert (tmp_path / "exact.png").stat().st_size > 1000
    assert "dit-xl-2-256" in capsys.readouterr().out
