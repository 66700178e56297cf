"""Numbers measured once on a machine, and kept.

Processes that measured for themselves would now and then decide differently, compile differently,
and find nothing in Inductor's cache.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

from dit_compile.analysis.machine import cache_file, keep, read_kept
from dit_compile.errors import BackendError
from dit_compile.json_files import JsonError, read_as

#: Computes something one way, and another way.
Ways = tuple[Callable[[], object], Callable[[], object]]

_SAMPLES = 7

_lock = threading.Lock()
_known: dict[Path, dict[str, float]] = {}


def speedup_of(name: str, ways: Callable[[], Ways]) -> float:
    """How many times as fast the second of two ways to compute something on the CPU is.

    Args:
        name: tells all that the ratio depends on but the machine and how torch is set up.
        ways: makes the two; called only if the ratio is not known yet.

    Returns:
        The ratio of median times, taken in turn; 0 if this machine cannot go the second way.
    """
    path = cache_file("speedups", "cpu")
    with _lock:
        if path not in _known:
            _known[path] = _read(path)
        known = _known[path]
        if name not in known:
            known[name] = _speedup(ways)
            keep(path, {**_read(path), **known})
        return known[name]


def _read(path: Path) -> dict[str, float]:
    try:
        ratios: dict[str, float] = read_as(dict[str, float], read_kept(path), "the file")
    except JsonError:
        return {}
    return {name: ratio for name, ratio in ratios.items() if ratio >= 0}


def _speedup(ways: Callable[[], Ways]) -> float:
    samples: tuple[list[float], list[float]] = [], []
    with torch.no_grad():
        try:
            before, after = ways()
            before(), after()
        except (AttributeError, RuntimeError, BackendError):  # not in this build, or not here
            return 0.0
        for _ in range(_SAMPLES):
            for call, times in zip((before, after), samples, strict=True):
                start = time.perf_counter()
                call()
                times.append(time.perf_counter() - start)
    return round(statistics.median(samples[0]) / statistics.median(samples[1]), 3)
