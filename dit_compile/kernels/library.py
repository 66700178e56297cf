"""C++ sources of this package as libraries, compiled on the machine that runs them, and kept."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import subprocess
import tempfile
from importlib import resources
from pathlib import Path

from dit_compile.config import cache_dir
from dit_compile.errors import BackendError

_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-fopenmp")


@functools.cache
def load(name: str, *flags: str) -> ctypes.CDLL:
    """The library of ``<name>.cpp``.

    It is compiled by the compiler that Inductor uses, once on a machine: later processes find it
    in ditc's cache folder.

    Args:
        name: of the source, without its suffix.
        flags: for the compiler, such as the instructions that may be used.

    Raises:
        BackendError: there is no compiler, or it cannot compile the source.
    """
    source = resources.files(__package__).joinpath(f"{name}.cpp").read_text("utf-8")
    words = (*_FLAGS, *flags)
    digest = hashlib.sha256("\n".join((source, *words)).encode()).hexdigest()[:16]
    path = cache_dir() / "kernels" / f"{name}-{digest}.so"
    try:
        if not path.exists():
            _compile(source, words, path)
        return ctypes.CDLL(str(path))
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or error
        raise BackendError(f"cannot compile {name}.cpp: {said}") from None


def _compile(source: str, flags: tuple[str, ...], path: Path) -> None:
    """Compile into another file and move it into place: no process loads half of one."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        words = [get_cpp_compiler(), *flags, "-x", "c++", "-", "-o", str(made)]
        subprocess.run(words, input=source, text=True, capture_output=True, check=True)  # noqa: S603
        os.replace(made, path)
