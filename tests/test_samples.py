"""Each sample runs as a user would run it."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dit_compile.demo.models import BUNDLED

SAMPLES = Path(__file__).parents[1] / "samples"


def run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "160"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_explain_your_model() -> None:
    printed = run(str(SAMPLES / "explain_your_model.py"))
    assert "fuse-adaln" in printed
    assert "x3 identical, shown once" in printed
    assert "2 variants, 6 sites, interval=2" in printed


def test_the_same_from_the_command_line() -> None:
    target = f"{SAMPLES / 'explain_your_model.py'}:target"
    assert "fuse-qkv" in run("-m", "dit_compile", "diff", target)


@pytest.mark.slow
def test_compile_and_sample() -> None:
    lines = run(str(SAMPLES / "compile_and_sample.py")).splitlines()
    assert [line.split()[0] for line in lines] == ["exact", "exact", "cached", "cached"]
    assert "'computed': 20, 'reused': 0" in lines[1]
    assert "'computed': 8, 'reused': 12" in lines[3]


@pytest.mark.parametrize("name", ["train_digits.py", "train_digits_flow.py"])
def test_training_explains_itself(name: str) -> None:
    assert "--out" in run(str(SAMPLES / name), "--help")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train_digits.py", "train_digits_flow.py"])
def test_training_goes_all_the_way(name: str, tmp_path: Path) -> None:
    state, written = tmp_path / "state.safetensors", tmp_path / "written"
    run(
        *(str(SAMPLES / name), "--no-compile", "--steps", "2", "--batch-size", "4"),
        *("--samples", "0", "--out", str(written), "--checkpoint", str(state)),
    )
    assert state.exists()
    bundled = next(model for model in BUNDLED.values() if (written / model.file).exists())
    trained = dataclasses.replace(bundled, data=written)
    images = trained.sample(trained.load(), torch.tensor([3]), num_inference_steps=2)
    assert torch.isfinite(images).all()
