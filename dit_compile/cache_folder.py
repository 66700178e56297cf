"""ditc's cache folder: what is read back from it was written by this user, or by root.

A compiled kernel that is loaded, or a measurement that is believed, is as good as code of whoever
could write it. Where the cache folder is one that others write into too, such as a shared one
under ``/tmp``, nothing of theirs is used.
"""

from __future__ import annotations

import contextlib
import functools
import os
import stat
import warnings
from pathlib import Path

from dit_compile.config import cache_dir
from dit_compile.errors import CacheError, DitcWarning

#: The mode of ditc's own folders, and of the files in them.
FOLDER_MODE, FILE_MODE = 0o700, 0o600
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def cache_folder(kind: str) -> Path:
    """The folder for one kind of file in ditc's cache folder, made if it is not there.

    Only its owner may enter the folders that are made. One of this user's that others could enter
    is closed; the cache folder itself is left as it is, since it may have been chosen.

    Raises:
        CacheError: someone else could have put files there, or it cannot be made.
    """
    root = cache_dir()
    folder = root / kind
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        for each in (root, folder):
            each.mkdir(FOLDER_MODE, exist_ok=True)
        _close(folder)
    except OSError as error:
        raise CacheError(f"{folder} cannot be made: {error}; {_ADVICE}") from error
    why = distrust(folder)
    if why:
        raise CacheError(f"{why}; {_ADVICE}")
    return folder


_ADVICE = "set DITC_CACHE_DIR to a folder of your own that nobody else can write to"


def distrust(path: Path, root: Path | None = None) -> str:
    """Why what lies at ``path`` must not be read back; empty if it may, or nothing is there.

    Each file and folder from ``path`` up to ``root`` must be this user's or root's, no link, and
    such that nobody else can write to it; a folder may be like ``/tmp``, in which everybody owns
    what is his. Systems without such owners, Windows among them, are trusted.

    Args:
        path: a file or a folder.
        root: where the search ends; the cache folder by default, which may be reached by links.
    """
    if not hasattr(os, "getuid"):
        return ""
    top = cache_dir() if root is None else root
    for each in (path, *path.parents):
        try:
            found = os.stat(each) if each == cache_dir() else os.lstat(each)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            return f"{each} cannot be looked at: {error}"
        if why := _why(found):
            return f"{each} {why}"
        if each == top:
            break
    return ""


@functools.cache
def warn_once(text: str) -> None:
    """Warn of something that a process may come upon again and again."""
    warnings.warn(text, DitcWarning, stacklevel=3)


def _why(found: os.stat_result) -> str:
    if stat.S_ISLNK(found.st_mode):
        return "is a link"
    if found.st_uid not in (0, os.getuid()):
        return f"belongs to another user ({found.st_uid})"
    shared = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
    if found.st_mode & _OTHERS_WRITE and not shared:
        return f"can be written to by others (mode {stat.S_IMODE(found.st_mode):o})"
    return ""


def _close(folder: Path) -> None:
    """Let nobody else into a folder of this user's."""
    found = os.lstat(folder)
    own = hasattr(os, "getuid") and found.st_uid == os.getuid() and stat.S_ISDIR(found.st_mode)
    if own and found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        with contextlib.suppress(OSError):  # on a disk that is mounted for reading
            os.chmod(folder, FOLDER_MODE)
