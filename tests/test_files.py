"""Files and folders are written whole or not at all, whenever the process is killed."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from dit_compile import files
from dit_compile.files import filled_folder, replaced, write_atomically
from tests.killed import Killed, deaths
from tests.others import mode


def names(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir())


class TestFiles:
    def test_text_is_utf8_with_its_own_line_ends(self, tmp_path: Path) -> None:
        write_atomically(tmp_path / "a", "é\r\n\n")
        assert (tmp_path / "a").read_bytes() == b"\xc3\xa9\r\n\n"
        assert names(tmp_path) == ["a"]

    def test_a_new_file_has_the_mode_of_the_umask(self, tmp_path: Path, umask: int) -> None:
        write_atomically(tmp_path / "a", "")
        with replaced(tmp_path / "b.png") as draft:
            assert draft.suffix == ".png"
            draft.unlink()  # some writers put another file in its place
            draft.write_bytes(b"")
            draft.chmod(0o600)
        assert mode(tmp_path / "a") == mode(tmp_path / "b.png") == 0o666 & ~umask

    def test_a_file_that_is_replaced_keeps_its_mode(self, tmp_path: Path, umask: int) -> None:
        (tmp_path / "a").write_text("old")
        (tmp_path / "a").chmod(0o640)
        write_atomically(tmp_path / "a", "new")
        assert mode(tmp_path / "a") == 0o640
        write_atomically(tmp_path / "a", "new", mode=0o600)
        assert mode(tmp_path / "a") == 0o600

    def test_the_umask_is_never_changed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Another thread would make files that all can write to."""
        monkeypatch.setattr(os, "umask", None)
        write_atomically(tmp_path / "a", "")
        with filled_folder(tmp_path / "b") as new:
            (new / "c").write_text("")

    def test_links_stay(self, tmp_path: Path) -> None:
        (tmp_path / "there").mkdir()
        (tmp_path / "there" / "a").write_text("old")
        (tmp_path / "link").symlink_to(tmp_path / "there" / "a")
        write_atomically(tmp_path / "link", "new")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "there" / "a").read_text() == "new"

    def test_pipes_and_devices_are_written_to(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        got = []
        reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_bytes()))
        reader.start()
        write_atomically(tmp_path / "pipe", "said")
        reader.join(10)
        assert got == [b"said"]
        assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
        before = os.stat(os.devnull)
        write_atomically(Path(os.devnull), "said")
        assert os.stat(os.devnull).st_ino == before.st_ino
        assert stat.S_ISCHR(os.stat(os.devnull).st_mode)

    def test_names_as_long_as_a_name_can_be(self, tmp_path: Path) -> None:
        long = tmp_path / ("é" * 125 + ".json")
        write_atomically(long, "a")
        assert long.read_text() == "a"
        with filled_folder(tmp_path / ("é" * 127)) as new:
            new.joinpath("b").write_text("")

    @pytest.mark.parametrize("path", ["missing/a", "."])
    def test_where_no_file_can_be(self, tmp_path: Path, path: str) -> None:
        with pytest.raises(OSError, match=r"No such file|directory"):
            write_atomically(tmp_path / path, "")
        assert names(tmp_path) == []

    def test_the_reason_for_a_failure_is_not_hidden(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fails(*args: object) -> None:
            raise OSError("no space left")

        def gone(*args: object) -> None:
            raise FileNotFoundError("gone")

        monkeypatch.setattr(os, "fsync", fails)
        monkeypatch.setattr(os, "unlink", gone)
        with pytest.raises(OSError, match="no space left"):
            write_atomically(tmp_path / "a", "")


def write(place: Path, text: str) -> None:
    write_atomically(place, text)


def fill(place: Path, text: str) -> None:
    with filled_folder(place) as new:
        for name in ("a", "b"):
            write_atomically(new / name, text)


def content(place: Path) -> object:
    if place.is_dir():
        return {item.name: item.read_text() for item in place.iterdir()}
    return place.read_text() if place.exists() else None


@pytest.mark.parametrize("make", [write, fill])
def test_killed_at_any_moment(
    tmp_path: Path, make: Callable[[Path, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "old", "old")
    make(tmp_path / "new", "new")
    either = [content(tmp_path / "old"), content(tmp_path / "new")]
    moments = 0
    for number, die in deaths(monkeypatch):
        place = tmp_path / f"place{number}"
        make(place, "old")
        with die():
            make(place, "new")
        assert content(place) in either
        moments += 1
    assert moments > 3


@pytest.mark.parametrize("make", [write, fill])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_failing_at_any_moment(
    tmp_path: Path,
    make: Callable[[Path, str], None],
    error: type[BaseException],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for number, die in deaths(monkeypatch, error):
        folder = tmp_path / str(number)
        folder.mkdir()
        make(folder / "a", "old")
        old = content(folder / "a")
        make(folder / "b", "new")
        with die() as died:
            make(folder / "a", "new")
        assert content(folder / "a") in (old, content(folder / "b"))
        removed = not {"unlink", "rmtree"} & {*died}  # else the draft itself could not be
        assert not removed or names(folder) == ["a", "b"]


class TestFolders:
    def test_modes_are_those_of_the_umask(self, tmp_path: Path, umask: int) -> None:
        with filled_folder(tmp_path / "a") as new:
            (new / "b").mkdir()
            for name in ("c", "b/d"):
                (new / name).write_text("")
                (new / name).chmod(0o700)
        assert mode(tmp_path / "a") == 0o777 & ~umask
        assert mode(tmp_path / "a" / "c") == mode(tmp_path / "a" / "b" / "d") == 0o666 & ~umask
        assert names(tmp_path) == ["a"]

    def test_systems_that_cannot_exchange(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(files, "_exchanged", lambda one, other: False)
        for text in ("old", "new"):
            fill(tmp_path / "a", text)
        assert content(tmp_path / "a") == {"a": "new", "b": "new"}
        real = os.rename

        def fails_for_the_new(one: Path, other: Path) -> None:
            if Path(one).name == "new":
                raise OSError("cannot rename")
            real(one, other)

        monkeypatch.setattr(os, "rename", fails_for_the_new)
        with pytest.raises(OSError, match="cannot rename"):
            fill(tmp_path / "a", "newer")
        assert content(tmp_path / "a") == {"a": "new", "b": "new"}
        assert names(tmp_path) == ["a"]

    def test_something_else_in_its_place(self, tmp_path: Path) -> None:
        (tmp_path / "there").mkdir()
        (tmp_path / "a").symlink_to(tmp_path / "there")
        fill(tmp_path / "a", "new")
        assert content(tmp_path / "a") == {"a": "new", "b": "new"}
        assert names(tmp_path / "there") == []


def test_what_kills_is_no_error_that_is_caught() -> None:
    assert not issubclass(Killed, Exception)
