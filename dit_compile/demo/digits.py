"""Scikit-learn's 8x8 handwritten digits, and a classifier of them: what all bundled models share.

Images are float32 tensors of shape [N, 1, 8, 8] in [-1, 1] (-1 is paper, 1 is ink); class labels
are int64 tensors of shape [N] with values 0 to 9, or `NULL_CLASS` for "no class" in classifier-free
guidance. The checkpoints are written by the training programs in `samples/`, whose docstrings
record the training. Nothing here imports diffusers or scikit-learn until a function needs it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import safe_open
from torch import Tensor, nn

from dit_compile.optional import require

NUM_CLASSES = 10
NULL_CLASS = 10
IMAGE_SHAPE = (1, 8, 8)

#: The folder of the bundled checkpoints.
DATA = Path(__file__).resolve().parent.parent / "data"
CLASSIFIER_FILE = "digits_classifier.safetensors"

# Fixed for good: the trainers, the tests and every published number must hold out the same images.
_SPLIT_SEED = 0
_TEST_FRACTION = 0.2


class DigitClassifier(nn.Module):
    """Tiny convolutional digit classifier; its penultimate features serve a Fréchet distance.

    Args:
        channels: width of the first convolution (the second has twice as many).
        num_features: width of the penultimate layer.
    """

    def __init__(self, channels: int = 32, num_features: int = 32) -> None:
        super().__init__()
        self.config = {"channels": channels, "num_features": num_features}
        self.conv1 = nn.Conv2d(1, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, 2 * channels, 3, padding=1)
        self.hidden = nn.Linear(2 * channels * 4 * 4, num_features)
        self.head = nn.Linear(num_features, NUM_CLASSES)

    def features(self, images: Tensor) -> Tensor:
        """Penultimate activations: images [N, 1, 8, 8] in [-1, 1] -> [N, num_features]."""
        x = torch.relu(self.conv1(images))
        x = nn.functional.max_pool2d(torch.relu(self.conv2(x)), 2)
        return torch.relu(self.hidden(x.flatten(1)))

    def forward(self, images: Tensor) -> Tensor:
        """Class logits: images [N, 1, 8, 8] in [-1, 1] -> [N, 10]."""
        return cast(Tensor, self.head(self.features(images)))


def load_classifier() -> DigitClassifier:
    """Load the trained digit classifier (float32), in eval mode, on the CPU."""
    config, state = read_checkpoint(DATA / CLASSIFIER_FILE)
    classifier = DigitClassifier(**config)
    classifier.load_state_dict(state)
    return classifier.eval()


def real_digits(split: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
    """Real digits: images [N, 1, 8, 8] in [-1, 1] and int64 labels [N].

    The split is fixed, stratified by class, 80 % train and 20 % test; neither the models nor the
    classifier have seen a test image.

    Raises:
        ValueError: `split` is neither "train" nor "test".
        MissingDependencyError: scikit-learn is not installed.
    """
    if split not in ("train", "test"):
        raise ValueError(f'split must be "train" or "test", not {split!r}')
    datasets = require("sklearn.datasets", "demo")
    selection = require("sklearn.model_selection", "demo")
    pixels, classes = datasets.load_digits(return_X_y=True)
    train, test = selection.train_test_split(
        range(len(classes)),
        test_size=_TEST_FRACTION,
        random_state=_SPLIT_SEED,
        stratify=classes,
    )
    chosen = train if split == "train" else test
    images = torch.from_numpy(pixels[chosen]).float().reshape(-1, *IMAGE_SHAPE)
    labels = torch.from_numpy(classes[chosen]).long()
    return images / 8.0 - 1.0, labels  # the pixels are whole numbers from 0 to 16


def read_checkpoint(path: Path, prefix: str = "") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the configuration (JSON in the metadata) and the tensors of a checkpoint.

    Args:
        path: a safetensors file.
        prefix: read only the tensors whose names begin with this, and cut it off.
    """
    with safe_open(path, framework="pt") as file:
        config = json.loads(file.metadata()["config"])
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
        return config, {name.removeprefix(prefix): file.get_tensor(name) for name in names}
