"""Ways to cache across steps that are compared: ditc's own, and what each contender must do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, fx, nn

from dit_compile.bench.tally import Tally
from dit_compile.calibration.calibrate import calibrate
from dit_compile.demo.bundled import BundledModel
from dit_compile.pipeline.text import parse
from dit_compile.runtime.session import session
from dit_compile.torch_backend import ditc

_MAGNITUDE = "exact,insert-block-cache{method=magnitude}"


@dataclass
class Subject:
    """The model that all contenders run, and what they are told of it.

    Attributes:
        bundled: the model and its sampling.
        labels: the class of each image of a generation.
        steps: denoising steps of a generation.
        guidance_scale: weight of classifier-free guidance.
        time: the scheduler's timestep of the current step, from 1000 to 0.
        tally: counts operations.
        trajectory: latents [N, 1, 8, 8] after each step of the last generation.
    """

    bundled: BundledModel
    labels: Tensor
    steps: int
    guidance_scale: float
    time: float = 1000.0
    tally: Tally = field(default_factory=Tally)
    trajectory: list[Tensor] = field(default_factory=list)
    _fitted: dict[str, str] = field(default_factory=dict)

    def draw(self, model: Callable[..., Any], seed: int) -> Tensor:
        """Images [N, 1, 8, 8] of one generation."""
        times = self.bundled.scheduler(self.steps).timesteps.tolist()
        self.time, self.trajectory = times[0], []

        def on_step(index: int, time: float, latents: Tensor) -> None:
            self.time = times[min(index + 1, self.steps - 1)]
            self.trajectory.append(latents)

        return self.bundled.sample(
            model,
            self.labels,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance_scale,
            seed=seed,
            on_step=on_step,
        )

    def fitted(self, passes: str) -> str:
        """A pipeline with all that its passes must be told of the model, from seed 0."""
        if passes not in self._fitted:
            model = self.bundled.load()
            plan = calibrate(
                lambda seed: self.draw(model, seed),
                model,
                passes=passes,
                samples=1,
                options={"target": "eager"},
                progress=False,
            )
            self._fitted[passes] = plan.passes
        return self._fitted[passes]

    @cached_property
    def ratios(self) -> Sequence[float]:
        """Magnitude ratios of the residual of all blocks, step by step."""
        cache = parse(self.fitted(_MAGNITUDE))[-1]
        ratios: Sequence[float] = cache.options["ratios"]
        return ratios


@dataclass(frozen=True)
class Contender(ABC):
    """One method at one setting.

    Attributes:
        method: its name where it comes from.
        setting: what varies, as text.
        group: where it comes from.
    """

    method: str
    setting: str
    group: ClassVar[str]

    @abstractmethod
    def build(self, subject: Subject, compiled: bool) -> Any:
        """A fresh copy of the model that caches, compiled or as its authors run it in eager."""

    def generation(self, model: nn.Module, subject: Subject) -> AbstractContextManager[Any]:
        """What one generation runs inside of; state of an earlier one is dropped."""
        return nullcontext()

    def counting(self, subject: Subject) -> AbstractContextManager[Any]:
        """What counts the operations of a generation in eager."""
        return subject.tally.counting()


@dataclass(frozen=True)
class Uncached(Contender):
    """The plain model."""

    group: ClassVar[str] = "uncached"
    method: str = "uncached"
    setting: str = ""

    def build(self, subject: Subject, compiled: bool) -> nn.Module:
        """Eager, or torch.compile."""
        return stock(subject.bundled.load(), compiled)


@dataclass(frozen=True)
class Ditc(Contender):
    """A caching pass of ditc."""

    group: ClassVar[str] = "ditc"

    @property
    def passes(self) -> str:
        """The pipeline's text, as users write it."""
        options = ",".join(filter(None, (f"method={self.method}", self.setting)))
        return f"exact,insert-block-cache{{{options}}}"

    def build(self, subject: Subject, compiled: bool) -> nn.Module:
        """The backend with Inductor, or with its oracle, which counts by itself."""
        how: dict[str, Any] = {"passes": subject.fitted(self.passes), "strict": True}
        if not compiled:
            how["target"] = "eager"

        def backend(module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
            run = ditc(module, inputs, options=how)

            def counted(*args: Any) -> Any:
                with subject.tally.counting():
                    return run(*args)

            return run if compiled else counted

        built: Any = torch.compile(
            subject.bundled.load(), backend=backend, fullgraph=True, dynamic=False
        )
        return cast(nn.Module, built)

    def generation(self, model: nn.Module, subject: Subject) -> AbstractContextManager[Any]:
        """A session with the timesteps."""
        return session(model, timesteps=subject.bundled.timesteps(subject.steps))

    def counting(self, subject: Subject) -> AbstractContextManager[Any]:
        """Nothing: Dynamo runs no compiled code inside of a counter, so it is inside."""
        return nullcontext()


def ditc_contenders() -> list[Contender]:
    """What users of ditc would try."""
    settings = {
        "interval": [f"interval={n}" for n in (2, 3, 4)],
        "delta": [f"interval={n}" for n in (2, 3, 4)],
        "smooth": [f"alpha={a}" for a in (0.08, 0.18)],
        "taylor": [
            f"interval={n},order={order},scope={scope}{start}{end}"
            for n in (2, 3, 4, 5, 6)
            for order in (1, 2)
            for scope in ("branch", "last")
            for start in ("", ",ramp=true")
            if n > 2 or not start  # the same there
            for end in ("", ",compute-last=false")
        ],
        "first-block": [
            f"residual-diff-threshold={threshold},order={order},{limits}"
            for threshold in (0.08, 0.1, 0.12, 0.15, 0.2, 0.4)
            for order in (0, 1, 2)
            for limits in (
                "max-warmup-steps=0",
                "max-warmup-steps=4,known-from=2",
                "max-warmup-steps=4,known-from=2,max-continuous-cached-steps=3",
                "max-warmup-steps=3,ramp=true",
                "max-warmup-steps=3,ramp=true,max-continuous-cached-steps=3",
            )
            if order or "ramp" not in limits  # which is for forecasts
        ],
        "magnitude": [f"threshold={threshold}" for threshold in (0.06, 0.12, 0.24)],
    }
    return [Ditc(method, each) for method, texts in settings.items() for each in texts]


def stock(model: nn.Module, compiled: bool) -> nn.Module:
    """A model as it is, or under torch.compile."""
    built: Any = torch.compile(model, dynamic=False) if compiled else model
    return cast(nn.Module, built)
