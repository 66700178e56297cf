"""Sampling loops in which the latent really follows from what the model gave.

A sampler is a generator: it yields after each step of the schedule. It asks ``predict`` for the
guided prediction at each noise level, and ``noise`` where it adds some.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor


class Predict(Protocol):
    def __call__(self, x: Tensor, sigma: float, *, step: int) -> Tensor:
        """The guided prediction."""
        ...


Noise = Callable[[Tensor], Tensor]
Sampler = Callable[[Tensor, Sequence[float], Predict, Noise], Iterator[None]]


def schedule(steps: int) -> list[float]:
    """Noise levels from 1 to 0, unevenly spaced, one more than steps."""
    even = torch.linspace(1, 0, steps + 1)
    return (2 * even / (1 + even)).tolist()


def euler(x: Tensor, sigmas: Sequence[float], predict: Predict, noise: Noise) -> Iterator[None]:
    """Flow matching."""
    for step, (now, then) in enumerate(pairwise(sigmas)):
        x = x + (then - now) * predict(x, now, step=step)
        yield


def ddim(x: Tensor, sigmas: Sequence[float], predict: Predict, noise: Noise) -> Iterator[None]:
    """Variance preserving, the model taken to predict the noise."""
    for step, (now, then) in enumerate(pairwise(sigmas)):
        (a, s), (b, r) = _signal_and_noise(now), _signal_and_noise(then)
        eps = predict(x, now, step=step)
        x = b * (x - s * eps) / a + r * eps
        yield


def multistep(x: Tensor, sigmas: Sequence[float], predict: Predict, noise: Noise) -> Iterator[None]:
    """Second order from the last two predictions, on uneven steps."""
    last: tuple[float, Tensor] | None = None
    for step, (now, then) in enumerate(pairwise(sigmas)):
        v = predict(x, now, step=step)
        slope = (v - last[1]) / (now - last[0]) if last is not None else torch.zeros_like(v)
        x = x + (then - now) * (v + (then - now) / 2 * slope)
        last = now, v
        yield


def heun(x: Tensor, sigmas: Sequence[float], predict: Predict, noise: Noise) -> Iterator[None]:
    """Two evaluations at each noise level but the first, as diffusers has it; scaled inputs."""
    last = len(sigmas) - 2
    for step, (now, then) in enumerate(pairwise(sigmas)):
        v = predict(_scaled(x, now), now, step=step)
        guess = x + (then - now) * v
        if step < last:
            v = (v + predict(_scaled(guess, then), then, step=step + 1)) / 2
        x = x + (then - now) * v
        yield


def midpoint(x: Tensor, sigmas: Sequence[float], predict: Predict, noise: Noise) -> Iterator[None]:
    """Two evaluations at unlike noise levels, as KDPM2; scaled inputs."""
    for step, (now, then) in enumerate(pairwise(sigmas)):
        middle = _middle(now, then)
        v = predict(_scaled(x, now), now, step=2 * step)
        v = predict(_scaled(x + (middle - now) * v, middle), middle, step=2 * step + 1)
        x = x + (then - now) * v
        yield


def ancestral(x: Tensor, sigmas: Sequence[float], predict: Predict, noise: Noise) -> Iterator[None]:
    """Euler that goes too far down, and adds noise."""
    for step, (now, then) in enumerate(pairwise(sigmas)):
        down = 0.7 * then
        x = x + (down - now) * predict(x, now, step=step)
        x = x + 0.6 * math.sqrt(then**2 - down**2) * noise(x)
        yield


SAMPLERS: dict[str, Sampler] = {
    f.__name__: f for f in (euler, ddim, multistep, heun, midpoint, ancestral)
}


def evaluated(sampler: str, sigmas: Sequence[float]) -> list[float]:
    """The noise level of each evaluation, as a scheduler states them."""
    levels = list(sigmas[:-1])
    if sampler == "heun":
        return [levels[0], *(each for level in levels[1:] for each in (level, level))]
    if sampler == "midpoint":
        return [each for now, then in pairwise(sigmas) for each in (now, _middle(now, then))]
    return levels


def _signal_and_noise(sigma: float) -> tuple[float, float]:
    angle = 0.45 * math.pi * sigma
    return math.cos(angle), math.sin(angle)


def _middle(now: float, then: float) -> float:
    return 0.6 * now + 0.4 * then


def _scaled(x: Tensor, sigma: float) -> Tensor:
    return x / math.sqrt(1 + sigma**2)
