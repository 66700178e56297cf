"""The cache folder: private, and what somebody else could have written is not read back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dit_compile.cache_folder import cache_folder, distrust
from dit_compile.errors import CacheError
from tests.others import give_away, mode

pytestmark = pytest.mark.skipif(not hasattr(os, "getuid"), reason="a system without owners")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DITC_CACHE_DIR", str(tmp_path / "above" / "cache"))
    return tmp_path / "above" / "cache"


def test_only_its_owner_enters_what_is_made(root: Path, umask: int) -> None:
    folder = cache_folder("kernels")
    assert folder == root / "kernels"
    assert mode(root) == mode(folder) == 0o700
    assert distrust(folder / "nothing") == ""


def test_an_open_folder_of_ours_is_closed(root: Path) -> None:
    (root / "kernels").mkdir(parents=True)
    (root / "kernels").chmod(0o777)
    assert mode(cache_folder("kernels")) == 0o700


@pytest.mark.parametrize("name", ["", "kernels"])
def test_a_folder_of_another_user(root: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "kernels").mkdir(parents=True)
    give_away(monkeypatch, root / name)
    with pytest.raises(CacheError, match=r"belongs to another user .*; set DITC_CACHE_DIR to a"):
        cache_folder("kernels")


@pytest.mark.parametrize("bits", [0o777, 0o770, 0o720, 0o702])
def test_a_chosen_folder_that_others_write_to(root: Path, bits: int) -> None:
    root.mkdir(parents=True)
    root.chmod(bits)
    with pytest.raises(CacheError, match=f"can be written to by others .mode {bits:o}.; set"):
        cache_folder("kernels")
    assert mode(root) == bits


def test_a_folder_where_everybody_owns_what_is_his(root: Path) -> None:
    root.mkdir(parents=True)
    root.chmod(0o1777)
    folder = cache_folder("kernels")
    (folder / "a").write_text("")
    (folder / "a").chmod(0o600)
    assert distrust(folder / "a") == ""


def test_files(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = cache_folder("kernels")
    for name in ("open", "theirs", "good"):
        (folder / name).write_text("")
        (folder / name).chmod(0o644)
    (folder / "link").symlink_to(folder / "good")
    (folder / "open").chmod(0o664)
    give_away(monkeypatch, folder / "theirs")
    assert distrust(folder / "good") == ""
    assert distrust(folder / "open").endswith("can be written to by others (mode 664)")
    assert "belongs to another user" in distrust(folder / "theirs")
    assert distrust(folder / "link").endswith("is a link")


def test_a_link_in_place_of_a_folder(root: Path, tmp_path: Path) -> None:
    root.mkdir(parents=True, mode=0o700)
    (tmp_path / "elsewhere").mkdir()
    (root / "kernels").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CacheError, match="is a link"):
        cache_folder("kernels")


def test_the_cache_folder_itself_may_be_reached_by_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir(mode=0o700)
    root.parent.mkdir()
    root.symlink_to(tmp_path / "disk")
    assert cache_folder("kernels").resolve() == tmp_path / "disk" / "kernels"


def test_a_file_in_the_way(root: Path) -> None:
    root.parent.mkdir()
    root.write_text("")
    with pytest.raises(CacheError, match=r"cannot be made: .*; set DITC_CACHE_DIR"):
        cache_folder("kernels")
    assert distrust(root / "kernels" / "a") == ""  # nothing is there


def test_systems_without_owners(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root.mkdir(parents=True)
    root.chmod(0o777)
    monkeypatch.delattr(os, "getuid")
    assert distrust(cache_folder("kernels")) == ""
