"""Each sample runs as a user would run it."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dit_compile.demo.digits import NULL_CLASS
from dit_compile.demo.models import BUNDLED
from dit_compile.quality.metrics import psnr

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
    assert "2 variants, 6 sites, interval{interval=2}" in printed


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


@pytest.mark.slow
@pytest.mark.parametrize(("passes", "computed"), [("exact", 50), ("fast", 18)])
def test_sample_from_bundle(tmp_path: Path, passes: str, computed: int) -> None:
    """Where torch cannot be imported, 50 steps give the digit that the model draws."""
    bundle, out = str(tmp_path / "bundle"), str(tmp_path / "out.npy")
    run("-m", "dit_compile", "export", "digits", bundle, "--passes", passes)
    without_torch = tmp_path / "torch.py"
    without_torch.write_text("raise ImportError('there is no torch here')")
    program = str(SAMPLES / "sample_from_bundle.py")
    lines = run(
        "-c",
        f"import sys, runpy; sys.path.insert(0, {str(tmp_path)!r})\n"
        f"sys.argv = [0, {bundle!r}, {out!r}]\n"
        f"runpy.run_path({program!r}, None, '__main__')\n"
        "assert 'torch' not in sys.modules",
    )
    assert f"'computed': {computed}, 'reused': {50 - computed}" in lines
    noise = np.random.default_rng(0).standard_normal((1, 1, 8, 8), dtype=np.float32)
    want = eager(torch.from_numpy(noise))
    got = torch.from_numpy(np.load(out))
    assert psnr(got, want) > (50 if passes == "exact" else 25)


def eager(latents: torch.Tensor) -> torch.Tensor:
    """The same image by the model itself and diffusers' scheduler."""
    bundled = BUNDLED["digits"]
    model, scheduler = bundled.load(), bundled.scheduler(50)
    labels = torch.tensor([3, NULL_CLASS])
    with torch.no_grad():
        for t in scheduler.timesteps:
            doubled = torch.cat([latents, latents])
            predicted = model(doubled, t.expand(2), labels, return_dict=False)[0]
            conditional, unconditional = predicted.chunk(2)
            guided = unconditional + 3 * (conditional - unconditional)
            latents = scheduler.step(guided, t, latents, return_dict=False)[0]
    return latents.clamp(-1, 1)
