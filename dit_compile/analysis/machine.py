"""Which machine, set up how, a measurement holds for, and where it is kept."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

from dit_compile.cache_folder import FILE_MODE, cache_folder, distrust, warn_once
from dit_compile.config import cache_dir
from dit_compile.errors import AnalysisError, CacheError
from dit_compile.files import write_atomically
from dit_compile.json_files import JsonError, read_json


def checked_device(device: str | torch.device) -> torch.device:
    """``device``, if it is one that can be measured.

    Raises:
        AnalysisError: it is neither a CPU nor a CUDA device, or torch does not see it.
    """
    try:
        found = torch.device(device)
    except RuntimeError:
        found = torch.device("meta")
    if found.type not in ("cpu", "cuda"):
        raise AnalysisError(f"measurements are made on cpu and cuda devices, not on {device}")
    if found.type == "cuda" and not torch.cuda.is_available():
        raise AnalysisError("this torch sees no CUDA device; measure with --device cpu")
    return found


def describe_setup(device: str | torch.device) -> dict[str, str]:
    """All that a measurement on ``device`` depends on, by name."""
    device = checked_device(device)
    setup = {
        "torch": torch.__version__,
        "float32_precision": torch.get_float32_matmul_precision(),
    }
    if device.type == "cuda":
        setup["processor"] = torch.cuda.get_device_name(device)
        setup["cuda"] = str(torch.version.cuda)
    else:
        setup["processor"] = _processor()
        setup["instructions"] = _instructions()
        setup["cores"] = str(_usable_cores())
        setup["threads"] = str(torch.get_num_threads())
    return setup


def _instructions() -> str:
    """The widest vectors, and what multiplies half-precision matrices."""
    known = {
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported,
        "amx": torch.cpu._is_amx_tile_supported,
    }
    found = (name for name, supported in known.items() if supported())
    return " ".join((torch.backends.cpu.get_cpu_capability(), *found))


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory() -> int:
    """The machine's memory in bytes; 16 GiB where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 16 << 30


@functools.cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def cache_file(kind: str, device: str | torch.device) -> Path:
    """Where measurements of one kind on ``device``, as torch is set up now, are kept."""
    device = checked_device(device)
    setup = json.dumps(describe_setup(device), sort_keys=True)
    digest = hashlib.sha256(setup.encode()).hexdigest()[:16]
    return cache_dir() / kind / f"{device.type}-{digest}.json"


def read_kept(path: Path) -> Any:
    """What a file of measurements holds; ``None`` if there is none, or it cannot be read.

    Numbers that someone else could have written are not taken, and a warning says so.
    """
    why = distrust(path)
    if why:
        warn_once(f"{why}; what was measured there is not believed")
        return None
    try:
        return read_json(path)
    except JsonError:
        return None


def keep(path: Path, measured: Any) -> None:
    """Write a file of measurements; where it cannot be, other processes measure for themselves."""
    with contextlib.suppress(OSError, CacheError):
        folder = cache_folder(path.parent.name)
        text = json.dumps(measured, indent=2, allow_nan=False)
        write_atomically(folder / path.name, text, mode=FILE_MODE)
