"""The folder of a bundle: written whole or not at all, and read with distrust."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dit_compile.bundle.manifest import File, Manifest
from dit_compile.bundle.onnx_file import check_model
from dit_compile.errors import BundleError
from dit_compile.files import filled_folder
from dit_compile.json_files import JsonError, read_json

MANIFEST = "manifest.json"
_MAX_MANIFEST = 64 << 20
_CHUNK = 4 << 20


@contextlib.contextmanager
def new_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder that becomes ``path`` when the block ends, and vanishes if it raises.

    Args:
        path: where the bundle goes.
        overwrite: replace a bundle that is there already.

    Raises:
        BundleError: there is something at ``path``, and it is no bundle or may not be replaced.
    """
    path = Path(os.path.abspath(path))
    _check_free(path, overwrite)
    with filled_folder(path) as new:
        yield new
        _check_free(path, overwrite)


def _check_free(path: Path, overwrite: bool) -> None:
    if not os.path.lexists(path):
        return
    if path.is_symlink() or not (path / MANIFEST).is_file():
        raise BundleError(f"{str(path)!r} is there and is no bundle; choose another path")
    if not overwrite:
        raise BundleError(f"{str(path)!r} is there already; pass overwrite=True, or --overwrite")


def file_entry(path: Path) -> File:
    """What a manifest says of a file."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return File(digest.hexdigest(), size)


def open_bundle(path: Path, *, verify: bool = True) -> Manifest:
    """Read the manifest of a bundle and check the files.

    Raises:
        BundleError: a file is missing, was changed, or leads out of the folder.
    """
    manifest = read_manifest(path)
    with checked_files(path, manifest, verify=verify):
        return manifest


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of a bundle, and nothing else.

    Args:
        path: the folder.

    Raises:
        BundleError: there is no bundle, or its manifest is wrong.
    """
    if not path.is_dir():
        raise BundleError(f"{str(path)!r} is no folder; give the folder that ditc export wrote")
    if not os.path.lexists(path / MANIFEST):
        raise BundleError(f"{str(path)!r} has no {MANIFEST}, so it is no bundle")
    if _size(path, MANIFEST) > _MAX_MANIFEST:
        raise BundleError(f"{MANIFEST} is larger than any manifest; export the model again")
    try:
        data = read_json(path / MANIFEST, limit=_MAX_MANIFEST)
    except JsonError as error:
        raise BundleError(f"{MANIFEST} is no JSON: {error}; export the model again") from error
    return Manifest.from_data(data)


@contextlib.contextmanager
def checked_files(path: Path, manifest: Manifest, *, verify: bool = True) -> Iterator[None]:
    """Make sure that a bundle's files are those of its manifest.

    Every file lies directly in the folder and is a regular file: neither the manifest nor an ONNX
    model can lead a reader out of it. No file is unpickled here. The weights of ONNX models are
    large, and numbers alone: they are read while the block runs, all else before.

    Args:
        path: the folder.
        manifest: its manifest.
        verify: compare each file's hash; without it, sizes alone.

    Raises:
        BundleError: a file is missing, was changed, or leads out of the folder.
    """
    for name, entry in manifest.files.items():
        size = _size(path, name)
        if size != entry.bytes:
            raise BundleError(f"{name} has {size} bytes, not {entry.bytes}; copy the bundle again")
    hashed = dict(manifest.files) if verify else {}
    weights = hashed.pop(manifest.weights or "", None) if manifest.format == "onnx" else None
    for name, entry in hashed.items():
        _check_hash(path / name, entry)
    if manifest.format == "onnx":
        _check_models(path, manifest)
    with ThreadPoolExecutor(1) as pool:
        reading = (
            pool.submit(_check_hash, path / str(manifest.weights), weights) if weights else None
        )
        try:
            yield
        finally:
            if reading is not None:
                reading.result()  # damaged weights explain whatever failed in the block


def _check_hash(path: Path, entry: File) -> None:
    if file_entry(path) != entry:
        raise BundleError(f"{path.name} is not the file that was exported; copy the bundle again")


def _size(path: Path, name: str) -> int:
    """The size of a regular file in the folder."""
    try:
        found = os.lstat(path / name)
    except OSError as error:
        raise BundleError(f"{name} is missing from the bundle; copy it again") from error
    if not stat.S_ISREG(found.st_mode):
        raise BundleError(f"{name} is no regular file; a bundle holds no links and no folders")
    return found.st_size


def _check_models(path: Path, manifest: Manifest) -> None:
    sizes = {manifest.weights: manifest.files[manifest.weights].bytes} if manifest.weights else {}
    for name in dict.fromkeys(graph.file for graph in manifest.graphs.values()):
        check_model(name, (path / name).read_bytes(), sizes)
