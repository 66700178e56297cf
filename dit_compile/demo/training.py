"""Training of the bundled models: one resumable loop with a moving average of the weights.

Every model is trained on the same real digits with AdamW, a linear warm-up and a cosine decay, and
differs only in its module and its loss. Used by the programs in `samples/`.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dit_compile.demo import digits
from dit_compile.demo.bundled import BundledModel
from dit_compile.files import replaced
from dit_compile.quality.metrics import class_accuracy

log = logging.getLogger(__name__)

LABEL_DROP = 0.1
WARMUP_STEPS = 100
EMA_DECAY = 0.995
_LOG_EVERY = 100


@dataclass(frozen=True)
class Batch:
    """What one step trains on.

    Attributes:
        images: real digits [N, 1, 8, 8] in [-1, 1].
        noise: standard normal [N, 1, 8, 8].
        times: position of each image between data (0) and noise (1), uniform in [0, 1), one in
            each of N equal slices, ascending.
        labels: classes [N], some of them dropped to `digits.NULL_CLASS`.
    """

    images: Tensor
    noise: Tensor
    times: Tensor
    labels: Tensor


State = Mapping[str, Tensor]

#: The loss to descend and each image's error [N] to report, from the forward and a batch.
Loss = Callable[[Callable[..., Any], Batch], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Settings:
    """How long and how fast to train.

    Attributes:
        steps: optimiser steps.
        batch_size: images a step.
        lr: peak learning rate.
        seed: seed of the batches.
    """

    steps: int
    batch_size: int
    lr: float
    seed: int


class Trainer:
    """AdamW on a model and its loss, with a moving average of the weights.

    Each step draws its batch from a generator seeded by the seed and the step alone, so a resumed
    run takes the same steps as one that was never interrupted.
    """

    def __init__(self, model: nn.Module, loss: Loss, settings: Settings) -> None:
        self.model, self.loss, self.settings = model, loss, settings
        self.images, self.labels = digits.real_digits("train")
        self.ema = {k: v.detach().clone() for k, v in model.state_dict().items()}
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=settings.lr, betas=(0.9, 0.99), weight_decay=0.0, foreach=True
        )
        self.step = 0
        self.curve: list[tuple[int, float]] = []
        self.seconds = 0.0

    def learning_rate(self) -> float:
        """Linear warm-up, then a cosine down to 2 % of the peak."""
        peak, steps = self.settings.lr, self.settings.steps
        if self.step < WARMUP_STEPS:
            return peak * (self.step + 1) / WARMUP_STEPS
        progress = (self.step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS)
        return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))

    def draw_batch(self) -> Batch:
        """The batch of this step."""
        generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + self.step)
        size = self.settings.batch_size
        chosen = torch.randint(len(self.images), (size,), generator=generator)
        noise = torch.randn(size, *digits.IMAGE_SHAPE, generator=generator)
        # One time from each of `size` equal slices: the loss is much less noisy for it.
        times = (torch.arange(size) + torch.rand(size, generator=generator)) / size
        dropped = torch.rand(size, generator=generator) < LABEL_DROP
        labels = self.labels[chosen].masked_fill(dropped, digits.NULL_CLASS)
        return Batch(self.images[chosen], noise, times, labels)

    def train_step(self, forward: Callable[..., Any]) -> float:
        """Take one optimiser step; return the mean of the reported errors."""
        loss, errors = self.loss(forward, self.draw_batch())
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        self.update_average()
        return float(errors.detach().mean())

    @torch.no_grad()
    def update_average(self) -> None:
        """Move the averaged weights; the decay grows from 0 so that the start is forgotten."""
        decay = min(EMA_DECAY, (1 + self.step) / (10 + self.step))
        for name, value in self.model.state_dict().items():
            self.ema[name].lerp_(value, 1 - decay)

    def run(
        self,
        forward: Callable[..., Any],
        checkpoint: Path,
        *,
        save_every: int,
        stop_at: int | None = None,
    ) -> None:
        """Train up to the last step, or `stop_at` if that comes first, saving as it goes."""
        start, total, count = time.monotonic() - self.seconds, 0.0, 0
        last = min(self.settings.steps, stop_at or self.settings.steps)
        while self.step < last:
            total, count = total + self.train_step(forward), count + 1
            if self.step % _LOG_EVERY == 0:
                self.seconds = time.monotonic() - start
                self.curve.append((self.step, round(total / count, 5)))
                log.info("step %5d  loss %.5f  %6.0f s", *self.curve[-1], self.seconds)
                total, count = 0.0, 0
            if self.step % save_every == 0 or self.step == last:
                self.save(checkpoint)

    def save(self, path: Path) -> None:
        """Write everything a resumed run needs (safetensors, never a pickle)."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.ema.items()}
        for name, parameter in self.model.named_parameters():
            for moment in ("exp_avg", "exp_avg_sq"):
                tensors[f"{moment}.{name}"] = self.optimizer.state[parameter][moment]
        progress = {"step": self.step, "curve": self.curve, "seconds": self.seconds}
        write_safetensors(tensors, {"progress": json.dumps(progress)}, path)

    def load(self, path: Path) -> None:
        """Continue from a file that `save` wrote."""
        with safe_open(path, framework="pt") as file:
            progress = json.loads(file.metadata()["progress"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        self.model.load_state_dict(_under(tensors, "model."))
        self.ema = _under(tensors, "ema.")
        self.step, self.seconds = progress["step"], progress["seconds"]
        self.curve = [(step, loss) for step, loss in progress["curve"]]
        for name, parameter in self.model.named_parameters():
            self.optimizer.state[parameter] = {
                "step": torch.tensor(float(self.step)),
                "exp_avg": tensors[f"exp_avg.{name}"],
                "exp_avg_sq": tensors[f"exp_avg_sq.{name}"],
            }


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def write_safetensors(tensors: State, metadata: dict[str, str], path: Path) -> None:
    """Write a file at once, so that an interrupted run never leaves half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path, mode=0o644) as draft:  # package data is for every user to read
        save_file({k: v.contiguous() for k, v in tensors.items()}, draft, metadata=metadata)


def train(model: nn.Module, loss: Loss, args: argparse.Namespace) -> None:
    """Train `model` as a command line made by `parser` says; leaves the averaged weights in it."""
    torch.set_num_threads(args.threads)
    trainer = Trainer(model, loss, Settings(args.steps, args.batch_size, args.lr, args.seed))
    if args.resume:
        trainer.load(args.checkpoint)
    forward = model if args.no_compile else torch.compile(model)
    trainer.run(forward, args.checkpoint, save_every=args.save_every, stop_at=args.stop_at)
    model.load_state_dict(trainer.ema)


def write_model(bundled: BundledModel, config: Mapping[str, Any], state: State) -> None:
    """Write a trained model as what `bundled` loads: its transformer's arguments and tensors."""
    path = bundled.data / bundled.file
    write_safetensors(state, {"config": json.dumps(config)}, path)
    log.info("%s: %.2f MB", path, path.stat().st_size / 1e6)


def measure(bundled: BundledModel, classifier: digits.DigitClassifier, per_class: int) -> None:
    """Log how many 50-step samples of a written model are what was asked for."""
    model = bundled.load()
    labels = torch.arange(digits.NUM_CLASSES).repeat_interleave(per_class)
    for scale in (2.0, 3.0, 4.0) if per_class else ():
        with torch.no_grad():
            logits = classifier(bundled.sample(model, labels, guidance_scale=scale))
        share = class_accuracy(logits, labels)
        log.info("guidance %.0f: %.1f %% drawn as the class asked for", scale, 100 * share)


def parser(description: str, *, steps: int, checkpoint: str) -> argparse.ArgumentParser:
    """The command line of a training program."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--steps", type=int, default=steps, help="optimiser steps")
    made.add_argument("--batch-size", type=int, default=48)
    made.add_argument("--lr", type=float, default=1e-3, help="peak learning rate")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--threads", type=int, default=1, help="CPU threads")
    made.add_argument("--out", type=Path, default=digits.DATA, help="folder of the written models")
    made.add_argument("--checkpoint", type=Path, default=Path(checkpoint), help="training state")
    made.add_argument("--save-every", type=int, default=250, help="steps between checkpoints")
    made.add_argument("--stop-at", type=int, help="stop early at this step, to be resumed later")
    made.add_argument("--resume", action="store_true", help="continue from --checkpoint")
    made.add_argument(
        "--samples", type=int, default=20, help="of each class, to measure in the end"
    )
    made.add_argument("--no-compile", action="store_true", help="train without torch.compile")
    return made
