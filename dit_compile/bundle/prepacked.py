"""Bundles with weights laid out for this machine, written once and mapped from then on.

ONNX Runtime lays the weights of products out anew whenever a model is opened. Here it does so once,
and what it made is kept as models of its own in ditc's cache folder. That may be deleted at any
time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from dit_compile.analysis.machine import processor_lines
from dit_compile.bundle.folder import checked_files
from dit_compile.bundle.manifest import Manifest
from dit_compile.bundle.sessions import RuntimeOptions, by_file, import_runtime, open_session
from dit_compile.config import cache_dir
from dit_compile.errors import BackendError, OptionError

_CPU = ("CPUExecutionProvider",)


def laid_out(folder: Path, manifest: Manifest, options: RuntimeOptions) -> Path:
    """The folder with the files of a bundle laid out; they are, if they were not before.

    Args:
        folder: the bundle.
        manifest: what it holds.
        options: how it is to run.

    Raises:
        BundleError: the bundle is damaged.
        OptionError: this is for ONNX Runtime on the CPU, with settings of ditc's own.
        BackendError: ONNX Runtime failed, or the disk is full.
    """
    _check_options(manifest, options)
    kept = place(manifest)
    if not kept.is_dir():
        with _new_folder(kept) as work, checked_files(folder, manifest):
            for file, own in by_file(manifest, options):
                _lay_out(folder / file, work / file, own)
    return kept


def place(manifest: Manifest) -> Path:
    """Where files with a bundle's hashes are kept as this machine and ONNX Runtime want them."""
    facts = {
        "files": {name: entry.sha256 for name, entry in manifest.files.items()},
        "onnxruntime": import_runtime().__version__,
        "processor": _processor(),
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return cache_dir() / "prepacked" / digest[:32]


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


@contextlib.contextmanager
def _new_folder(kept: Path) -> Iterator[Path]:
    """A temporary folder that becomes ``kept`` when the block ends, and vanishes if it raises."""
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=kept.parent))
    except OSError as error:
        raise BackendError(f"weights cannot be laid out in {kept.parent}: {error}") from error
    try:
        yield work
        try:
            work.rename(kept)
        except OSError as error:
            if not kept.is_dir():  # else another process was faster
                raise BackendError(f"weights cannot be laid out as {kept}: {error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _processor() -> str:
    """What the layout of weights may depend on."""
    lines = processor_lines("model name", "flags", "Features")
    return "\n".join(lines) or f"{platform.machine()} {platform.processor()}"
