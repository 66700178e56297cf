"""C++ sources of this package as libraries, compiled on the machine that runs them, and kept."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import subprocess
import tempfile
from importlib import resources
from pathlib import Path

from dit_compile.cache_folder import FILE_MODE, cache_folder, distrust, warn_once
from dit_compile.errors import BackendError, CacheError
from dit_compile.files import write_atomically

_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-fopenmp")
_DIGITS = 16


@functools.cache
def load(name: str, *flags: str) -> ctypes.CDLL:
    """The library of ``<name>.cpp``.

    It is compiled by the compiler that Inductor uses, once on a machine: later processes find it
    in ditc's cache folder. A file there is loaded if its content has the hash that its name says,
    and nobody but this user or root could have written it; else it is compiled anew. Where the
    cache folder itself is not to be trusted, or cannot be written to, each process compiles its
    own, and a warning says so.

    Args:
        name: of the source, without its suffix.
        flags: for the compiler, such as the instructions that may be used.

    Raises:
        BackendError: there is no compiler, or it cannot compile the source.
    """
    source = resources.files(__package__).joinpath(f"{name}.cpp").read_text("utf-8")
    words = (*_FLAGS, *flags)
    stem = f"{name}-{_digest(chr(10).join((source, *words)).encode())}"
    try:
        kept = _kept(stem)
        if kept is not None:
            return ctypes.CDLL(str(kept))
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as own:
            made = _compile(source, words, Path(own) / f"{stem}.so")
            return ctypes.CDLL(str(_keep(made, stem)))
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or error
        raise BackendError(f"cannot compile {name}.cpp: {said}") from None


def _kept(stem: str) -> Path | None:
    """The library that was kept, if there is one that is whole and to be trusted."""
    try:
        folder = cache_folder("kernels")
        for path in sorted(folder.glob(f"{stem}.*.so")):
            why = distrust(path)
            if not why and path.suffixes[-2] == f".{_digest(path.read_bytes())}":
                return path
            why = why or f"{path} is damaged"
            warn_once(f"{why}; it is compiled anew")
            path.unlink()
    except (OSError, CacheError):
        return None  # whoever compiles says what is wrong, once
    return None


def _keep(made: Path, stem: str) -> Path:
    """Move a library into the cache folder; where that cannot be, it stays where it is.

    It is moved whole, and its name has the hash of what is in it.
    """
    try:
        path = cache_folder("kernels") / f"{stem}.{_digest(made.read_bytes())}.so"
        write_atomically(path, made.read_bytes(), mode=FILE_MODE)
    except (OSError, CacheError) as error:
        warn_once(f"kernels are compiled for this process alone: {error}")
        return made
    return path


def _compile(source: str, flags: tuple[str, ...], made: Path) -> Path:
    from torch._inductor.cpp_builder import get_cpp_compiler

    words = [get_cpp_compiler(), *flags, "-x", "c++", "-", "-o", str(made)]
    subprocess.run(words, input=source, text=True, capture_output=True, check=True)  # noqa: S603
    return made


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_DIGITS]
