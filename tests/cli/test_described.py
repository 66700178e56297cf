"""``ditc explain`` of a bundle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.bundle.conftest import exported
from tests.runtime.loops import Toy

Run = Callable[..., Any]

WITHOUT_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "onnx", "onnxruntime", "sympy", "networkx"):
            raise ImportError(f"{name} is refused")
sys.meta_path.insert(0, Refuse())
from dit_compile.cli import main
sys.exit(main(["explain", sys.argv[1]]))
"""


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be written to."""
    return exported(Toy(), tmp_path_factory.mktemp("toy") / "toy")


def test_what_it_says_without_torch(toy: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(toy)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("Toy   onnx   0.")
    assert "ditc 0." in lines[0]
    assert any(line.startswith("passes: ") and "insert-block-cache" in line for line in lines)
    rows = [line.split() for line in lines]
    assert ["t", "float32[1]", "timestep"] in rows
    assert ["output_0", "float32[1,6,8]", "result"] in rows
    assert "schedule: interval{interval=2}; 26 of 50 steps computed in full" in lines
    assert "  reuse: computes 0 of 1 groups" in lines
    assert "state of a lane: 6 tensors, 0.0 MB" in lines
    assert ["full", "step.onnx"] in [row[:2] for row in rows]


def test_its_manifest(ditc: Run, toy: Path) -> None:
    done = ditc("explain", str(toy), "--json")
    assert json.loads(done.out) == json.loads((toy / "manifest.json").read_text())


def test_what_is_of_models(ditc: Run, toy: Path) -> None:
    done = ditc("explain", str(toy), "--html", "x.html")
    assert done.code == 1
    assert "--html is of a model" in done.err
    assert "--trajectory is of a model" in ditc("explain", str(toy), "--trajectory").err
    assert not Path("x.html").exists()


def test_a_damaged_one(ditc: Run, tmp_path: Path) -> None:
    path = exported(Toy(), tmp_path / "toy")
    os.truncate(path / "step.onnx", 10)
    done = ditc("explain", str(path))
    assert (done.code, done.out) == (1, "")
    assert "step.onnx has 10 bytes" in done.err
