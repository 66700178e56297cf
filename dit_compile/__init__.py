"""ditc: a compiler for diffusion transformers.

Importing this package imports nothing else: torch is loaded when something first needs it.

    fast = torch.compile(model, backend="ditc")

``explain`` shows what each pass does to a model, ``session`` states a sampling loop, ``calibrate``
runs one to find what an approximation must know, ``attribute`` to find what each pass costs,
``export`` writes the whole sampling program to files and ``load`` runs them without torch,
``summary`` counts what became of a model's calls, ``reset`` forgets its state and what was computed
ahead, and ``disabled`` runs models without ditc for a while.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dit_compile.bundle.loaded import load
    from dit_compile.calibration.attribution import Attribution, attribute
    from dit_compile.calibration.calibrate import calibrate
    from dit_compile.calibration.plan import Plan
    from dit_compile.disabling import disabled
    from dit_compile.explanation import Explanation, explain
    from dit_compile.exporting import export
    from dit_compile.pipeline.pipeline import Pipeline
    from dit_compile.runtime.lanes import lane
    from dit_compile.runtime.models import reset, summary
    from dit_compile.runtime.session import Session, session

__version__ = "0.1.0"

_HOMES = {
    "Attribution": "dit_compile.calibration.attribution",
    "Explanation": "dit_compile.explanation",
    "Plan": "dit_compile.calibration.plan",
    "Pipeline": "dit_compile.pipeline.pipeline",
    "Session": "dit_compile.runtime.session",
    "attribute": "dit_compile.calibration.attribution",
    "calibrate": "dit_compile.calibration.calibrate",
    "disabled": "dit_compile.disabling",
    "explain": "dit_compile.explanation",
    "export": "dit_compile.exporting",
    "lane": "dit_compile.runtime.lanes",
    "load": "dit_compile.bundle.loaded",
    "reset": "dit_compile.runtime.models",
    "session": "dit_compile.runtime.session",
    "summary": "dit_compile.runtime.models",
}

__all__ = [
    "Attribution",
    "Explanation",
    "Pipeline",
    "Plan",
    "Session",
    "attribute",
    "calibrate",
    "disabled",
    "explain",
    "export",
    "lane",
    "load",
    "reset",
    "session",
    "summary",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
