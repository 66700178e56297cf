"""Weights laid out once: kept whole or not at all, and only under the hashes they have."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import dit_compile as ditc
from dit_compile.bundle import prepacked
from dit_compile.errors import BackendError, BundleError, DitcWarning, OptionError
from tests.others import give_away
from tests.runtime.loops import TIMES, Loop, Toy, alone, assert_same, every, label


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's layouts are kept."""
    monkeypatch.setenv("DITC_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "prepacked"


def load_once(path: Path) -> Any:
    return ditc.load(path, prepack="once", intra_op_num_threads=1)


def sampled(loaded: Any) -> list[Any]:
    with ditc.session(loaded, timesteps=TIMES):
        return [loaded(**call)[0] for call in Loop(label(2))]


def assert_equal(have: list[Any], want: list[Any]) -> None:
    assert all(map(np.array_equal, have, want))


@pytest.mark.parametrize("kind", ["merged", "split"])
def test_what_was_laid_out_once_is_mapped_from_then_on(
    request: pytest.FixtureRequest,
    kind: str,
    toy: Toy,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = request.getfixturevalue(kind)
    assert_same(sampled(load_once(path)), alone(toy, Loop(label(2)), every(2, 8)))
    (kept,) = cache.iterdir()
    files = {graph.file for graph in load_once(path).manifest.graphs.values()}
    assert files <= {item.name for item in kept.iterdir()}

    monkeypatch.setattr(prepacked, "_lay_out", None)
    before = {item: item.stat().st_mtime_ns for item in kept.iterdir()}
    again = load_once(path)
    expected = sampled(ditc.load(path, intra_op_num_threads=1))
    assert_equal(sampled(again), expected)
    assert before == {item: item.stat().st_mtime_ns for item in kept.iterdir()}
    full = again.manifest.graphs["full"].file
    assert f"{kept}/{full}.weights" in Path("/proc/self/maps").read_text()


def test_damaged_weights_are_not_kept(merged: Path, tmp_path: Path, cache: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(merged, damaged)
    weights = damaged / "weights.bin"
    content = bytearray(weights.read_bytes())
    content[0] ^= 1
    weights.write_bytes(content)
    with pytest.raises(BundleError, match="is not the file that was exported"):
        ditc.load(damaged, prepack="once", verify=False)
    assert list(cache.iterdir()) == []
    # Once they are kept, nothing reads the bundle's own.
    want = sampled(load_once(merged))
    assert_equal(sampled(load_once(damaged)), want)
    weights.write_bytes(content[:-1])
    with pytest.raises(BundleError, match=r"has \d+ bytes"):
        load_once(damaged)


def test_a_failure_leaves_nothing(
    merged: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = prepacked.open_session

    def fails_at_last(path: Path, options: Any) -> Any:
        if path.name == "step.onnx":
            raise BackendError("no space left on device")
        return real(path, options)

    monkeypatch.setattr(prepacked, "open_session", fails_at_last)
    with pytest.raises(BackendError, match="no space left"):
        load_once(merged)
    assert list(cache.iterdir()) == []
    monkeypatch.undo()


def test_a_folder_that_cannot_be_written(
    merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DITC_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(BackendError, match="weights cannot be laid out in"):
        load_once(merged)


def test_without_locks_another_process_may_be_faster(
    merged: Path, toy: Toy, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, raced = prepacked.open_session, []
    monkeypatch.setattr(prepacked, "fcntl", None)

    def racing(path: Path, options: Any) -> Any:
        if not raced:
            raced.append(path)
            load_once(merged)
        return real(path, options)

    monkeypatch.setattr(prepacked, "open_session", racing)
    assert_same(sampled(load_once(merged)), alone(toy, Loop(label(2)), every(2, 8)))
    assert raced
    assert len(list(cache.iterdir())) == 1


def test_each_runtime_and_processor_has_its_own(
    merged: Path, split: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (ditc.load(path, intra_op_num_threads=1).manifest for path in (merged, split))
    places = {prepacked.place(one), prepacked.place(one), prepacked.place(other)}
    assert len(places) == 2
    with monkeypatch.context() as patch:
        patch.setattr(onnxruntime, "__version__", "0.1")
        places.add(prepacked.place(one))
    monkeypatch.setattr(prepacked, "_processor", lambda: "another")
    places.add(prepacked.place(one))
    assert len(places) == 4


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"providers": ["CUDAExecutionProvider"]}, "the provider CUDAExecutionProvider"),
        ({"session_options": onnxruntime.SessionOptions()}, "session_options may ask for"),
    ],
)
def test_what_cannot_be_laid_out_once(merged: Path, options: dict[str, Any], why: str) -> None:
    with pytest.raises(OptionError, match=f"prepack='once' lays .* but {why}"):
        ditc.load(merged, prepack="once", **options)


def test_anything_else_is_no_way(merged: Path) -> None:
    with pytest.raises(OptionError, match="prepack takes True, False or 'once', not 'twice'"):
        ditc.load(merged, prepack="twice")  # type: ignore[arg-type]


def test_other_formats_cannot(pt2: Path) -> None:
    with pytest.raises(OptionError, match="but this bundle is of the format pt2"):
        ditc.load(pt2, prepack="once", trust=True)


def damage(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        old = file.read(64)
        file.seek(path.stat().st_size // 2)
        file.write(bytes(byte ^ 0x55 for byte in old))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 2)


def link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def open_to_all(path: Path) -> None:
    path.chmod(0o666)


class TestHealing:
    """Whatever became of a layout, loads give the right numbers, and it is whole afterwards."""

    @pytest.mark.parametrize("harm", [damage, empty, cut, Path.unlink, link, open_to_all])
    @pytest.mark.parametrize("name", ["step.onnx", "step.onnx.weights", "files.json"])
    def test_a_file(
        self, merged: Path, cache: Path, harm: Callable[[Path], object], name: str
    ) -> None:
        want = sampled(load_once(merged))
        (kept,) = cache.iterdir()
        harm(kept / name)
        with pytest.warns(DitcWarning, match="are laid out anew: ") as warned:
            loaded = load_once(merged)
        assert len(warned) == 1
        assert_equal(sampled(loaded), want)
        self.check_whole(merged, cache)

    def test_an_emptied_folder(self, merged: Path, cache: Path) -> None:
        want = sampled(load_once(merged))
        (kept,) = cache.iterdir()
        shutil.rmtree(kept)
        kept.mkdir()
        with pytest.warns(DitcWarning, match="are laid out anew: it is not whole"):
            assert_equal(sampled(load_once(merged)), want)
        self.check_whole(merged, cache)

    def test_times_that_were_put_back(self, merged: Path, cache: Path) -> None:
        want = sampled(load_once(merged))
        (kept,) = cache.iterdir()
        before = (kept / "step.onnx.weights").stat()
        damage(kept / "step.onnx.weights")
        os.utime(kept / "step.onnx.weights", ns=(before.st_atime_ns, before.st_mtime_ns))
        with pytest.warns(DitcWarning, match=r"step\.onnx\.weights was changed"):
            assert_equal(sampled(load_once(merged)), want)

    def test_somebody_elses(
        self, merged: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        want = sampled(load_once(merged))
        (kept,) = cache.iterdir()
        with monkeypatch.context() as patch:
            give_away(patch, kept / "step.onnx.weights")
            with pytest.warns(DitcWarning, match="belongs to another user"):
                assert_equal(sampled(load_once(merged)), want)
        self.check_whole(merged, cache)

    def check_whole(self, merged: Path, cache: Path) -> None:
        (kept,) = cache.iterdir()
        assert stat.S_IMODE(kept.stat().st_mode) == 0o700
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            load_once(merged)


def test_a_umask_that_lets_others_write(merged: Path, cache: Path) -> None:
    before = os.umask(0)
    try:
        load_once(merged)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            load_once(merged)
    finally:
        os.umask(before)
    (kept,) = cache.iterdir()
    assert {stat.S_IMODE(item.stat().st_mode) for item in kept.iterdir()} == {0o600}


def test_files_are_read_once(
    merged: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_once(merged)
    read = []
    real = prepacked.file_entry
    monkeypatch.setattr(prepacked, "file_entry", lambda path: read.append(path) or real(path))
    load_once(merged)
    assert not read
    (kept,) = cache.iterdir()
    shutil.copytree(kept, tmp_path / "copy")
    shutil.rmtree(kept)
    shutil.copytree(tmp_path / "copy", kept)
    load_once(merged)  # copies are other files, with the same content
    assert {path.name for path in read} == set(json.loads((kept / "files.json").read_text()))
    read.clear()
    load_once(merged)
    assert not read


class TestFoldersForReading:
    @pytest.fixture(autouse=True)
    def _nothing_can_be_written(self, merged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        load_once(merged)

        def refuse(*args: Any, **options: Any) -> Any:
            raise OSError(errno.EROFS, "Read-only file system")

        for module, name in ((tempfile, "mkdtemp"), (os, "chmod"), (os, "replace"), (os, "rename")):
            monkeypatch.setattr(module, name, refuse)

    def test_what_is_whole_is_used(self, merged: Path, cache: Path) -> None:
        (kept,) = cache.iterdir()
        (kept / "stamps.json").unlink()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert len(sampled(load_once(merged))) == len(TIMES)

    def test_what_is_damaged_is_an_error(self, merged: Path, cache: Path) -> None:
        (kept,) = cache.iterdir()
        damage(kept / "step.onnx.weights")
        with (
            pytest.warns(DitcWarning, match="are laid out anew"),
            pytest.raises(BackendError, match="Read-only file system; make room, or set DITC_CACH"),
        ):
            load_once(merged)


def test_a_cache_of_somebody_else(
    merged: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_once(merged)
    give_away(monkeypatch, cache)
    with pytest.raises(BackendError, match=r"belongs to another user .* set DITC_CACHE_DIR"):
        load_once(merged)


_LOAD = """
import sys
import dit_compile as ditc
from dit_compile.bundle import prepacked
{before}
ditc.load(sys.argv[1], prepack="once", intra_op_num_threads=1)
print("done")
"""


def process(merged: Path, before: str = "") -> subprocess.Popen[str]:
    """Another process that loads the bundle."""
    return subprocess.Popen(
        [sys.executable, "-c", _LOAD.format(before=before), str(merged)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_process_that_is_killed(merged: Path, cache: Path, toy: Toy) -> None:
    stop = "prepacked._record = lambda work: (print('laid out', flush=True), sys.stdin.read())"
    killed = subprocess.Popen(
        [sys.executable, "-c", _LOAD.format(before=stop), str(merged)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert killed.stdout is not None
    assert killed.stdout.readline() == b"laid out\n"
    killed.kill()
    killed.communicate()
    assert [item.name[0] for item in cache.iterdir()] == ["."]
    assert_same(sampled(load_once(merged)), alone(toy, Loop(label(2)), every(2, 8)))
    (kept,) = cache.iterdir()  # what it left is gone
    assert kept.name[0] != "."


@pytest.mark.parametrize("harmed", [False, True])
def test_two_processes_at_once(merged: Path, cache: Path, harmed: bool) -> None:
    if harmed:
        load_once(merged)
        (kept,) = cache.iterdir()
        damage(kept / "step.onnx.weights")
    slow = (
        "real = prepacked._record; prepacked._record ="
        " lambda work: (print('lay', flush=True), __import__('time').sleep(0.5), real(work))"
    )
    said = [each.communicate() for each in [process(merged, slow), process(merged, slow)]]
    assert [text.rpartition("done")[1] for text, _ in said] == ["done", "done"], said
    assert sum(text.count("lay") for text, _ in said) == 1  # one did, the other waited
    assert sum(text.count("laid out anew") for _, text in said) == harmed
    (kept,) = cache.iterdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_once(merged)


def test_a_full_disk(merged: Path, cache: Path) -> None:
    """No file may grow beyond what all but the last kilobyte of the weights take."""
    load_once(merged)
    (kept,) = cache.iterdir()
    limit = (kept / "step.onnx.weights").stat().st_size - 1024
    shutil.rmtree(kept)
    full = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    )
    _, said = process(merged, full).communicate()
    assert "BackendError" in said
    assert list(cache.iterdir()) == []
    load_once(merged)
