"""What calibration recorded, as a file of tensors: another threshold then needs no sampling."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from dit_compile.calibration.measured import Measured
from dit_compile.errors import PlanError

#: What was recorded, by the text of the pipeline that recorded it.
Measurements = Mapping[str, Measured]


def pack(measurements: Measurements) -> bytes:
    """A safetensors file, all float64.

    Its metadata's ``recordings`` lists the pipelines; of number i it holds ``i.times`` [steps],
    ``i.changes.<group>`` [steps, distances], not a number past the last step, and
    ``i.ratios.<group>`` [steps] and ``i.products.<group>`` [steps, steps].
    """
    tensors: dict[str, np.ndarray] = {}
    for number, measured in enumerate(measurements.values()):
        tensors[f"{number}.times"] = np.array(measured.times, np.float64)
        for group, rows in measured.changes.items():
            tensors[f"{number}.changes.{group}"] = _square(rows)
        for group, ratios in measured.ratios.items():
            tensors[f"{number}.ratios.{group}"] = np.array(ratios, np.float64)
        for group, products in measured.products.items():
            tensors[f"{number}.products.{group}"] = np.array(products, np.float64)
    return save(tensors, {"recordings": json.dumps(list(measurements))})


def unpack(path: Path, sha256: str) -> dict[str, Measured]:
    """Read what :func:`pack` made.

    Args:
        path: the file.
        sha256: what the file must hash to.

    Raises:
        PlanError: it is another file, or no such file.
    """
    try:
        if digest(path.read_bytes()) != sha256:
            raise PlanError(f"the measurements {str(path)!r} are not those of the plan beside them")
        with safe_open(path, "np") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            recordings: list[str] = json.loads(file.metadata()["recordings"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise PlanError(f"cannot read the measurements {str(path)!r}: {error}") from None
    return {text: _measured(tensors, f"{i}.") for i, text in enumerate(recordings)}


def digest(data: bytes) -> str:
    """What tells one file from another."""
    return hashlib.sha256(data).hexdigest()


def _square(rows: Sequence[Sequence[float]]) -> np.ndarray:
    square = np.full((len(rows), max(map(len, rows), default=0)), np.nan)
    for row, values in zip(square, rows, strict=True):
        row[: len(values)] = values
    return square


def _measured(tensors: Mapping[str, np.ndarray], prefix: str) -> Measured:
    def groups(what: str) -> dict[str, np.ndarray]:
        start = f"{prefix}{what}."
        return {
            name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)
        }

    return Measured(
        tensors[f"{prefix}times"].tolist(),
        {
            group: [row[: len(rows) - 1 - step].tolist() for step, row in enumerate(rows)]
            for group, rows in groups("changes").items()
        },
        {group: ratios.tolist() for group, ratios in groups("ratios").items()},
        {group: products.tolist() for group, products in groups("products").items()},
    )
