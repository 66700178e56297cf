"""ditc bench loop: what it measures, and that it refuses what it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dit_compile.bench.loop import LoopBenchOptions, run_loop_bench
from dit_compile.bench.looped import _flops, measure
from dit_compile.bench.worker import Job
from dit_compile.errors import OptionError, PipelineError
from dit_compile.explanation import explain
from tests.runtime.loops import Toy, label

DYNAMIC = "exact,insert-block-cache{method=first-block,residual-diff-threshold=1e9}"


def test_what_it_cannot_measure() -> None:
    with pytest.raises(OptionError, match="did you mean 'dit-xl-2-256'"):
        LoopBenchOptions(("dit-xl-2-265",), ("fast",))
    with pytest.raises(PipelineError, match="fsat"):
        LoopBenchOptions(("dit-xl-2-256",), ("fsat",))
    with pytest.raises(OptionError, match="5 steps"):
        LoopBenchOptions(("dit-xl-2-256",), ("fast",), steps=4)


@pytest.mark.parametrize("dynamic", [False, True])
def test_operations_are_those_of_the_steps_that_ran(dynamic: bool) -> None:
    passes = DYNAMIC if dynamic else "exact,insert-block-cache{method=interval,interval=3}"
    args = (torch.randn(1, 6, 8), torch.tensor([500.0]), label(1))
    found = explain(Toy(), args, {"skip": ()}, passes=passes, numerics=False)
    graphs = found.report.stages[-1].cost.graphs
    full = graphs[found.program.schedule.full].flops
    want = (4 * full + 6 * graphs["reuse"].flops) / 10
    want += graphs["probe"].flops + graphs["judge"].flops if dynamic else 0
    assert _flops(found.program, 10, 4) == pytest.approx(want)


@pytest.mark.slow
def test_pipelines_take_turns() -> None:
    passes = ("exact", "fast", DYNAMIC)
    torch._dynamo.reset()
    done = measure(
        Job("dit-xl-2-256", passes, "float32", "cpu", 2, 6, 2, 2, torch.get_num_threads())
    )
    exact, fast, first = (done.ways[text] for text in passes)
    assert [len(one.seconds) for one in (exact, fast, first)] == [12, 12, 12]
    assert [one.computed for one in (exact, fast)] == [6, 2]
    assert (exact.variants, exact.state_bytes, fast.variants) == (1, 0, 2)
    assert fast.state_bytes == 2 * 2 * (2 * 256 * 1152 * 4)  # two branches of two blocks
    assert 2.5 < exact.flops / fast.flops <= 3
    assert 1 < exact.flops / first.flops < 2  # the first of two blocks runs at each step
    assert done.recompiles == 0


@pytest.mark.slow
def test_the_whole_bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = LoopBenchOptions(
        ("dit-xl-2-256",), ("fast",), dtype="float32", steps=6, blocks=1, out=str(tmp_path)
    )
    exact, fast = run_loop_bench(options).rows
    assert (exact.speedup, exact.flop_ratio) == (1, 1)
    assert fast.speedup > 1
    assert json.loads((tmp_path / "loop.json").read_text())["rows"][1]["computed"] == 2
    assert "2/6" in capsys.readouterr().out
