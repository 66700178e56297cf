"""Compiled kernels: only what this user compiled is loaded, and only while it is whole."""

from __future__ import annotations

import ctypes
import os
import shutil
import stat
import subprocess
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch._inductor.cpp_builder import get_cpp_compiler

from dit_compile.errors import BackendError, DitcWarning
from dit_compile.kernels import library
from tests.others import give_away

SOURCE = 'extern "C" int answer() { return 42; }\n'
HOSTILE = 'extern "C" int answer() { return 13; }\n'


@pytest.fixture(autouse=True)
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of one small kernel, and where its library is kept."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "small.cpp").write_text(SOURCE)
    monkeypatch.setattr(library.resources, "files", lambda package: tmp_path / "source")
    monkeypatch.setenv("DITC_CACHE_DIR", str(tmp_path / "cache"))
    library.load.cache_clear()
    yield tmp_path / "cache" / "kernels"
    library.load.cache_clear()


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was compiled."""
    made: list[Any] = []
    real = subprocess.run

    def run(words: Any, **options: Any) -> Any:
        if "-fopenmp" in words:
            made.append(words)
        return real(words, **options)

    monkeypatch.setattr(subprocess, "run", run)
    return made


def answer() -> int:
    library.load.cache_clear()
    found: int = library.load("small").answer()
    return found


def plant(path: Path) -> None:
    """Put a library with other code in the place of one."""
    words = [get_cpp_compiler(), "-shared", "-fPIC", "-x", "c++", "-", "-o", str(path)]
    subprocess.run(words, input=HOSTILE, text=True, check=True)
    assert ctypes.CDLL(str(path)).answer() == 13


def test_it_is_compiled_once(kernels: Path, compiled: list[Any]) -> None:
    assert answer() == answer() == 42
    assert len(compiled) == 1
    (kept,) = kernels.iterdir()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(kernels.stat().st_mode) == 0o700


def planted(kernels: Path) -> Path:
    """A hostile library with the name that its content should have."""
    answer()
    (kept,) = kernels.iterdir()
    plant(kernels / "other.so")
    stem, _, _ = kept.name.partition(".")
    digest = library._digest((kernels / "other.so").read_bytes())
    kept.unlink()
    return (kernels / "other.so").rename(kernels / f"{stem}.{digest}.so")


@pytest.mark.parametrize("what", ["file", "folder", "root"])
def test_code_of_another_user_is_not_loaded(
    kernels: Path, what: str, monkeypatch: pytest.MonkeyPatch, compiled: list[Any]
) -> None:
    theirs = planted(kernels)
    place = {"file": theirs, "folder": kernels, "root": kernels.parent}[what]
    give_away(monkeypatch, place)
    with pytest.warns(DitcWarning, match=f"{place} belongs to another user"):
        assert answer() == 42
    assert len(compiled) == 2


@pytest.mark.parametrize("what", ["file", "root"])
def test_code_that_others_can_write_to_is_not_loaded(kernels: Path, what: str) -> None:
    theirs = planted(kernels)
    (theirs if what == "file" else kernels.parent).chmod(0o777)
    with pytest.warns(DitcWarning, match=r"can be written to by others \(mode 777\)"):
        assert answer() == 42


def test_a_link_to_code_is_not_followed(kernels: Path, tmp_path: Path) -> None:
    theirs = planted(kernels)
    theirs.rename(tmp_path / "elsewhere.so")
    theirs.symlink_to(tmp_path / "elsewhere.so")
    with pytest.warns(DitcWarning, match="is a link; it is compiled anew"):
        assert answer() == 42
    assert (tmp_path / "elsewhere.so").exists()


def test_a_folder_of_another_user_is_left_alone(
    kernels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted(kernels)
    before = {path: path.read_bytes() for path in kernels.iterdir()}
    give_away(monkeypatch, kernels)
    with pytest.warns(DitcWarning, match="set DITC_CACHE_DIR to a folder of your own"):
        assert answer() == 42
    assert {path: path.read_bytes() for path in kernels.iterdir()} == before


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "harm", [flip, lambda path: path.write_bytes(b""), lambda path: os.truncate(path, 100)]
)
def test_a_damaged_library_is_compiled_anew(kernels: Path, harm: Any, compiled: list[Any]) -> None:
    answer()
    (kept,) = kernels.iterdir()
    good = kept.read_bytes()
    shutil.copy(kept, kernels / "copy")  # what is loaded must not change under this process
    (kernels / "copy").replace(kept)
    kept.chmod(0o600)
    harm(kept)
    with pytest.warns(DitcWarning, match="is damaged; it is compiled anew"):
        assert answer() == 42
    assert len(compiled) == 2
    assert [path.read_bytes() for path in kernels.iterdir()] == [good]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert answer() == 42


def test_a_cache_that_cannot_be_written_to(
    kernels: Path, monkeypatch: pytest.MonkeyPatch, compiled: list[Any]
) -> None:
    kernels.parent.mkdir(parents=True)
    kernels.write_text("in the way")
    with pytest.warns(DitcWarning, match="kernels are compiled for this process alone"):
        assert answer() == 42
    assert kernels.read_text() == "in the way"


def test_a_prepared_cache_for_reading(
    kernels: Path, monkeypatch: pytest.MonkeyPatch, compiled: list[Any]
) -> None:
    answer()

    def refuse(*args: Any, **options: Any) -> Any:
        raise OSError("read-only file system")

    for name in ("chmod", "replace", "open"):
        monkeypatch.setattr(os, name, refuse)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert answer() == 42
    assert len(compiled) == 1


def test_compiling_at_the_same_time(kernels: Path) -> None:
    found: list[int] = []

    def load() -> None:
        found.append(library.load.__wrapped__("small").answer())

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [42] * 3
    assert len(list(kernels.iterdir())) == 1


def test_a_source_that_does_not_compile(kernels: Path, tmp_path: Path) -> None:
    (tmp_path / "source" / "small.cpp").write_text("no C++")
    with pytest.raises(BackendError, match=r"cannot compile small\.cpp: .*error"):
        library.load("small")
    assert list(kernels.iterdir()) == []
