"""The caller's tensors as numpy arrays, and how a Session holds them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dit_compile.bundle.manifest import Value
from dit_compile.errors import OptionError, suggest
from dit_compile.runtime.content import Content, same_value


@dataclass(frozen=True)
class HeldArray:
    """An earlier input, compared by content: nothing records writes into an array."""

    value: object

    @classmethod
    def of(cls, value: object) -> HeldArray:
        """Hold an input as it is now."""
        return cls(Content.of(value) if isinstance(value, np.ndarray) else value)

    def same(self, value: object) -> bool:
        """Whether ``value`` has the same content for certain."""
        if isinstance(value, np.ndarray):
            return isinstance(self.value, Content) and self.value.same(value)
        return same_value(self.value, value)


def array_elements(array: Any, places: Any) -> Any:
    """Elements of an array by their places in it, flat, in float64."""
    taken = array.reshape(-1)[places]
    return (taken.real if np.iscomplexobj(taken) else taken).astype(np.float64)


def is_torch(value: object) -> bool:
    """Whether ``value`` is a tensor of torch, which is not imported to find out."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def as_array(spec: Value, value: Any) -> np.ndarray[Any, Any]:
    """``value`` as a contiguous array of the type and shape that ``spec`` states.

    Raises:
        OptionError: it has another type or shape.
    """
    if is_torch(value):
        value = value.detach().cpu()
        if value.is_floating_point() and value.itemsize == 2 and spec.dtype == "float32":
            value = value.float()  # a model in half precision was exported in single
        value = value.contiguous()
    if isinstance(value, (int, float, list, tuple)):
        value = np.asarray(value, dtype=spec.dtype)
    array = value if isinstance(value, np.ndarray) else np.from_dlpack(value)
    check(spec, array.dtype.name, array.shape)
    return np.ascontiguousarray(array)


def check(spec: Value, dtype: str, shape: Sequence[int]) -> None:
    """Make sure that a tensor is of the type and shape that ``spec`` states.

    Raises:
        OptionError: it is not.
    """
    if dtype != spec.dtype:
        raise OptionError(f"{spec.path} takes {spec.dtype}, not {dtype}; convert it")
    fixed = [(a, b) for a, b in zip(spec.shape, shape, strict=False) if isinstance(a, int)]
    if len(spec.shape) != len(shape) or any(a != b for a, b in fixed):
        raise OptionError(
            f"{spec.path} takes the shape {list(spec.shape)}, not {list(shape)}; export with "
            "dynamic_shapes to vary it"
        )


def check_sizes(inputs: Sequence[Value], values: Mapping[str, Any]) -> None:
    """Make sure that sizes of one name are equal, which compiled graphs rely on unseen.

    Raises:
        OptionError: two inputs have different sizes where they must agree.
    """
    known: dict[str, tuple[int, str]] = {}
    for spec in inputs:
        for name, size in zip(spec.shape, values[spec.name].shape, strict=True):
            if not isinstance(name, str) or not name.isidentifier():
                continue
            first, path = known.setdefault(name, (size, spec.path))
            if size != first:
                raise OptionError(
                    f"{spec.path} has {size} where {path} has {first}; these sizes must be equal"
                )


def bound(
    inputs: Sequence[Value],
    fixed: Mapping[str, Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> dict[str, Any]:
    """The caller's arguments by the names of the inputs.

    Args:
        inputs: what must be given, in order.
        fixed: arguments that may be given with these values alone.
        args: values in order.
        kwargs: values by name or path.

    Raises:
        OptionError: an argument is missing, unknown, given twice, or was fixed to another value.
    """
    paths = {spec.path: spec.name for spec in inputs} | {spec.name: spec.name for spec in inputs}
    if len(args) > len(inputs):
        raise OptionError(f"takes {len(inputs)} tensors, not {len(args)}")
    values = {spec.name: value for spec, value in zip(inputs, args, strict=False)}
    for key, value in kwargs.items():
        if key in fixed:
            if type(value) is not type(fixed[key]) or value != fixed[key]:
                raise OptionError(f"{key} was {fixed[key]!r} at export and cannot be {value!r} now")
            continue
        if key not in paths:
            known = [*paths, *fixed]
            raise OptionError(f"unknown argument {key!r}{suggest(key, known)}")
        if paths[key] in values:
            raise OptionError(f"{key} is given twice")
        values[paths[key]] = value
    for spec in inputs:
        if spec.name not in values:
            raise OptionError(f"{spec.path} is missing: {spec.dtype} {list(spec.shape)}")
    return values
