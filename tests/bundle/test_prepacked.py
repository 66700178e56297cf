"""Weights laid out once: kept whole or not at all, and only under the hashes they have."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import dit_compile as ditc
from dit_compile.bundle import prepacked
from dit_compile.errors import BackendError, BundleError, OptionError
from tests.runtime.loops import TIMES, Loop, Toy, alone, assert_same, every, label


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's layouts are kept."""
    monkeypatch.setenv("DITC_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "prepacked"


def load_once(path: Path) -> Any:
    return ditc.load(path, prepack="once", intra_op_num_threads=1)


def sampled(loaded: Any) -> list[Any]:
    with ditc.session(loaded, timesteps=TIMES):
        return [loaded(**call)[0] for call in Loop(label(2))]


@pytest.mark.parametrize("kind", ["merged", "split"])
def test_what_was_laid_out_once_is_mapped_from_then_on(
    request: pytest.FixtureRequest,
    kind: str,
    toy: Toy,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = request.getfixturevalue(kind)
    assert_same(sampled(load_once(path)), alone(toy, Loop(label(2)), every(2, 8)))
    (kept,) = cache.iterdir()
    files = {graph.file for graph in load_once(path).manifest.graphs.values()}
    assert files <= {item.name for item in kept.iterdir()}

    monkeypatch.setattr(prepacked, "_lay_out", None)
    before = {item: item.stat().st_mtime_ns for item in kept.iterdir()}
    again = load_once(path)
    expected = sampled(ditc.load(path, intra_op_num_threads=1))
    for have, want in zip(sampled(again), expected, strict=True):
        assert np.array_equal(have, want)
    assert before == {item: item.stat().st_mtime_ns for item in kept.iterdir()}
    full = again.manifest.graphs["full"].file
    assert f"{kept}/{full}.weights" in Path("/proc/self/maps").read_text()


def test_damaged_weights_are_not_kept(merged: Path, tmp_path: Path, cache: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(merged, damaged)
    weights = damaged / "weights.bin"
    content = bytearray(weights.read_bytes())
    content[0] ^= 1
    weights.write_bytes(content)
    with pytest.raises(BundleError, match="is not the file that was exported"):
        ditc.load(damaged, prepack="once", verify=False)
    assert list(cache.iterdir()) == []
    # Once they are kept, nothing reads the bundle's own.
    want = sampled(load_once(merged))
    for have, expected in zip(sampled(load_once(damaged)), want, strict=True):
        assert np.array_equal(have, expected)
    weights.write_bytes(content[:-1])
    with pytest.raises(BundleError, match=r"has \d+ bytes"):
        load_once(damaged)


def test_a_failure_leaves_nothing(
    merged: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = prepacked.open_session

    def fails_at_last(path: Path, options: Any) -> Any:
        if path.name == "step.onnx":
            raise BackendError("no space left on device")
        return real(path, options)

    monkeypatch.setattr(prepacked, "open_session", fails_at_last)
    with pytest.raises(BackendError, match="no space left"):
        load_once(merged)
    assert list(cache.iterdir()) == []
    monkeypatch.undo()


def test_a_folder_that_cannot_be_written(
    merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DITC_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(BackendError, match="weights cannot be laid out in"):
        load_once(merged)


def test_another_process_may_be_faster(
    merged: Path, toy: Toy, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, raced = prepacked.open_session, []

    def racing(path: Path, options: Any) -> Any:
        if not raced:
            raced.append(path)
            load_once(merged)
        return real(path, options)

    monkeypatch.setattr(prepacked, "open_session", racing)
    assert_same(sampled(load_once(merged)), alone(toy, Loop(label(2)), every(2, 8)))
    assert raced
    assert len(list(cache.iterdir())) == 1


def test_each_runtime_and_processor_has_its_own(
    merged: Path, split: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (ditc.load(path, intra_op_num_threads=1).manifest for path in (merged, split))
    places = {prepacked.place(one), prepacked.place(one), prepacked.place(other)}
    assert len(places) == 2
    with monkeypatch.context() as patch:
        patch.setattr(onnxruntime, "__version__", "0.1")
        places.add(prepacked.place(one))
    monkeypatch.setattr(prepacked, "_processor", lambda: "another")
    places.add(prepacked.place(one))
    assert len(places) == 4


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"providers": ["CUDAExecutionProvider"]}, "the provider CUDAExecutionProvider"),
        ({"session_options": onnxruntime.SessionOptions()}, "session_options may ask for"),
    ],
)
def test_what_cannot_be_laid_out_once(merged: Path, options: dict[str, Any], why: str) -> None:
    with pytest.raises(OptionError, match=f"prepack='once' lays .* but {why}"):
        ditc.load(merged, prepack="once", **options)


def test_anything_else_is_no_way(merged: Path) -> None:
    with pytest.raises(OptionError, match="prepack takes True, False or 'once', not 'twice'"):
        ditc.load(merged, prepack="twice")  # type: ignore[arg-type]


def test_other_formats_cannot(pt2: Path) -> None:
    with pytest.raises(OptionError, match="but this bundle is of the format pt2"):
        ditc.load(pt2, prepack="once", trust=True)
