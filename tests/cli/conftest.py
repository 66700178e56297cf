"""A model file, and the command line run in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from dit_compile.cli import main

MODEL = """
from __future__ import annotations

from dataclasses import dataclass

import torch
from tests.ir.models import Transformer, noise, seeded

print("loading the model")


@dataclass
class Config:
    blocks: int = 3
    affine: tuple[int, ...] = ()


def make(config: Config = Config()):
    model = seeded(lambda: Transformer(config.blocks, config.affine))
    return model, (noise(2, 4, 8),), {"c": noise(2, 8)}


def near_miss():
    return make(Config(affine=(2,)))


def dropping():
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Dropout())
    return model, (noise(2, 8),), {}


def untraceable():
    class Branch(torch.nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    return Branch(), (noise(2, 8),), {}


def forgetful():
    return seeded(Transformer)


def confused():
    return seeded(Transformer), noise(2, 4, 8), {}


def failing():
    raise ValueError("no such\\ncheckpoint")


number = 7
"""


SAMPLED = """
import torch
from tests.calibration.test_calibrate import sampler as loop
from tests.runtime.loops import Toy, label

toy = Toy()


def make():
    return toy, (torch.ones(1, 6, 8), torch.ones(1), label(1)), {}


def sampler():
    return loop(toy), toy
"""


class Result(NamedTuple):
    """What one command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def model_file(tmp_path: Path) -> str:
    path = tmp_path / "model_of_a_user.py"
    path.write_text(MODEL)
    return str(path)


@pytest.fixture
def sampled_file(tmp_path: Path) -> str:
    path = tmp_path / "sampled.py"
    path.write_text(SAMPLED)
    return str(path)


@pytest.fixture
def ditc(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """Runs a command; gives its exit code, stdout and stderr."""
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)

    def run(*args: str) -> Result:
        capsys.readouterr()
        code = main(args)
        return Result(code, *capsys.readouterr())

    return run
