"""What is known of a model's calls outside any ``with``, and how to forget it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dit_compile.runtime.session import Tracked, count, followed, identified

if TYPE_CHECKING:
    import torch


def summary(model: torch.nn.Module | Tracked) -> dict[str, Any]:
    """What became of a model's latest calls: ``pipe(...); print(ditc.summary(pipe.transformer))``.

    Args:
        model: the module, compiled or not, or a loaded bundle.

    Returns:
        See :meth:`Session.summary`; all zero if nothing of the model is cached or computed ahead.
        Of the Sessions that are still around, the one that ran the model last counts.

    Raises:
        SessionError: ``model`` is no model.
    """
    *_, latest = [[], *followed(model)]
    return count(latest)


def reset(model: torch.nn.Module | Tracked) -> None:
    """Forget a model's state, and what was computed ahead of its steps or derived from its weights.

    Its next call begins a generation, wherever the last one stood. Needed after writes to weights
    that leave no trace, as through ``.data``, if they must count before the next generation begins;
    and to have the memory back while the model lives on.

    Args:
        model: the module, compiled or not, or a loaded bundle.

    Raises:
        SessionError: ``model`` is no model.
    """
    for trackers in followed(model):
        for tracker in trackers:
            with tracker.lock:
                tracker.reset()
    if hasattr(model, "parameters"):
        from dit_compile.runtime.weights import invalidate  # here: bundles run without torch

        invalidate(identified(model))
