"""Writing files so that nobody ever reads half of one: the one way in which ditc writes.

A process that is killed at any moment leaves what was there before, or all that is new.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

#: Parts of a name that a draft keeps, so that its own name is never too long.
_KEPT = 40
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def write_atomically(path: Path, content: str | bytes, *, mode: int | None = None) -> None:
    """Write ``content`` to ``path``; until it is all there, what was there before stays.

    Text is written as UTF-8, with the line ends that it has. See :func:`replaced` for links, modes
    and devices.

    Raises:
        OSError: the folder is missing or cannot be written to.
    """
    with replaced(path, mode=mode) as draft:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def replaced(path: Path, *, mode: int | None = None) -> Iterator[Path]:
    """A file to write, which becomes ``path`` when the block ends, and vanishes if it raises.

    It has the ending of ``path``, by which some writers choose a format. In the end it has the mode
    of the file that it replaces, or the one that the umask gives. A link stays, and what it points
    to is replaced. A device or a pipe cannot be replaced, so it is written to.

    Args:
        path: where the file goes.
        mode: of the file, in place of these.

    Raises:
        OSError: the folder is missing or cannot be written to.
    """
    found = _mode(path)
    regular = found is None or stat.S_ISREG(found)
    target = Path(os.path.realpath(path)) if regular else path
    draft, usual = _new_draft(target if regular else Path(tempfile.gettempdir()) / path.name)
    try:
        yield draft
        if regular:
            own = usual if found is None else stat.S_IMODE(found)
            os.chmod(draft, own if mode is None else mode)
            _flush(draft)
            os.replace(draft, target)
        else:
            target.write_bytes(draft.read_bytes())
    finally:
        with contextlib.suppress(OSError):
            os.unlink(draft)


@contextlib.contextmanager
def filled_folder(path: Path, *, mode: int = 0o777, file_mode: int | None = None) -> Iterator[Path]:
    """A folder to fill, which becomes ``path`` when the block ends, and vanishes if it raises.

    A folder that is there already is replaced, where the system can at one stroke. All files get
    one mode, whoever wrote them.

    Args:
        path: where it goes; folders above it are made.
        mode: of the folder itself, less what the umask takes away.
        file_mode: of its files, in place of the one that the umask gives.

    Raises:
        OSError: a folder cannot be written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=path.parent, prefix=draft_prefix(path)))
    try:
        probe, usual = _new_draft(work / "mode")
        probe.unlink()
        usual = usual if file_mode is None else file_mode
        new = work / "new"
        new.mkdir(mode)
        yield new
        for item in new.rglob("*"):
            found = os.lstat(item).st_mode
            if stat.S_ISREG(found) and stat.S_IMODE(found) != usual:
                os.chmod(item, usual)
        _swap(new, path, work / "old")
    finally:
        shutil.rmtree(work, ignore_errors=True)


def draft_prefix(path: Path) -> str:
    """What the names of unfinished folders for ``path`` begin with."""
    return f".{path.name[:_KEPT]}."


def _swap(new: Path, path: Path, aside: Path) -> None:
    """Move ``new`` to ``path``; what was there lies in the folder of ``new`` afterwards."""
    if not os.path.lexists(path):
        os.rename(new, path)
    elif not _exchanged(new, path):
        os.rename(path, aside)
        try:
            os.rename(new, path)
        except BaseException:
            os.rename(aside, path)
            raise


def _exchanged(one: Path, other: Path) -> bool:
    """Let two paths trade places in one step; false where the system cannot."""
    if sys.platform != "linux":
        return False
    call = getattr(ctypes.CDLL(None), "renameat2", None)
    if call is None:
        return False
    names = (os.fsencode(one), os.fsencode(other))
    return bool(call(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)


def _mode(path: Path) -> int | None:
    """The type and mode of what a path leads to; ``None`` if there is nothing."""
    try:
        return os.stat(path).st_mode
    except FileNotFoundError:
        return None


def _new_draft(target: Path) -> tuple[Path, int]:
    """An empty file beside ``target``, and the mode that the umask gave it.

    The umask itself cannot be read without changing it for all threads of the process.
    """
    ending = target.suffix if len(target.suffix) < _KEPT else ""
    while True:
        draft = target.with_name(f".{target.stem[:_KEPT]}.{secrets.token_hex(6)}{ending}")
        with contextlib.suppress(FileExistsError):
            handle = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
            try:
                return draft, stat.S_IMODE(os.fstat(handle).st_mode)
            finally:
                os.close(handle)


def _flush(path: Path) -> None:
    """Wait until a file is on the disk: a full one, or a lost one, is noticed here."""
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
