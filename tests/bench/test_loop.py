"""ditc bench loop: what it measures, and that it refuses what it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dit_compile.bench.loop import LoopBenchOptions, run_loop_bench
from dit_compile.errors import OptionError, PipelineError

DYNAMIC = "exact,insert-block-cache{method=first-block,residual-diff-threshold=1e9}"


def test_what_it_cannot_measure() -> None:
    with pytest.raises(OptionError, match="did you mean 'dit-xl-2-256'"):
        LoopBenchOptions(("dit-xl-2-265",), ("fast",))
    with pytest.raises(PipelineError, match="fsat"):
        LoopBenchOptions(("dit-xl-2-256",), ("fsat",))
    with pytest.raises(OptionError, match="5 steps"):
        LoopBenchOptions(("dit-xl-2-256",), ("fast",), steps=4)


@pytest.mark.slow
def test_the_whole_bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = LoopBenchOptions(
        ("dit-xl-2-256",),
        ("fast", DYNAMIC),
        dtype="float32",
        steps=7,
        blocks=2,
        out=str(tmp_path),
        command="ditc bench loop",
    )
    exact, fast, first = run_loop_bench(options).rows
    assert [row.computed for row in (exact, fast, first)] == [7, 3, 1]
    assert (exact.speedup, exact.flop_ratio, exact.state_bytes) == (1, 1, 0)
    assert [row.variants for row in (exact, fast)] == [1, 2]
    assert fast.state_bytes == 2 * 2 * (2 * 256 * 1152 * 4)  # two branches of two blocks
    assert 2 < fast.flop_ratio < 7 / 3
    assert 1.5 < first.flop_ratio < 2  # the first of two blocks runs at each step
    assert fast.speedup > 1
    assert fast.recompiles == 0
    saved = json.loads((tmp_path / "loop.json").read_text())
    assert saved["rows"][1]["computed"] == 3
    assert saved["command"] == "ditc bench loop"
    assert "3/7" in capsys.readouterr().out
