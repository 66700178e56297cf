"""What every bundled model is: a trained denoiser of digits, and the loop that samples from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from dit_compile.demo.digits import (
    DATA,
    IMAGE_SHAPE,
    NULL_CLASS,
    NUM_CLASSES,
    read_checkpoint,
)
from dit_compile.optional import require

TRAIN_TIMESTEPS = 1000

StepCallback = Callable[[int, float, Tensor], None]

#: Keyword arguments of the model that stay as they are for a whole generation.
Conditions = Mapping[str, Tensor]


@dataclass(frozen=True)
class Arguments:
    """The arguments of one call of a model."""

    args: tuple[Tensor, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class BundledModel(ABC):
    """A trained transformer that draws digits by class, with classifier-free guidance.

    A kind of model is a subclass that says how its transformer is called.

    Attributes:
        data: the folder of the checkpoint.
        name: what commands call the model.
        file: the checkpoint's name.
        transformer: name of the diffusers class.
        prefix: what the names of the transformer's tensors begin with in the checkpoint.
    """

    data: Path = DATA
    name: ClassVar[str]
    file: ClassVar[str]
    transformer: ClassVar[str]
    prefix: ClassVar[str] = ""

    @abstractmethod
    def scheduler(self, num_inference_steps: int = 50) -> Any:
        """The diffusers scheduler that the model is meant to be sampled with, its timesteps set.

        Raises:
            ValueError: `num_inference_steps` is not in [1, 1000].
            MissingDependencyError: diffusers is not installed.
        """

    @abstractmethod
    def conditions(self, labels: Tensor, dtype: torch.dtype = torch.float32) -> Conditions:
        """What the model is told of `labels`, once for a whole generation.

        Args:
            labels: int64 [N], 0 to 9 or `NULL_CLASS`, on the device of the model.
            dtype: floating-point type of the model.
        """

    def clock(self, timesteps: Tensor) -> Tensor:
        """The scheduler's timesteps on the scale of the model."""
        return timesteps

    def pack(self, images: Tensor) -> Tensor:
        """Images [N, 1, 8, 8] in the form that the model takes."""
        return images

    def unpack(self, output: Tensor) -> Tensor:
        """What the model returns as images [N, 1, 8, 8]."""
        return output

    def load(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """Load the trained transformer, in eval mode, on the CPU.

        Args:
            dtype: floating-point type of the parameters.

        Raises:
            MissingDependencyError: diffusers is not installed.
        """
        build = getattr(require("diffusers", "demo"), self.transformer)
        config, state = read_checkpoint(self.data / self.file, self.prefix)
        model = build(**config)
        model.load_state_dict(state)
        # diffusers' own `to` warns about a cast that is harmless here: no layer must stay float32.
        return cast(nn.Module, nn.Module.to(model, dtype).eval())

    def timesteps(self, num_inference_steps: int = 50) -> Tensor:
        """The timesteps that the model is called with, [num_inference_steps], noisiest first."""
        return self.clock(self.scheduler(num_inference_steps).timesteps)

    def arguments(self, latents: Tensor, timestep: Tensor, conditions: Conditions) -> Arguments:
        """The arguments of one call.

        Args:
            latents: [N, 1, 8, 8].
            timestep: one of the scheduler's timesteps, a scalar.
            conditions: what `conditions` returned for N classes.
        """
        t_batch = self.clock(timestep).repeat(len(latents))
        return Arguments(
            (self.pack(latents),), {"timestep": t_batch, **conditions, "return_dict": False}
        )

    def example(self, labels: Tensor) -> Arguments:
        """The arguments of a call half-way through a guided generation of `labels` [N].

        Raises:
            ValueError: `labels` is not a vector of classes from 0 to 9.
        """
        _check_labels(labels)
        both = torch.cat([labels, torch.full_like(labels, NULL_CLASS)])
        latents = torch.randn(len(both), *IMAGE_SHAPE, generator=torch.Generator().manual_seed(0))
        return self.arguments(latents, torch.tensor(TRAIN_TIMESTEPS // 2), self.conditions(both))

    @torch.no_grad()
    def sample(
        self,
        model: Callable[..., Any],
        labels: Tensor,
        *,
        num_inference_steps: int = 50,
        guidance_scale: float = 3.0,
        two_calls: bool = False,
        seed: int = 0,
        on_step: StepCallback | None = None,
    ) -> Tensor:
        """Draw digits with classifier-free guidance.

        Args:
            model: the transformer, or any callable with its signature, such as a compiled one.
                Inputs follow the device and dtype of its parameters; a callable that is no
                `nn.Module` gets float32 inputs on the device of `labels`.
            labels: int [N], the class asked for of each image, 0 to 9.
            num_inference_steps: number of denoising steps.
            guidance_scale: 1 is no guidance; 2 to 4 suits the bundled models.
            two_calls: call the model twice a step, conditional and then unconditional, in place of
                once on a doubled batch whose first half is conditional.
            seed: seed of the starting noise, which is the same on every device.
            on_step: called after each denoising step with its index (from 0), the scheduler's
                timestep and the float32 latents [N, 1, 8, 8].

        Returns:
            float32 images [N, 1, 8, 8] in [-1, 1], on the device of the model.

        Raises:
            ValueError: `labels` is not a vector of classes from 0 to 9, or `num_inference_steps` is
                not in [1, 1000].
            MissingDependencyError: diffusers is not installed.
        """
        _check_labels(labels)
        scheduler = self.scheduler(num_inference_steps)
        device, dtype = _placement(model, labels)
        asked = labels.to(device, torch.int64)
        halves = [asked, torch.full_like(asked, NULL_CLASS)]
        # Built once: a compiled model may key work on the identity or the values of these tensors.
        lanes = halves if two_calls else [torch.cat(halves)]
        conditions = [self.conditions(lane, dtype) for lane in lanes]
        noise = torch.randn(
            len(labels), *IMAGE_SHAPE, generator=torch.Generator().manual_seed(seed)
        )
        # The latents stay float32 whatever the model's dtype: the scheduler adds small steps up.
        latents = noise.to(device)
        for index, timestep in enumerate(scheduler.timesteps):
            given = (latents if two_calls else torch.cat([latents, latents])).to(dtype)
            calls = (self.arguments(given, timestep.to(device), each) for each in conditions)
            outputs = [self.unpack(model(*call.args, **call.kwargs)[0]).float() for call in calls]
            conditional, unconditional = torch.cat(outputs).chunk(2)
            guided = unconditional + guidance_scale * (conditional - unconditional)
            latents = scheduler.step(guided, timestep, latents, return_dict=False)[0]
            if on_step is not None:
                on_step(index, timestep.item(), latents)
        return latents.clamp(-1.0, 1.0)


def check_steps(num_inference_steps: int) -> None:
    """Refuse a number of steps that no scheduler here can take.

    Raises:
        ValueError: it is not in [1, 1000].
    """
    if not 1 <= num_inference_steps <= TRAIN_TIMESTEPS:
        raise ValueError(
            f"num_inference_steps must be in [1, {TRAIN_TIMESTEPS}], not {num_inference_steps}"
        )


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
