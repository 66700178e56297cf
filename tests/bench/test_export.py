"""ditc bench export: what it measures, and that it refuses what it cannot."""

from __future__ import annotations

import json
import mmap
from pathlib import Path

import pytest

from dit_compile.bench.export import ExportBenchOptions, run_export_bench
from dit_compile.bench.exported import PLAIN
from dit_compile.bench.process import peak_resident_bytes, resident_bytes, run_apart
from dit_compile.errors import DitcError, OptionError, PipelineError


def test_what_it_cannot_measure() -> None:
    with pytest.raises(OptionError, match="did you mean 'dit-xl-2-256'"):
        ExportBenchOptions("dit-xl-2-265")
    with pytest.raises(PipelineError, match="fsat"):
        ExportBenchOptions("dit-xl-2-256", ("fsat",))
    with pytest.raises(OptionError, match="5 steps"):
        ExportBenchOptions("dit-xl-2-256", steps=4)


def test_memory_is_that_of_this_process() -> None:
    before = resident_bytes()
    kept = mmap.mmap(-1, 64 << 20)  # pages of its own: a heap may have some to spare
    kept.write(bytes(len(kept)))
    assert abs(resident_bytes() - before - len(kept)) < 16 << 20
    assert peak_resident_bytes() > before + len(kept) - (1 << 20)  # the kernel rounds


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(DitcError, match=r"(?s)counting failed \(exit status 1\).*TypeError"):
        run_apart("dit_compile.bench.exported", {"phase": "count", "ways": []}, "counting")


@pytest.mark.slow
def test_the_whole_bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ExportBenchOptions("dit-xl-2-256", steps=6, blocks=1, out=str(tmp_path))
    plain, exact, fast = run_export_bench(options).rows
    assert [row.way for row in (plain, exact, fast)] == [PLAIN, "exact", "fast"]
    assert plain.speedup == 1
    assert all(row.opened.error < 1e-5 for row in (plain, exact, fast))
    assert plain.mapped is None
    assert all(row.mapped and row.mapped.error == row.opened.error for row in (exact, fast))
    assert all(row.wrote.disk_bytes > 1e8 for row in (plain, exact, fast))
    assert all(row.wrote.peak_bytes > row.wrote.disk_bytes for row in (plain, exact, fast))
    assert fast.seconds < exact.seconds  # it computes the block in 2 of 6 steps
    saved = json.loads((tmp_path / "export.json").read_text())
    assert saved["rows"][2]["opened"]["resident_bytes"] == fast.opened.resident_bytes
    assert PLAIN in capsys.readouterr().out
