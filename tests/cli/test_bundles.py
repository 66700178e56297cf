"""``ditc export`` and ``ditc run``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Run = Callable[..., Any]


def test_export_and_run(
    ditc: Run, model_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "bundle")
    done = ditc("export", f"{model_file}:make", path, "--passes", "exact", "--split")
    assert done.code == 0, done.err
    rows = [row.split() for row in done.out.splitlines()]
    assert rows[0] == ["graph", "file", "inputs", "outputs", "MB"]
    assert ["full", "full.onnx"] in [row[:2] for row in rows]
    assert rows[-1][0] == "bundle:"
    assert "loading the model" in done.err

    twice = ditc("export", f"{model_file}:make", path)
    assert twice.code == 1
    assert "--overwrite" in twice.err

    np.savez(tmp_path / "in.npz", c=np.ones((2, 8), np.float32))
    options = ("--inputs", str(tmp_path / "in.npz"), "--save", str(tmp_path / "out.npz"))
    ran = ditc("run", path, "--steps", "3", "--threads", "1", *options)
    assert ran.code == 0, ran.err
    assert ran.out.startswith("Transformer, loaded in ")
    assert "computed      3" in ran.out
    with np.load(tmp_path / "out.npz") as file:
        assert file["output_0"].shape == (2, 4, 8)

    monkeypatch.setenv("DITC_CACHE_DIR", str(tmp_path / "cache"))
    again = ditc("run", path, "--steps", "3", "--threads", "1", "--prepack-once")
    assert "computed      3" in again.out
    assert list((tmp_path / "cache" / "prepacked").iterdir())

    wrong = ditc("run", path, "--inputs", model_file)
    assert (wrong.code, wrong.out) == (1, "")
    assert "give a .npz file" in wrong.err
    whole = (tmp_path / "in.npz").read_bytes()
    for cut in (0, 1, 40, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.npz").write_bytes(whole[:cut])
        wrong = ditc("run", path, "--inputs", str(tmp_path / "cut.npz"))
        assert "give a .npz file" in wrong.err
    fallback = ditc("run", path, "--provider", "TensorrtExecutionProvider")
    assert "has no provider" in fallback.err


def test_exported_programs(ditc: Run, model_file: str, tmp_path: Path) -> None:
    path = str(tmp_path / "bundle")
    done = ditc("export", f"{model_file}:make", path, "--passes", "exact", "--format", "pt2")
    assert done.code == 0, done.err
    refused = ditc("run", path, "--steps", "3")
    assert (refused.code, refused.out) == (1, "")
    assert "may hold pickles" in refused.err
    assert "--trust" in refused.err
    ran = ditc("run", path, "--steps", "3", "--trust")
    assert ran.code == 0, ran.err
    assert "computed      3" in ran.out
    shown = ditc("explain", path)
    assert shown.out.startswith("Transformer   pt2 on cpu   ")
    wrong = ditc("export", f"{model_file}:make", path, "--format", "pt", "--overwrite")
    assert "did you mean 'pt2'" in wrong.err


def test_no_bundle(ditc: Run, tmp_path: Path) -> None:
    done = ditc("run", str(tmp_path))
    assert done.code == 1
    assert "has no manifest.json" in done.err
