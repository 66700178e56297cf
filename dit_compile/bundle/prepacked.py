"""Bundles with weights laid out for this machine, written once and mapped from then on.

ONNX Runtime lays the weights of products out anew whenever a model is opened. Here it does so once,
and what it made is kept as models of its own in ditc's cache folder. That may be deleted at any
time.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import platform
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dit_compile.analysis.machine import processor_lines
from dit_compile.bundle.folder import checked_files, file_entry
from dit_compile.bundle.manifest import File, Manifest
from dit_compile.bundle.sessions import RuntimeOptions, by_file, import_runtime, open_session
from dit_compile.cache_folder import FILE_MODE, FOLDER_MODE, cache_folder, distrust
from dit_compile.config import cache_dir
from dit_compile.errors import BackendError, CacheError, DitcWarning, OptionError
from dit_compile.files import draft_prefix, filled_folder, write_atomically
from dit_compile.json_files import JsonError, read_as, read_json

try:
    fcntl: Any = importlib.import_module("fcntl")
except ImportError:  # Windows
    fcntl = None

_CPU = ("CPUExecutionProvider",)
_KIND = "prepacked"
#: Files beside those laid out: what each must be, and at which times that was found true.
_RECORD, _STAMPS = "files.json", "stamps.json"


def laid_out(bundle: Path, manifest: Manifest, options: RuntimeOptions) -> Path:
    """The folder with the files of a bundle laid out; they are, if they were not before.

    What was laid out before is used if it is whole and unchanged, see :func:`_wrong`, and nobody
    but this user or root could have written it. Else it is laid out anew, with a warning. Processes
    take turns, and one that is killed leaves what was there.

    Args:
        bundle: the bundle's folder.
        manifest: what it holds.
        options: how it is to run.

    Raises:
        BundleError: the bundle is damaged.
        OptionError: this is for ONNX Runtime on the CPU, with settings of ditc's own.
        BackendError: ONNX Runtime failed, the disk is full, or the cache folder cannot be written
            to or trusted.
    """
    _check_options(manifest, options)
    try:
        folder = cache_folder(_KIND)
        kept = place(manifest)
        if _wrong(kept):
            with _alone(folder) as alone:
                _lay_out_anew(bundle, manifest, options, kept, alone)
    except (OSError, CacheError) as error:
        raise BackendError(
            f"weights cannot be laid out in {cache_dir() / _KIND}: {error}; make room, or set "
            "DITC_CACHE_DIR to a folder that can be written to"
        ) from error
    return kept


def _lay_out_anew(
    bundle: Path, manifest: Manifest, options: RuntimeOptions, kept: Path, alone: bool
) -> None:
    why = _wrong(kept)
    if not why:  # another process was faster
        return
    if os.path.lexists(kept):
        warnings.warn(
            f"the weights laid out in {kept} are laid out anew: {why}", DitcWarning, stacklevel=4
        )
    if alone:
        _sweep(kept)
    with (
        filled_folder(kept, mode=FOLDER_MODE, file_mode=FILE_MODE) as work,
        checked_files(bundle, manifest),
    ):
        for file, own in by_file(manifest, options):
            _lay_out(bundle / file, work / file, own)
        _record(work)


def place(manifest: Manifest) -> Path:
    """Where files with a bundle's hashes are kept as this machine and ONNX Runtime want them."""
    facts = {
        "files": {name: entry.sha256 for name, entry in manifest.files.items()},
        "onnxruntime": import_runtime().__version__,
        "processor": _processor(),
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return cache_dir() / _KIND / digest[:32]


def _check_options(manifest: Manifest, options: RuntimeOptions) -> None:
    why = ""
    if manifest.format != "onnx":
        why = f"this bundle is of the format {manifest.format}"
    elif tuple(options.providers) != _CPU:
        why = f"the provider {options.providers[0]} lays them out itself"
    elif options.session_options is not None:
        why = "session_options may ask for another layout"
    if why:
        raise OptionError(f"prepack='once' lays weights out for ONNX Runtime on the CPU, but {why}")


def _lay_out(file: Path, to: Path, options: RuntimeOptions) -> None:
    settings = import_runtime().SessionOptions()
    settings.log_severity_level = 3  # it warns that the result is for this machine
    settings.optimized_model_filepath = str(to)
    for key, value in {
        "session.optimized_model_external_initializers_file_name": f"{to.name}.weights",
        "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
        "session.save_external_prepacked_constant_initializers": "1",
    }.items():
        settings.add_session_config_entry(key, value)
    open_session(file, replace(options, prepack=bool(options.prepack), session_options=settings))


def _wrong(kept: Path) -> str:
    """What is wrong with what was laid out in ``kept``; empty if nothing is.

    Each file must have the size and the SHA-256 that were recorded. A file whose size, times and
    number are still those at which it was found right is not read again: it would take seconds for
    each gigabyte. So whatever wrote to a file is noticed, but not what its disk lost without it.
    """
    try:
        record = read_as(dict[str, File], read_json(kept / _RECORD), "the record")
        stamps = {name: _stamp(kept / name) for name in record}
        for path in (kept, *(kept / name for name in (_RECORD, *record))):
            if why := distrust(path):
                return why
        known = _known_stamps(kept)
        for name, entry in record.items():
            if known.get(name) != stamps[name] and file_entry(kept / name) != entry:
                return f"{name} was changed"
    except (JsonError, OSError) as error:
        return f"it is not whole: {error}"
    if known != stamps:
        _keep_stamps(kept, stamps)
    return ""


def _stamp(path: Path) -> list[int]:
    """What changes whenever a file is written to; times are in nanoseconds."""
    found = os.lstat(path)
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _known_stamps(kept: Path) -> dict[str, list[int]]:
    """The stamps at which files were found right."""
    try:
        stamps: dict[str, list[int]] = read_as(
            dict[str, list[int]], read_json(kept / _STAMPS), "stamps"
        )
    except JsonError:
        return {}
    return {} if distrust(kept / _STAMPS) else stamps


def _keep_stamps(kept: Path, stamps: Mapping[str, list[int]]) -> None:
    with contextlib.suppress(OSError):  # on a disk that is mounted for reading
        write_atomically(kept / _STAMPS, json.dumps(stamps), mode=FILE_MODE)


def _record(work: Path) -> None:
    """Record what the files in ``work`` are."""
    made = sorted(work.iterdir())
    for item in made:
        os.chmod(item, FILE_MODE)
    stamps = {item.name: _stamp(item) for item in made}
    entries = {item.name: asdict(file_entry(item)) for item in made}
    for name, data in ((_RECORD, entries), (_STAMPS, stamps)):
        write_atomically(work / name, json.dumps(data), mode=FILE_MODE)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Let one process at a time lay out files in ``folder``; false where systems have no locks.

    The system frees the lock of a process that is killed.
    """
    if fcntl is None:
        yield False
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            locked = True
        except OSError:  # some network file systems have none
            locked = False
        yield locked
    finally:
        os.close(handle)


def _sweep(kept: Path) -> None:
    """Remove what killed processes left of their work, while no other one is at work."""
    for left in kept.parent.glob(f"{draft_prefix(kept)}*"):
        shutil.rmtree(left, ignore_errors=True)


def _processor() -> str:
    """What the layout of weights may depend on."""
    lines = processor_lines("model name", "flags", "Features")
    return "\n".join(lines) or f"{platform.machine()} {platform.processor()}"
