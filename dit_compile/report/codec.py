"""Reading and writing a report: JSON with its fields checked, and the schema made from the model.

Fields that hold their default are left out of the JSON.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

from dit_compile.errors import ReportError
from dit_compile.report import model
from dit_compile.report.model import VERSION, Report

T = TypeVar("T")


def plain_fields(value: Any) -> dict[str, Any]:
    """A dataclass as JSON has it, without fields that hold their default; for ``json.dumps``."""
    if isinstance(value, Mapping):
        return dict(value)
    return {
        name: item
        for name, default in _defaults(value.__class__)
        if (item := getattr(value, name)) != default or default is dataclasses.MISSING
    }


def to_json(report: Report, *, indent: int | None = None) -> str:
    """The text of ``report.json``."""
    separators = (",", ":") if indent is None else None
    return json.dumps(
        {"version": VERSION, **plain_fields(report)},
        indent=indent,
        separators=separators,
        allow_nan=False,
        default=plain_fields,
    )


def from_json(text: str, *, what: str = "the report") -> Report:
    """Read what :func:`to_json` wrote.

    Raises:
        ReportError: it is not JSON, of another version, or a field is missing or has another type.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ReportError(f"{what} is not JSON: {error}") from error
    if not isinstance(data, dict) or "version" not in data:
        raise ReportError(f"{what} is not a report of ditc; `ditc explain --json` writes one")
    if data["version"] != VERSION:
        raise ReportError(
            f"{what} has version {data['version']}, this ditc reads version {VERSION}; make it "
            "again with `ditc explain --json`"
        )
    report: Report = _read(Report, data, what)
    return report


def load(path: str | Path) -> Report:
    """Read a report from a file.

    Raises:
        ReportError: the file is missing or is no report.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ReportError(f"cannot read {str(path)!r}: {error}") from error
    return from_json(text, what=str(path))


# --- the schema ------------------------------------------------------------------------------


def schema() -> dict[str, Any]:
    """The JSON schema of a report, made from the dataclasses of the model."""
    classes = [
        item
        for item in vars(model).values()
        if dataclasses.is_dataclass(item) and item is not Report
    ]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "ditc report",
        "description": _summary(Report),
        **_object_schema(Report),
        "$defs": {
            "Argument": {
                "description": "a constant's text, %12 for the value 12, or a list of these",
                "anyOf": [
                    {"type": "string"},
                    {"type": "array", "items": {"$ref": "#/$defs/Argument"}},
                ],
            },
            **{
                str(getattr(item, "__name__", "")): {
                    "description": _summary(item),
                    **_object_schema(item),
                }
                for item in classes
            },
        },
    }


def _object_schema(cls: Any) -> dict[str, Any]:
    hints = _hints(cls)
    required = [name for name, default in _defaults(cls) if default is dataclasses.MISSING]
    properties = {name: _type_schema(hint) for name, hint in hints.items()}
    if cls is Report:
        properties["version"] = {"const": VERSION}
        required.append("version")
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}


def _type_schema(hint: Any) -> dict[str, Any]:
    if hint is Any:
        return {}
    if hint == model.Argument:
        return {"$ref": "#/$defs/Argument"}
    if hint in _PLAIN:
        return {"type": _PLAIN[hint]}
    if dataclasses.is_dataclass(hint):
        return {"$ref": f"#/$defs/{getattr(hint, '__name__', '')}"}
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return {"anyOf": [_type_schema(arg) for arg in args]}
    if origin is list:
        return {"type": "array", "items": _type_schema(args[0])}
    return {"type": "object", "additionalProperties": _type_schema(args[1])}


def _summary(cls: Any) -> str:
    return (cls.__doc__ or "").strip().splitlines()[0]


# --- reading ---------------------------------------------------------------------------------


def _read(hint: Any, data: Any, place: str) -> Any:
    """``data`` as a value of the type ``hint``.

    Raises:
        ReportError: it is none.
    """
    if hint is Any:
        return data
    if hint == model.Argument:
        return _argument(data, place)
    if hint in _PLAIN:
        return _scalar(hint, data, place)
    if dataclasses.is_dataclass(hint):
        return _object(hint, data, place)
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if data is None and type(None) in args:
            return None
        return _read(next(arg for arg in args if arg is not type(None)), data, place)
    if origin is list:
        if not isinstance(data, list):
            raise _wrong(place, "a list", data)
        return [_read(args[0], item, f"{place}[{i}]") for i, item in enumerate(data)]
    if not isinstance(data, dict):
        raise _wrong(place, "an object", data)
    return {key: _read(args[1], item, f"{place}.{key}") for key, item in data.items()}


def _scalar(kind: type, data: Any, place: str) -> Any:
    accepted = (int, float) if kind is float else kind
    if not isinstance(data, accepted) or (isinstance(data, bool) and kind is not bool):
        raise _wrong(place, _PLAIN[kind], data)
    return data


def _object(cls: Any, data: Any, place: str) -> Any:
    if not isinstance(data, dict):
        raise _wrong(place, "an object", data)
    hints = _hints(cls)
    for name in data:
        if name not in hints:
            raise ReportError(f"{place} has an unknown field {name!r}")
    for name, default in _defaults(cls):
        if default is dataclasses.MISSING and name not in data:
            raise ReportError(f"{place} lacks the field {name!r}")
    return cls(**{name: _read(hints[name], item, f"{place}.{name}") for name, item in data.items()})


def _argument(data: Any, place: str) -> Any:
    if isinstance(data, list):
        return [_argument(item, place) for item in data]
    if isinstance(data, str):
        return data
    raise _wrong(place, "a string or a list", data)


def _wrong(place: str, wanted: str, data: Any) -> ReportError:
    return ReportError(f"{place} must be {wanted}, not {type(data).__name__}")


@cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


@cache
def _defaults(cls: Any) -> tuple[tuple[str, Any], ...]:
    """Each field's name and default; ``MISSING`` where it must be given."""
    return tuple(
        (
            item.name,
            item.default_factory()
            if item.default_factory is not dataclasses.MISSING
            else item.default,
        )
        for item in dataclasses.fields(cls)
    )


if __name__ == "__main__":
    _SCHEMA = Path(__file__).with_name("report.schema.json")
    _SCHEMA.write_text(json.dumps(schema(), indent=1) + "\n", encoding="utf-8")
