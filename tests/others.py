"""Files of another user, as a test sees them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

_ANOTHER = 12345


def give_away(monkeypatch: pytest.MonkeyPatch, *paths: Path) -> None:
    """Let files and folders belong to another user.

    Only root can really do that; for anybody else the system calls say so.
    """
    if os.getuid() == 0:
        for path in paths:
            os.chown(path, _ANOTHER, -1, follow_symlinks=False)
        return
    given = {(os.lstat(path).st_dev, os.lstat(path).st_ino) for path in paths}

    def told(real: object) -> object:
        def asked(*args: object, **options: object) -> os.stat_result:
            found = real(*args, **options)  # type: ignore[operator]
            if (found.st_dev, found.st_ino) not in given:
                return found
            values = list(found)
            values[4] = _ANOTHER
            return os.stat_result(values)

        return asked

    for name in ("stat", "lstat"):
        monkeypatch.setattr(os, name, told(getattr(os, name)))


def mode(path: Path) -> int:
    """Who may read, write and enter a file or folder."""
    return stat.S_IMODE(path.stat().st_mode)
