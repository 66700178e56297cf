"""A process that is killed at each of its writes to the disk, one after the other.

What runs after the kill in ``finally`` would not run in a process that is gone, so from then on no
call reaches the disk.
"""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest

#: What changes the disk.
_CALLS: tuple[tuple[Any, str], ...] = (
    *((os, name) for name in ("open", "mkdir", "chmod", "fsync", "replace", "rename", "unlink")),
    (pathlib.Path, "write_bytes"),
    (shutil, "rmtree"),
)


class Killed(BaseException):
    """The process is gone."""


Death = Callable[[], AbstractContextManager[list[str]]]


def deaths(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException] = Killed
) -> Iterator[tuple[int, Death]]:
    """For each moment a context in which it is the last one, until nothing is left to be done.

    Args:
        monkeypatch: of the test.
        error: another error to raise there, as by a full disk: what comes after it does run.
    """
    number = 0
    while True:
        died: list[str] = []

        @contextlib.contextmanager
        def die(at: int = number, died: list[str] = died) -> Iterator[list[str]]:
            with monkeypatch.context() as patch, contextlib.suppress(error):
                _arm(patch, at, died, error)
                yield died

        yield number, die
        if not died:
            return
        number += 1


def _arm(patch: pytest.MonkeyPatch, at: int, died: list[str], error: type[BaseException]) -> None:
    count = 0

    def deadly(real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal count
            gone = error is Killed and bool(died)
            if name == "open" and not args[1] & (os.O_WRONLY | os.O_RDWR):
                return real(*args, **options)
            if count == at and not died:
                died.append(name)
                gone = True
                if name == "write_bytes":  # half of it is there
                    with io.open(args[0], "wb") as file:  # noqa: UP020 - pathlib's own is patched
                        file.write(args[1][: len(args[1]) // 2])
            count += 1
            if gone:
                raise error("killed")
            return real(*args, **options)

        return call

    for owner, name in _CALLS:
        patch.setattr(owner, name, deadly(getattr(owner, name), name))
