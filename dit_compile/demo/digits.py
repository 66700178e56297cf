"""The bundled model: a class-conditional DiT that draws scikit-learn's 8x8 handwritten digits.

Images are float32 tensors of shape [N, 1, 8, 8] in [-1, 1] (-1 is paper, 1 is ink); class labels
are int64 tensors of shape [N] with values 0 to 9, or `NULL_CLASS` for "no class" in classifier-free
guidance. The checkpoints are written by `samples/train_digits.py`, whose docstring records the
training. Nothing here imports diffusers or scikit-learn until a function needs it.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from safetensors import safe_open
from torch import Tensor, nn

from dit_compile.errors import MissingDependencyError

if TYPE_CHECKING:
    from diffusers import DDIMScheduler, DiTTransformer2DModel

NUM_CLASSES = 10
NULL_CLASS = 10
IMAGE_SHAPE = (1, 8, 8)
TRAIN_TIMESTEPS = 1000

MODEL_FILE = "digits_dit.safetensors"
CLASSIFIER_FILE = "digits_classifier.safetensors"

# Fixed for good: the trainer, the tests and every published number must hold out the same images.
_SPLIT_SEED = 0
_TEST_FRACTION = 0.2

StepCallback = Callable[[int, int, Tensor], None]


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


def load_model(dtype: torch.dtype = torch.float32) -> DiTTransformer2DModel:
    """Load the trained diffusion transformer, in eval mode, on the CPU.

    It predicts the velocity v = sqrt(alpha) noise - sqrt(1 - alpha) image (Salimans and Ho, 2022):
    latents [N, 1, 8, 8], int64 timesteps [N] in [0, 1000) and class labels [N] in
    [0, `NULL_CLASS`] -> [N, 1, 8, 8].

    Args:
        dtype: floating-point type of the parameters; the checkpoint is float32.

    Raises:
        MissingDependencyError: diffusers is not installed.
    """
    diffusers = require("diffusers")
    config, state = _read_checkpoint(MODEL_FILE)
    model = diffusers.DiTTransformer2DModel(**config)
    model.load_state_dict(state)
    # diffusers' own `to` warns about a cast that is harmless here: no layer must stay float32.
    nn.Module.to(model, dtype)
    return cast("DiTTransformer2DModel", model.eval())


def load_classifier() -> DigitClassifier:
    """Load the trained digit classifier (float32), in eval mode, on the CPU."""
    config, state = _read_checkpoint(CLASSIFIER_FILE)
    classifier = DigitClassifier(**config)
    classifier.load_state_dict(state)
    return classifier.eval()


def real_digits(split: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
    """Real digits: images [N, 1, 8, 8] in [-1, 1] and int64 labels [N].

    The split is fixed, stratified by class, 80 % train and 20 % test; neither the model nor the
    classifier has seen a test image.

    Raises:
        ValueError: `split` is neither "train" nor "test".
        MissingDependencyError: scikit-learn is not installed.
    """
    if split not in ("train", "test"):
        raise ValueError(f'split must be "train" or "test", not {split!r}')
    datasets = require("sklearn.datasets")
    selection = require("sklearn.model_selection")
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


def scheduler(num_inference_steps: int = 50) -> DDIMScheduler:
    """The DDIM scheduler the model is meant to be sampled with (linear betas, v-prediction).

    Its `timesteps` attribute is the int64 tensor [num_inference_steps] that `sample` visits, from
    the noisiest to the cleanest.

    Raises:
        ValueError: `num_inference_steps` is not in [1, 1000].
        MissingDependencyError: diffusers is not installed.
    """
    if not 1 <= num_inference_steps <= TRAIN_TIMESTEPS:
        raise ValueError(
            f"num_inference_steps must be in [1, {TRAIN_TIMESTEPS}], not {num_inference_steps}"
        )
    ddim = require("diffusers").DDIMScheduler(
        num_train_timesteps=TRAIN_TIMESTEPS,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type="v_prediction",
        # By default DDIM clips the image it expects but not the noise it expects with it. Guidance
        # overshoots [-1, 1] at every step, and that mismatch then turns digits inside out.
        clip_sample=False,
    )
    ddim.set_timesteps(num_inference_steps)
    return cast("DDIMScheduler", ddim)


@torch.no_grad()
def sample(
    model: Callable[..., Any],
    labels: Tensor,
    *,
    num_inference_steps: int = 50,
    guidance_scale: float = 3.0,
    seed: int = 0,
    on_step: StepCallback | None = None,
) -> Tensor:
    """Draw digits by DDIM with classifier-free guidance.

    Each denoising step calls the model once, on a doubled batch whose first half is conditional and
    whose second half has the null class.

    Args:
        model: the diffusion transformer, or any callable with its signature, such as a compiled
            one. Inputs follow the device and dtype of its parameters; a callable that is no
            `nn.Module` gets float32 inputs on the device of `labels`.
        labels: int [N], the class asked for of each image, 0 to 9.
        num_inference_steps: number of denoising steps.
        guidance_scale: 1 is no guidance; 2 to 4 suits this model.
        seed: seed of the starting noise, which is the same on every device.
        on_step: called after each denoising step with its index (from 0), its timestep and the
            float32 latents [N, 1, 8, 8].

    Returns:
        float32 images [N, 1, 8, 8] in [-1, 1], on the device of the model.

    Raises:
        ValueError: `labels` is not a vector of classes from 0 to 9, or `num_inference_steps` is not
            in [1, 1000].
        MissingDependencyError: diffusers is not installed.
    """
    _check_labels(labels)
    ddim = scheduler(num_inference_steps)
    device, dtype = _placement(model, labels)
    count = labels.shape[0]
    # Built once: a compiled model may key work on the identity or the values of this tensor.
    both = torch.cat([labels, torch.full_like(labels, NULL_CLASS)]).to(device, torch.int64)
    noise = torch.randn(count, *IMAGE_SHAPE, generator=torch.Generator().manual_seed(seed))
    # The latents stay float32 whatever the model's dtype: the scheduler adds small differences up.
    latents = noise.to(device)
    for index, timestep in enumerate(ddim.timesteps.tolist()):
        t_batch = torch.full((2 * count,), timestep, dtype=torch.int64, device=device)
        doubled = torch.cat([latents, latents]).to(dtype)
        predicted = model(doubled, timestep=t_batch, class_labels=both, return_dict=False)[0]
        conditional, unconditional = predicted.float().chunk(2)
        guided = unconditional + guidance_scale * (conditional - unconditional)
        latents = ddim.step(guided, timestep, latents, return_dict=False)[0]
        if on_step is not None:
            on_step(index, timestep, latents)
    return latents.clamp(-1.0, 1.0)


def _check_labels(labels: Tensor) -> None:
    if labels.dim() != 1 or labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"labels must be an int tensor [N], not {labels.dtype} {list(labels.shape)}"
        )
    if labels.numel() == 0 or labels.min() < 0 or labels.max() >= NUM_CLASSES:
        raise ValueError(f"labels must hold at least one class, each from 0 to {NUM_CLASSES - 1}")


def _placement(model: Callable[..., Any], labels: Tensor) -> tuple[torch.device, torch.dtype]:
    parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    if parameter is None:
        return labels.device, torch.float32
    return parameter.device, parameter.dtype


def _read_checkpoint(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the constructor arguments (JSON in the metadata) and the tensors of a bundled file."""
    with (
        resources.as_file(resources.files("dit_compile") / "data" / name) as path,
        safe_open(path, framework="pt") as file,
    ):
        config = json.loads(file.metadata()["config"])
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    return config, state


def require(module: str) -> Any:
    """Import an optional dependency, or say how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = {"sklearn": "scikit-learn"}.get(module.split(".")[0], module)
        raise MissingDependencyError(
            f"the demonstration model needs {package}; install it with: "
            "pip install 'dit-compile[demo]'"
        ) from error
