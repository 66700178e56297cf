"""What this machine can do, which setup a measurement holds for, and where it is kept.

All that the package asks of a processor is asked here. Processors are sorted into classes, each of
which can do what those before it can; ``DITC_CPU`` takes one for a lesser one than it is. What
torch and oneDNN may use is bounded by variables of their own, ``ATEN_CPU_CAPABILITY`` and
``ONEDNN_MAX_CPU_ISA``, which they read once, when torch is loaded: those bound the class as well.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_compile.cache_folder import FILE_MODE, cache_folder, distrust, warn_once
from dit_compile.config import cache_dir, cpu_asked, onednn_limit
from dit_compile.errors import AnalysisError, CacheError, OptionError, suggest
from dit_compile.files import write_atomically
from dit_compile.json_files import JsonError, read_json

if TYPE_CHECKING:  # bundles run without torch, and ask which processor they are on
    import torch

#: Below AVX2, and processors that are no x86: torch decides alone.
BASELINE = "baseline"
#: AVX2 alone; AVX-512; its integer products; its bfloat16 products; tiles of AMX.
CLASSES = ("avx2", "avx512", "vnni", "bf16", "amx")
_ORDER = (BASELINE, *CLASSES)

#: The class up to which oneDNN goes at each value of its variable; the others bound nothing here.
_ONEDNN_LIMITS = {
    "SSE41": BASELINE,
    "AVX": BASELINE,
    "AVX2": "avx2",
    "AVX2_VNNI": "avx2",
    "AVX2_VNNI_2": "avx2",
    "AVX512_CORE": "avx512",
    "AVX512_CORE_VNNI": "vnni",
    "AVX512_CORE_BF16": "bf16",
    "AVX512_CORE_FP16": "bf16",
    "AVX10_1_512": "bf16",
}
#: Vector instructions in Inductor's words and in torch's.
_INDUCTOR_WORDS = {
    "AVX2": "avx2",
    "AVX512": "avx512_f",
    "AVX512_VNNI": "avx512_vnni",
    "AMX_TILE": "amx_tile",
}


# --- what the processor can do ---------------------------------------------------------------


def cpu_class() -> str:
    """The class of this processor, or the lesser one that ``DITC_CPU`` asks for.

    Returns:
        One of ``CLASSES``, or ``BASELINE``.

    Raises:
        OptionError: ``DITC_CPU`` names no class, or one above this processor's.
    """
    asked, has = cpu_asked(), _class_here()
    if asked is None:
        return has
    if asked not in CLASSES:
        known = ", ".join(CLASSES)
        raise OptionError(
            f"DITC_CPU={asked} names no class of processors{suggest(asked, CLASSES)}; "
            f"they are {known}"
        )
    if _ORDER.index(asked) > _ORDER.index(has):
        raise OptionError(
            f"DITC_CPU={asked} asks for more than this processor has: it is of the class {has}; "
            "ask for that or less, or leave DITC_CPU out"
        )
    return asked


def has_avx512_bf16() -> bool:
    """Whether vectors of AVX-512 may be multiplied in pairs of bfloat16."""
    return _reaches("bf16")


def onednn_multiplies(dtype: torch.dtype) -> bool:
    """Whether oneDNN lays out and multiplies matrices of this type on the CPU.

    torch answers for this processor; as a lesser one it has what all of that class have.
    """
    import torch

    if dtype == torch.float32:
        return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    if dtype == torch.bfloat16:
        return _mkldnn_says("bf16") and (_is_itself() or _reaches("avx512"))
    return dtype == torch.float16 and _mkldnn_says("fp16") and _is_itself()


def lacks(word: str) -> bool:
    """Whether this processor is known to have no instructions of that name.

    Code that uses them stops the process, so this asks for what is really there, whatever the
    class.

    Args:
        word: as Inductor names them in the packages that it compiles.
    """
    import torch

    # torch 2.11 does not answer; then the processor does, in its own way.
    has = getattr(torch.cpu, "get_capabilities", dict[str, bool])()
    return has.get(_INDUCTOR_WORDS.get(word, ""), True) is False


def vectors() -> str:
    """The widest vectors that torch's own code uses, in its words, such as ``AVX2``."""
    import torch

    return str(torch.backends.cpu.get_cpu_capability())


def _reaches(least: str) -> bool:
    return _ORDER.index(cpu_class()) >= _ORDER.index(least)


def _is_itself() -> bool:
    return cpu_class() == _class_here()


def _class_here() -> str:
    """The highest class whose instructions, and those of all before it, torch and oneDNN use."""
    import torch

    tests: tuple[Callable[[], bool], ...] = (
        torch.cpu._is_avx2_supported,
        torch.cpu._is_avx512_supported,
        torch.cpu._is_vnni_supported,
        torch.cpu._is_avx512_bf16_supported,
        torch.cpu._is_amx_tile_supported,
    )
    count = next((at for at, test in enumerate(tests) if not test()), len(tests))
    bounds = (_ORDER[count], _torch_limit(), _ONEDNN_LIMITS.get(onednn_limit(), CLASSES[-1]))
    return min(bounds, key=_ORDER.index)


def _torch_limit() -> str:
    return {"AVX512": CLASSES[-1], "AVX2": "avx2"}.get(vectors(), BASELINE)


def _mkldnn_says(name: str) -> bool:
    """What torch answers about a type; False in builds without oneDNN."""
    import torch

    asked = getattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported", bool)
    return bool(asked())


# --- what a measurement holds for ------------------------------------------------------------


def checked_device(device: str | torch.device) -> torch.device:
    """``device``, if it is one that can be measured.

    Raises:
        AnalysisError: it is neither a CPU nor a CUDA device, or torch does not see it.
    """
    import torch

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
    import torch

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
        setup["class"] = cpu_class()
        setup["instructions"] = _instructions()
        setup["cores"] = str(_usable_cores())
        setup["threads"] = str(torch.get_num_threads())
    return setup


def _instructions() -> str:
    """The widest vectors, what multiplies half precision, and how far oneDNN may go."""
    import torch

    known = {
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported,
        "amx": torch.cpu._is_amx_tile_supported,
    }
    found = [name for name, supported in known.items() if supported()]
    limit = [f"oneDNN<={onednn_limit()}"] if onednn_limit() else []
    return " ".join((vectors(), *found, *limit))


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


def _processor() -> str:
    """The processor's name."""
    named = (line.partition(":")[2].strip() for line in processor_lines("model name"))
    return next(named, platform.processor() or platform.machine())


@functools.cache
def processor_lines(*starts: str) -> tuple[str, ...]:
    """What the system says of its processors, each line once.

    Args:
        starts: how the lines begin that are wanted.

    Returns:
        Nothing where the system does not say.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return ()
    return tuple(dict.fromkeys(line for line in lines if line.startswith(starts)))


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
