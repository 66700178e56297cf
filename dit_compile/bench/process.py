"""Measurements in processes of their own.

A first compilation, a warm start and peak memory are facts about a process, so each job has one. A
module that does jobs takes one as JSON, and prints one line of JSON last.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dit_compile.errors import DitcError
from dit_compile.json_files import JsonError, parse_json, read_as


def run_apart(
    module: str, job: Mapping[str, Any], what: str, env: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run ``python -m module '<job>'``, and return what it printed last.

    Args:
        module: a module of this package.
        job: what it is to do.
        what: the same in words, for the error.
        env: its environment; this process's if left out.

    Raises:
        DitcError: it failed; the last lines that it printed are part of the message.
    """
    done = subprocess.run(  # noqa: S603 - our own module, our own arguments
        [sys.executable, "-m", module, json.dumps(job)],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise DitcError(f"{what} failed (exit status {done.returncode}):\n{last}")
    printed = done.stdout.splitlines() or [""]
    try:
        found: dict[str, Any] = read_as(dict[str, Any], parse_json(printed[-1], finite=False), what)
    except JsonError as error:
        raise DitcError(f"{what} printed no result: {error}") from None
    return found


def peak_resident_bytes() -> int:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def resident_bytes() -> int:
    """The memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()
