"""torch's exporter, called for many graphs: quietly, and with its tables built once."""

from __future__ import annotations

import contextlib
import functools
import logging
import warnings
from collections.abc import Iterator
from typing import Any
from unittest import mock

import onnx_ir as ir
import torch
from torch.export import ExportedProgram


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without remarks on packages that are not installed and on the exporter's own internals."""
    noisy = [logging.getLogger(name) for name in ("torch.onnx._internal.exporter", "onnx_ir")]
    levels = [logger.level for logger in noisy]
    for logger in noisy:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(noisy, levels, strict=True):
            logger.setLevel(level)


def to_onnx(exported: ExportedProgram, opset: int) -> ir.Model:
    """The graph in ONNX, simplified, its inputs in order under names of the exporter's."""
    with _one_registry():
        program = torch.onnx.export(
            exported, dynamo=True, optimize=True, verbose=False, opset_version=opset
        )
    assert program is not None
    return program.model


def _one_registry() -> contextlib.AbstractContextManager[Any]:
    """Keep the exporter's table of translations, which it makes anew at each call for seconds.

    Nothing here adds to the table. Where torch keeps it elsewhere, exports are slower, no more.
    """
    build, home = _registry_builder()
    if build is None:
        return contextlib.nullcontext()
    return mock.patch.object(home, "from_torchlib", staticmethod(build))


@functools.cache
def _registry_builder() -> tuple[Any, Any]:
    """A caching version of the function that makes the table, and the class that has it."""
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        return functools.cache(ONNXRegistry.from_torchlib), ONNXRegistry
    except (ImportError, AttributeError):
        return None, None
