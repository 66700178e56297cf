"""The training loop of the bundled models, on a model that is trained in milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from dit_compile.demo import digits, training
from dit_compile.demo.training import Batch, Settings, Trainer

SETTINGS = Settings(steps=12, batch_size=8, lr=1e-2, seed=3)


class Painter(nn.Module):
    """Predicts the mean image of each class."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.zeros(digits.NUM_CLASSES + 1, *digits.IMAGE_SHAPE))

    def forward(self, labels: Tensor) -> Tensor:
        return self.rows[labels]


def loss(forward: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    errors = (forward(batch.labels) - batch.images).square().mean(dim=(1, 2, 3))
    return errors.mean(), errors


def trainer(settings: Settings = SETTINGS) -> Trainer:
    return Trainer(Painter(), loss, settings)


class TestBatches:
    def test_seed_and_step_alone_decide(self) -> None:
        one, other = trainer(), trainer()
        one.step = other.step = 5
        assert torch.equal(one.draw_batch().noise, other.draw_batch().noise)
        other.step = 6
        assert not torch.equal(one.draw_batch().noise, other.draw_batch().noise)
        another = trainer(Settings(12, 8, 1e-2, seed=4))
        another.step = 5
        assert not torch.equal(one.draw_batch().noise, another.draw_batch().noise)

    def test_times_cover_the_path_evenly(self) -> None:
        times = trainer().draw_batch().times
        assert torch.equal((times * len(times)).long(), torch.arange(len(times)))

    def test_labels_are_dropped_now_and_then(self) -> None:
        drawn = trainer(Settings(1, 4000, 1e-2, 0)).draw_batch().labels
        share = float((drawn == digits.NULL_CLASS).float().mean())
        assert abs(share - training.LABEL_DROP) < 0.02


def test_learning_rate() -> None:
    run = trainer(Settings(steps=1000, batch_size=8, lr=2.0, seed=0))
    rates = []
    for run.step in range(1001):
        rates.append(run.learning_rate())
    assert rates[0] == 2.0 / training.WARMUP_STEPS
    assert max(rates) == rates[training.WARMUP_STEPS] == 2.0
    assert rates[1000] == pytest.approx(0.04)
    after = rates[training.WARMUP_STEPS :]
    assert after == sorted(after, reverse=True)


def test_it_learns(tmp_path: Path) -> None:
    run = trainer(Settings(steps=200, batch_size=64, lr=5e-2, seed=0))
    run.run(run.model, tmp_path / "state.safetensors", save_every=200)
    (_, first), (_, last) = run.curve
    assert last < 0.8 * first
    images, labels = digits.real_digits("train")
    mean = images[labels == 3].mean(0)
    assert (run.model.rows[3] - mean).abs().mean() < 0.1
    average = run.ema["rows"][3]
    assert not torch.equal(average, run.model.rows[3])
    assert (average - mean).abs().mean() < 0.3


def test_a_resumed_run_takes_the_very_same_steps(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    whole, first, second = trainer(), trainer(), trainer()
    whole.run(whole.model, tmp_path / "whole.safetensors", save_every=100)
    first.run(first.model, path, save_every=100, stop_at=5)
    assert first.step == 5
    second.load(path)
    second.run(second.model, path, save_every=100)
    assert second.step == whole.step == 12
    assert torch.equal(second.model.rows, whole.model.rows)
    assert torch.equal(second.ema["rows"], whole.ema["rows"])


def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    training.write_safetensors({"a": torch.ones(2)}, {"config": "{}"}, path)

    def broken(tensors: Any, partial: Path, metadata: Any) -> None:
        partial.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "save_file", broken)
    with pytest.raises(KeyboardInterrupt):
        training.write_safetensors({"a": torch.zeros(2)}, {"config": "{}"}, path)
    with safe_open(path, framework="pt") as file:
        assert file.get_tensor("a").tolist() == [1.0, 1.0]


def test_from_the_command_line(tmp_path: Path) -> None:
    args = training.parser("Train.", steps=4, checkpoint="unused").parse_args(
        ["--no-compile", "--checkpoint", str(tmp_path / "state"), "--batch-size", "8"]
    )
    model = Painter()
    threads = torch.get_num_threads()
    training.train(model, loss, args)
    torch.set_num_threads(threads)
    expected = trainer(Settings(4, 8, args.lr, args.seed))
    expected.run(expected.model, tmp_path / "other", save_every=100)
    assert torch.equal(model.rows, expected.ema["rows"])
