"""Rooflines: what they predict, how they are kept, and that only a fitting one is used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sympy
import torch

from dit_compile.analysis import machine
from dit_compile.analysis import roofline as module
from dit_compile.analysis.cost import Cost
from dit_compile.analysis.machine import cache_file, describe_setup
from dit_compile.analysis.roofline import (
    Roofline,
    load_or_measure,
    measure_roofline,
    predicted_seconds,
)
from dit_compile.errors import AnalysisError

pytestmark = pytest.mark.processor

SAMPLE = Roofline("cpu", {"float32": 2e11, "bfloat16": 1.5e11}, 2.5e10, {"threads": "2"})


class TestRoofline:
    def test_json_round_trip(self) -> None:
        assert Roofline.from_json(SAMPLE.to_json()) == SAMPLE
        assert hash(Roofline.from_json(SAMPLE.to_json())) == hash(SAMPLE)

    @pytest.mark.parametrize(
        "change",
        [
            {"bandwidth": 0.0},
            {"matmul_flops": {"float32": -1.0}},
            {"matmul_flops": [1.0]},
            {"bandwidth": "fast"},
            {"surplus": 1},
        ],
    )
    def test_bad_files_are_refused(self, change: dict[str, Any]) -> None:
        data = json.loads(SAMPLE.to_json())
        with pytest.raises(AnalysisError, match="not a roofline"):
            Roofline.from_json(json.dumps(data | change))

    @pytest.mark.parametrize("text", ["", "{", "[]", "3", "null"])
    def test_other_texts_are_refused(self, text: str) -> None:
        with pytest.raises(AnalysisError, match="not a roofline"):
            Roofline.from_json(text)

    def test_peak_by_dtype_or_name(self) -> None:
        assert SAMPLE.peak(torch.bfloat16) == SAMPLE.peak("bfloat16") == 1.5e11
        with pytest.raises(AnalysisError, match=r"float32, bfloat16, not float64"):
            SAMPLE.peak(torch.float64)

    def test_predicted_time_is_the_larger(self) -> None:
        assert predicted_seconds(Cost(2e11, 0, 0), torch.float32, SAMPLE) == pytest.approx(1.0)
        assert predicted_seconds(
            Cost(1, 2 * 10**10, 5 * 10**9).evaluate(), torch.float32, SAMPLE
        ) == pytest.approx(1.0)

    def test_symbolic_costs_are_refused(self) -> None:
        with pytest.raises(AnalysisError, match="no size is given for n"):
            predicted_seconds(Cost(sympy.Symbol("n")), torch.float32, SAMPLE)


class TestMeasuring:
    def test_small(self) -> None:
        measured = measure_roofline(seconds=0.01, shapes=[(16, 32, 16)], buffer_bytes=1 << 16)
        assert measured.device == "cpu"
        assert set(measured.matmul_flops) == {"float32", "bfloat16"}
        assert measured.bandwidth > 0
        assert measured.setup == describe_setup("cpu")
        assert measured.setup["threads"] == str(torch.get_num_threads())

    def test_the_best_way_counts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = {"slow": 4.0, "fast": 1.0, "middle": 1.5}
        monkeypatch.setattr(module, "_time_cpu", lambda call: clock[call()])
        ways = [(lambda n=name: n, 8.0) for name in clock]
        assert module._best_rate(ways, torch.device("cpu"), 0.0) == 8.0

    def test_lowest_median(self) -> None:
        samples = iter([9, 1, 9, 9, 9] + [2, 2, 2, 50, 50] * 10_000)
        assert module._best_median(lambda: next(samples), 0.005) == 2

    def test_unknown_devices_are_refused(self) -> None:
        with pytest.raises(AnalysisError, match="not on meta"):
            measure_roofline("meta")


class TestKept:
    @pytest.fixture(autouse=True)
    def measured(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Keep files apart from the user's, and count the measurements, which are instant."""
        calls: list[str] = []

        def measure(device: str, *, seconds: float) -> Roofline:
            calls.append(str(device))
            return Roofline("cpu", {"float32": float(len(calls))}, 1.0, describe_setup(device))

        monkeypatch.setenv("DITC_CACHE_DIR", str(tmp_path))
        monkeypatch.setattr(module, "measure_roofline", measure)
        return calls

    def test_measured_once(self, measured: list[str], tmp_path: Path) -> None:
        first = load_or_measure("cpu")
        assert load_or_measure("cpu") == first
        assert measured == ["cpu"]
        assert [path.parent.parent for path in tmp_path.rglob("*.json")] == [tmp_path]
        assert not list(tmp_path.rglob("*.tmp"))

    def test_refresh_replaces(self, measured: list[str]) -> None:
        load_or_measure("cpu")
        assert load_or_measure("cpu", refresh=True).matmul_flops == {"float32": 2.0}
        assert load_or_measure("cpu").matmul_flops == {"float32": 2.0}

    @pytest.mark.parametrize(
        "name", ["threads", "processor", "torch", "class", "instructions", "cores"]
    )
    def test_another_setup_has_its_own(
        self, name: str, measured: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before, path = load_or_measure("cpu"), cache_file("roofline", "cpu")
        setup = describe_setup("cpu")
        for reader in (machine, module):
            monkeypatch.setattr(reader, "describe_setup", lambda _: {**setup, name: "other"})
        assert cache_file("roofline", "cpu") != path
        assert load_or_measure("cpu") != before
        assert len(measured) == 2

    def test_thread_count_is_read_from_torch(self, measured: list[str]) -> None:
        threads = torch.get_num_threads()
        try:
            paths = []
            for count in (1, 2):
                torch.set_num_threads(count)
                paths.append(cache_file("roofline", "cpu"))
                assert load_or_measure("cpu").setup["threads"] == str(count)
        finally:
            torch.set_num_threads(threads)
        assert len(set(paths)) == len(measured) == 2

    def test_a_file_moved_from_elsewhere_is_not_trusted(self, measured: list[str]) -> None:
        path = cache_file("roofline", "cpu")
        path.parent.mkdir(parents=True)
        path.write_text(SAMPLE.to_json())
        assert load_or_measure("cpu") != SAMPLE
        assert measured == ["cpu"]

    def test_a_broken_file_is_replaced(self, measured: list[str]) -> None:
        path = cache_file("roofline", "cpu")
        path.parent.mkdir(parents=True)
        path.write_text("{")
        kept = load_or_measure("cpu")
        assert Roofline.from_json(path.read_text()) == kept


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda() -> None:
    measured = measure_roofline("cuda", seconds=0.5, buffer_bytes=1 << 28)
    assert measured.device == "cuda"
    assert measured.matmul_flops["bfloat16"] > measured.matmul_flops["float32"]
    assert measured.setup["processor"] == torch.cuda.get_device_name()
