"""``ditc.calibrate``: run the user's own sampling a few times, and decide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

import dit_compile
from dit_compile.calibration.budget import Budget, Scale, search
from dit_compile.calibration.plan import Plan, Trial, Weight
from dit_compile.calibration.runs import Runs, Sample
from dit_compile.disabling import require_enabled
from dit_compile.errors import OptionError
from dit_compile.ir.origin import normalize_path
from dit_compile.pipeline.pipeline import Pipeline
from dit_compile.report.terminal import PlainProgress


def calibrate(
    sample: Sample,
    model: nn.Module,
    *,
    passes: str | None = None,
    samples: int = 8,
    seed: int = 0,
    min_psnr: float | None = None,
    max_rel_l2: float | None = None,
    min_speedup: float | None = None,
    value_range: tuple[float, float] = (-1.0, 1.0),
    options: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Plan:
    """Find what a pipeline must know of a model, by running the user's own sampling.

    ``model`` is compiled in place while ``sample`` runs, so any loop and any pipeline that calls it
    will do, and it is put back afterwards::

        plan = ditc.calibrate(draw, pipe.transformer,
                              passes="exact,insert-block-cache{method=smooth,alpha=0.15}")
        fast = torch.compile(pipe.transformer, backend="ditc", options={"plan": plan})

    Args:
        sample: runs one generation with noise from the seed that it gets, and returns the samples
            as a tensor.
        model: the module that ``sample`` calls at each step.
        passes: the pipeline to calibrate; with a budget also ``None``, to choose among methods.
        samples: generations to run for measurements and for each trial.
        seed: the first of their seeds; report results on others.
        min_psnr: a budget: dB against the uncached samples, at least.
        max_rel_l2: a budget: relative L2 error against the uncached samples, at most.
        min_speedup: a budget: ratio of operations to the uncached sampling, at least.
        value_range: what the samples go from and to, for PSNR: ``(0, 1)`` for the images of
            diffusers' ``output_type="pt"``.
        options: further options of the backend, such as ``{"target": "eager"}``.
        progress: show a progress bar.

    Returns:
        The Plan. With a budget, ``curve`` has what was tried.

    Raises:
        OptionError: no pipeline and no budget are given, ``samples`` is less than 1,
            ``value_range`` is no range, or ditc is disabled.
        PlanError: ``sample`` does not call ``model``, or nothing meets the budget.
    """
    require_enabled("calibration")
    if samples < 1:
        raise OptionError(f"samples must be at least 1, not {samples}")
    budget, scale = Budget(min_psnr, max_rel_l2, min_speedup), Scale(*value_range)
    if passes is None and not budget:
        raise OptionError("give passes= to calibrate, or a budget such as min_psnr=35 to choose by")
    asked = Pipeline.parse(passes) if passes is not None else None
    plain = getattr(model, "_orig_mod", model)
    curve: list[Trial] = []
    with PlainProgress(disable=not progress, transient=True) as shown:
        run = Runs(sample, plain, range(seed, seed + samples), dict(options or {}), shown)
        if budget:
            chosen, curve = search(run, budget, asked, scale)
        else:
            assert asked is not None
            chosen = run.fit(asked)
    tensors = dict(plain.named_parameters()) | dict(plain.named_buffers())
    return Plan(
        passes=str(chosen),
        steps=run.steps,
        weights={normalize_path(path): Weight.of(tensor) for path, tensor in tensors.items()},
        curve=curve,
        depths=run.depths,
        measured=run.measured,
        made_with={"ditc": dit_compile.__version__, "torch": torch.__version__},
    )
