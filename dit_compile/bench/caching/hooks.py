"""What users would take without ditc: the caching hooks of diffusers, and cache-dit.

Each is applied as its documentation says, and forgets everything before each generation. Classes
that diffusers gives no caching methods are given them, as a user would have to.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn

from dit_compile.bench.caching.contenders import Contender, Subject, stock
from dit_compile.optional import require

#: What the modules that TaylorSeer may forecast are called in most of diffusers' classes.
_BRANCHES = [
    r".*transformer_blocks\.\d+\.(attn\d?|ff|ff_context)",
    r".*transformer_blocks\.\d+\.(proj_mlp|proj_out)",
]


@dataclass(frozen=True)
class Hook(Contender):
    """A caching hook of diffusers.

    Attributes:
        config: makes its configuration.
    """

    group: ClassVar[str] = "diffusers"
    config: Callable[[Any, Subject], Any] = field(repr=False, compare=False)

    def build(self, subject: Subject, compiled: bool) -> nn.Module:
        """The model with the hook, then torch.compile."""
        model = subject.bundled.load()
        mixin = require("diffusers.models.cache_utils", "bench").CacheMixin
        if not isinstance(model, mixin):
            model.__class__ = type(type(model).__name__, (type(model), mixin), {})
        model.enable_cache(self.config(require("diffusers.hooks", "bench"), subject))  # type: ignore[operator]
        return stock(model, compiled)

    def generation(self, model: nn.Module, subject: Subject) -> AbstractContextManager[Any]:
        """A context of its own for the cache."""
        plain: Any = getattr(model, "_orig_mod", model)
        registry = require("diffusers.hooks", "bench").HookRegistry
        registry.check_if_exists_or_initialize(plain).reset_stateful_hooks(recurse=True)
        context: AbstractContextManager[Any] = plain.cache_context("both")
        return context


@dataclass(frozen=True)
class CacheDit(Contender):
    """DBCache of cache-dit, with or without its Taylor forecast.

    Attributes:
        threshold: its ``residual_diff_threshold``.
        order: of the forecast; 0 for none.
        in_a_row: its ``max_continuous_cached_steps``.
    """

    group: ClassVar[str] = "cache-dit"
    threshold: float
    order: int
    in_a_row: int

    def build(self, subject: Subject, compiled: bool) -> nn.Module:
        """The model with the cache, then torch.compile."""
        library = require("cache_dit", "bench")
        for handler in logging.getLogger("CACHE_DIT").handlers:  # all of its loggers share them
            handler.setLevel(logging.ERROR)
        model = subject.bundled.load()
        config = library.DBCacheConfig(
            num_inference_steps=subject.steps,
            Fn_compute_blocks=1,
            Bn_compute_blocks=0,
            max_warmup_steps=4,
            residual_diff_threshold=self.threshold,
            max_continuous_cached_steps=self.in_a_row,
        )
        forecast = library.TaylorSeerCalibratorConfig(taylorseer_order=self.order)
        library.enable_cache(
            model, cache_config=config, calibrator_config=forecast if self.order else None
        )
        return stock(model, compiled)

    def generation(self, model: nn.Module, subject: Subject) -> AbstractContextManager[Any]:
        """A new context."""
        plain = getattr(model, "_orig_mod", model)
        require("cache_dit", "bench").refresh_context(plain, num_inference_steps=subject.steps)
        return nullcontext()


def hook_contenders() -> list[Contender]:
    """What users of diffusers would try."""

    def hook(method: str, make: Callable[..., Any], **chosen: Any) -> Contender:
        setting = ",".join(f"{name}={value}" for name, value in chosen.items())
        return Hook(method, setting, partial(make, **chosen))

    return [
        *(hook("first-block", _first_block, threshold=t) for t in (0.03, 0.05, 0.08, 0.12, 0.2)),
        *(
            hook("taylorseer", _taylorseer, interval=interval, order=order, scope=scope)
            for interval in (2, 3, 4, 5)
            for order in (1, 2)
            for scope in ("attention", "branches", "lite")
        ),
        *(hook("pab", _pyramid, steps=steps) for steps in (2, 3, 4)),
        *(hook("magcache", _magnitude, threshold=t) for t in (0.03, 0.06, 0.12, 0.24)),
        hook("fastercache", _faster),
    ]


def cache_dit_contenders() -> list[Contender]:
    """What users of cache-dit would try."""
    return [
        CacheDit("dbcache", f"threshold={t},order={order},in_a_row={n}", t, order, n)
        for t in (0.08, 0.2, 0.4)
        for order in (0, 1, 2)
        for n in (-1, 3)
    ]


def _first_block(hooks: Any, subject: Subject, threshold: float) -> Any:
    return hooks.FirstBlockCacheConfig(threshold=threshold)


def _taylorseer(hooks: Any, subject: Subject, interval: int, order: int, scope: str) -> Any:
    """TaylorSeer, with factors in float32 as the model is; its default is bfloat16."""
    chosen: dict[str, dict[str, Any]] = {
        "lite": {"use_lite_mode": True},
        "branches": {"cache_identifiers": _BRANCHES},
    }
    return hooks.TaylorSeerCacheConfig(
        cache_interval=interval,
        max_order=order,
        taylor_factors_dtype=torch.float32,
        **chosen.get(scope, {}),
    )


def _pyramid(hooks: Any, subject: Subject, steps: int) -> Any:
    return hooks.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=steps,
        current_timestep_callback=lambda: subject.time,
    )


def _magnitude(hooks: Any, subject: Subject, threshold: float) -> Any:
    return hooks.MagCacheConfig(
        threshold=threshold,
        num_inference_steps=subject.steps,
        mag_ratios=list(subject.ratios),
    )


def _faster(hooks: Any, subject: Subject) -> Any:
    return hooks.FasterCacheConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 681),
        unconditional_batch_skip_range=5,
        unconditional_batch_timestep_skip_range=(-1, 641),
        attention_weight_callback=lambda module: 0.3,
        current_timestep_callback=lambda: subject.time,
        tensor_format="BCHW",
    )
