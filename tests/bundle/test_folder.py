"""Damaged and hostile bundles are refused; an interrupted export leaves nothing."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

import dit_compile as ditc
from dit_compile.bundle.folder import (
    checked_files,
    file_entry,
    new_folder,
    open_bundle,
    read_manifest,
)
from dit_compile.errors import BackendError, BundleError
from tests.killed import deaths


def edit(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest, as one who made the bundle could."""
    data = json.loads((bundle / "manifest.json").read_text())
    change(data)
    (bundle / "manifest.json").write_text(json.dumps(data))


def rehash(bundle: Path) -> None:
    """Let the manifest agree with the files, as one who made the bundle could."""

    def change(data: dict[str, Any]) -> None:
        for name in data["files"]:
            data["files"][name] = vars(file_entry(bundle / name))

    edit(bundle, change)


def refused(bundle: Path, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        ditc.load(bundle)


class TestDamage:
    def test_an_intact_copy_is_read(self, bundle: Path) -> None:
        assert open_bundle(bundle).model == "Toy"

    @pytest.mark.parametrize("name", ["full.onnx", "weights.bin"])
    def test_a_flipped_bit(self, bundle: Path, name: str) -> None:
        data = bytearray((bundle / name).read_bytes())
        data[len(data) // 2] ^= 1
        (bundle / name).write_bytes(data)
        refused(bundle, f"{name} is not the file that was exported")

    @pytest.mark.parametrize("name", ["reuse.onnx", "weights.bin"])
    def test_truncated(self, bundle: Path, name: str) -> None:
        os.truncate(bundle / name, 1000)
        refused(bundle, f"{name} has 1000 bytes, not")

    def test_swapped(self, bundle: Path) -> None:
        (bundle / "full.onnx").rename(bundle / "other")
        (bundle / "reuse.onnx").rename(bundle / "full.onnx")
        (bundle / "other").rename(bundle / "reuse.onnx")
        refused(bundle, r"full.onnx has \d+ bytes, not")

    @pytest.mark.parametrize("name", ["table.onnx", "weights.bin"])
    def test_missing(self, bundle: Path, name: str) -> None:
        (bundle / name).unlink()
        refused(bundle, f"{name} is missing")

    def test_a_manifest_cut_off(self, bundle: Path) -> None:
        os.truncate(bundle / "manifest.json", 500)
        refused(bundle, "no JSON")

    def test_a_manifest_that_is_no_text(self, bundle: Path) -> None:
        (bundle / "manifest.json").write_bytes(b"\xff\xfe{}")
        refused(bundle, "no text")

    def test_damaged_weights_explain_what_else_fails(self, bundle: Path) -> None:
        (bundle / "weights.bin").write_bytes(bytes((bundle / "weights.bin").stat().st_size))
        message = "weights.bin is not the file that was exported"
        with (
            pytest.raises(BundleError, match=message) as caught,
            checked_files(bundle, read_manifest(bundle)),
        ):
            raise BackendError("a consequence")
        assert isinstance(caught.value.__context__, BackendError)

    def test_sizes_alone(self, bundle: Path) -> None:
        data = bytearray((bundle / "weights.bin").read_bytes())
        data[0] ^= 1
        (bundle / "weights.bin").write_bytes(data)
        assert open_bundle(bundle, verify=False).model == "Toy"


class TestHostility:
    @pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", "..", ".", "", "a\\b"])
    def test_paths_that_lead_out(self, bundle: Path, name: str) -> None:
        (bundle.parent / "secret").write_bytes(b"x")

        def change(data: dict[str, Any]) -> None:
            data["files"][name] = {"sha256": "0" * 64, "bytes": 1}

        edit(bundle, change)
        refused(bundle, "must match")

    def test_links(self, bundle: Path) -> None:
        (bundle / "weights.bin").rename(bundle.parent / "outside.bin")
        (bundle / "weights.bin").symlink_to(bundle.parent / "outside.bin")
        refused(bundle, "weights.bin is no regular file")

    def test_a_linked_manifest(self, bundle: Path) -> None:
        (bundle / "manifest.json").rename(bundle.parent / "outside.json")
        (bundle / "manifest.json").symlink_to(bundle.parent / "outside.json")
        refused(bundle, "manifest.json is no regular file")

    def test_pipes_are_not_waited_for(self, bundle: Path) -> None:
        (bundle / "full.onnx").unlink()
        os.mkfifo(bundle / "full.onnx")
        refused(bundle, "full.onnx is no regular file")

    @pytest.mark.parametrize("place", ["../outside.bin", "/etc/hostname", "manifest.json", ""])
    def test_models_that_read_other_files(self, bundle: Path, place: str) -> None:
        (bundle.parent / "outside.bin").write_bytes((bundle / "weights.bin").read_bytes())
        model = onnx.load(bundle / "full.onnx", load_external_data=False)
        tensor = next(t for t in model.graph.initializer if t.external_data)
        next(e for e in tensor.external_data if e.key == "location").value = place
        onnx.save(model, bundle / "full.onnx")
        rehash(bundle)
        refused(bundle, "which is not the bundle's")

    def test_models_that_read_behind_the_weights(self, bundle: Path) -> None:
        model = onnx.load(bundle / "full.onnx", load_external_data=False)
        tensor = next(t for t in model.graph.initializer if t.external_data)
        next(e for e in tensor.external_data if e.key == "offset").value = str(1 << 40)
        onnx.save(model, bundle / "full.onnx")
        rehash(bundle)
        refused(bundle, "behind the end of weights.bin")

    def test_files_that_are_no_models(self, bundle: Path) -> None:
        (bundle / "full.onnx").write_bytes(os.urandom(64) + b"\xff" * 64)
        rehash(bundle)
        refused(bundle, "full.onnx is no ONNX file")

    def test_a_huge_manifest(self, bundle: Path) -> None:
        with (bundle / "manifest.json").open("r+b") as file:
            file.truncate(1 << 30)
        refused(bundle, "larger than any manifest")

    def test_nothing_outside_is_touched(self, bundle: Path) -> None:
        before = sorted(bundle.parent.rglob("*"))
        (bundle / "full.onnx").write_bytes(b"")
        refused(bundle, "0 bytes")
        assert sorted(bundle.parent.rglob("*")) == before


class TestNewFolder:
    def test_it_appears_whole(self, tmp_path: Path) -> None:
        with new_folder(tmp_path / "deep" / "b") as folder:
            (folder / "file").write_text("x")
            assert not (tmp_path / "deep" / "b").exists()
        assert [path.name for path in (tmp_path / "deep").iterdir()] == ["b"]
        assert (tmp_path / "deep" / "b" / "file").read_text() == "x"

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    def test_a_failure_leaves_nothing(self, tmp_path: Path, error: type[BaseException]) -> None:
        def write() -> None:
            with new_folder(tmp_path / "b") as folder:
                (folder / "half").write_text("x")
                raise error

        with pytest.raises(error):
            write()
        assert list(tmp_path.iterdir()) == []

    def test_what_is_there_stays(self, tmp_path: Path) -> None:
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "mine").write_text("x")
        for overwrite in (False, True):
            with (
                pytest.raises(BundleError, match="is no bundle"),
                new_folder(tmp_path / "b", overwrite=overwrite),
            ):
                pass
        assert (tmp_path / "b" / "mine").read_text() == "x"

    def test_a_bundle_is_replaced_only_when_asked(self, bundle: Path) -> None:
        with pytest.raises(BundleError, match="overwrite=True"), new_folder(bundle):
            pass
        with pytest.raises(ValueError, match="x"), new_folder(bundle, overwrite=True):
            raise ValueError("x")
        assert open_bundle(bundle).model == "Toy"
        with new_folder(bundle, overwrite=True) as folder:
            (folder / "new").write_text("x")
        assert [path.name for path in bundle.iterdir()] == ["new"]
        assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]

    @pytest.mark.parametrize("kind", ["merged", "split", "pt2"])
    def test_all_files_have_the_mode_of_the_umask(
        self, request: pytest.FixtureRequest, kind: str
    ) -> None:
        folder = request.getfixturevalue(kind)
        umask = os.umask(0)
        os.umask(umask)
        modes = {item.name: stat.S_IMODE(item.stat().st_mode) for item in folder.iterdir()}
        assert modes == dict.fromkeys(modes, 0o666 & ~umask)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o777 & ~umask

    @pytest.mark.parametrize("umask", [0o000, 0o027])
    @pytest.mark.parametrize("mode", [0o600, 0o755, 0o444])
    def test_whatever_mode_a_writer_gave(self, tmp_path: Path, umask: int, mode: int) -> None:
        before = os.umask(umask)
        try:
            with new_folder(tmp_path / "b") as folder:
                (folder / "file").write_text("x")
                (folder / "file").chmod(mode)
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "b" / "file").stat().st_mode) == 0o666 & ~umask

    def test_killed_while_a_bundle_is_replaced(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """At every moment the old bundle or the new one is there, whole."""

        def write(path: Path, text: str) -> None:
            with new_folder(path, overwrite=True) as folder:
                for name in ("manifest.json", "weights.bin"):
                    (folder / name).write_text(text)

        moments = 0
        for number, die in deaths(monkeypatch):
            path = tmp_path / str(number) / "b"
            write(path, "old")
            with die():
                write(path, "new")
            found = {item.name: item.read_text() for item in path.iterdir()}
            assert found.keys() == {"manifest.json", "weights.bin"}
            assert len(set(found.values())) == 1
            moments += 1
        assert moments > 3
