"""What calibration recorded, as a file of tensors: another threshold then needs no sampling."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from dit_compile.calibration.measured import Measured
from dit_compile.errors import PlanError
from dit_compile.json_files import JsonError, parse_json, read_as

#: What was recorded, by the text of the pipeline that recorded it.
Measurements = Mapping[str, Measured]

_DIMENSIONS = {"times": 1, "changes": 2, "ratios": 1, "products": 2}


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
        if not path.is_file():
            raise JsonError("it is no regular file")
        if digest(path.read_bytes()) != sha256:
            raise PlanError(f"the measurements {str(path)!r} are not those of the plan beside them")
        with safe_open(path, "np") as file:
            listed = parse_json((file.metadata() or {}).get("recordings", "null"))
            recordings = read_as(list[str], listed, "recordings")
            tensors = {name: _checked(name, file.get_tensor(name)) for name in sorted(file.keys())}
        return {text: _measured(tensors, f"{i}.") for i, text in enumerate(recordings)}
    except PlanError:
        raise
    except KeyError as error:
        raise PlanError(f"the measurements {str(path)!r} lack {error}") from None
    except Exception as error:  # safetensors raises whatever numpy does for types it has not
        raise PlanError(f"cannot read the measurements {str(path)!r}: {error}") from None


def _checked(name: str, tensor: np.ndarray) -> np.ndarray:
    """A tensor of the type and number of dimensions that :func:`pack` gives one of its name.

    Raises:
        JsonError: it is another.
    """
    what = name.split(".")[1] if name.count(".") else ""
    if tensor.dtype != np.float64 or tensor.ndim != _DIMENSIONS.get(what):
        raise JsonError(f"{name} is {tensor.dtype} of {tensor.ndim} dimensions")
    return tensor


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
