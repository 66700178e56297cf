"""The data and the classifier that all bundled models share."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dit_compile.demo import digits
from dit_compile.errors import MissingDependencyError
from dit_compile.quality.metrics import class_accuracy


def test_importing_is_light() -> None:
    code = (
        "import sys, dit_compile.demo.models, dit_compile.demo.training\n"
        "assert not {'diffusers', 'sklearn', 'triton', 'onnxruntime'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingDependencyError, match=r"scikit-learn.*dit-compile\[demo\]"):
        digits.real_digits("test")


class TestRealDigits:
    def test_split(self) -> None:
        train, train_labels = digits.real_digits("train")
        test, test_labels = digits.real_digits("test")
        assert len(train) + len(test) == 1797
        assert train.shape[1:] == test.shape[1:] == digits.IMAGE_SHAPE
        assert train.dtype == torch.float32
        assert (float(train.min()), float(train.max())) == (-1.0, 1.0)
        for labels in (train_labels, test_labels):
            shares = labels.bincount(minlength=10) / len(labels)
            assert labels.dtype == torch.int64
            assert (shares - 0.1).abs().max() < 0.01

    def test_no_image_is_on_both_sides(self) -> None:
        train, test = (digits.real_digits(split)[0].flatten(1) for split in ("train", "test"))
        assert torch.cdist(test, train).min() > 0

    def test_unknown_split(self) -> None:
        with pytest.raises(ValueError, match="split must be"):
            digits.real_digits("validation")  # type: ignore[arg-type]


class TestClassifier:
    def test_size(self) -> None:
        assert 0 < (digits.DATA / digits.CLASSIFIER_FILE).stat().st_size <= 1_000_000

    def test_held_out_digits(self) -> None:
        classifier = digits.load_classifier()
        images, labels = digits.real_digits("test")
        assert not classifier.training
        with torch.no_grad():
            assert class_accuracy(classifier(images), labels) >= 0.97
            assert classifier.features(images).shape == (len(images), 32)


def test_reading_a_part_of_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "two.safetensors"
    tensors = {"a.weight": torch.ones(2), "b.weight": torch.zeros(3), "b.bias": torch.ones(1)}
    save_file(tensors, path, metadata={"config": json.dumps({"layers": 2})})
    config, state = digits.read_checkpoint(path, "b.")
    assert config == {"layers": 2}
    assert {name: len(value) for name, value in state.items()} == {"weight": 3, "bias": 1}
    assert digits.read_checkpoint(path)[1].keys() == tensors.keys()
