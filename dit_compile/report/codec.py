"""Reading and writing a report: JSON with its fields checked, and the schema made from the model.

Fields that hold their default are left out of the JSON.
"""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from dit_compile.errors import ReportError
from dit_compile.files import write_atomically
from dit_compile.json_files import (
    PLAIN,
    JsonError,
    defaults_of,
    hints_of,
    parse_json,
    read_as,
    read_json,
    wrong_type,
)
from dit_compile.report import model
from dit_compile.report.model import VERSION, Report
from dit_compile.report.references import check_references


def plain_fields(value: Any) -> dict[str, Any]:
    """A dataclass as JSON has it, without fields that hold their default; for ``json.dumps``."""
    if isinstance(value, Mapping):
        return dict(value)
    return {
        name: item
        for name, default in defaults_of(value.__class__)
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
        ReportError: it is not JSON, of another version, a field is missing or has another type, or
            something that it names is not there.
    """
    try:
        data = parse_json(text)
    except JsonError as error:
        raise ReportError(f"{what} is not JSON: {error}") from error
    return _from_data(data, what)


def load(path: str | Path) -> Report:
    """Read a report from a file.

    Raises:
        ReportError: the file is missing or is no report.
    """
    try:
        data = read_json(path)
    except JsonError as error:
        raise ReportError(f"cannot read {str(path)!r}: {error}") from error
    return _from_data(data, str(path))


def _from_data(data: Any, what: str) -> Report:
    if not isinstance(data, dict) or "version" not in data:
        raise ReportError(f"{what} is not a report of ditc; `ditc explain --json` writes one")
    if data["version"] != VERSION:
        raise ReportError(
            f"{what} has version {data['version']}, this ditc reads version {VERSION}; make it "
            "again with `ditc explain --json`"
        )
    try:
        report: Report = read_as(Report, data, what, {model.Argument: _argument})
        check_references(report)
    except JsonError as error:
        raise ReportError(str(error)) from error
    return report


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
    hints = hints_of(cls)
    required = [name for name, default in defaults_of(cls) if default is dataclasses.MISSING]
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


def _type_schema(hint: Any) -> dict[str, Any]:
    if hint is Any:
        return {}
    if hint == model.Argument:
        return {"$ref": "#/$defs/Argument"}
    if hint in PLAIN:
        return {"type": PLAIN[hint]}
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


def _argument(data: Any, place: str) -> Any:
    if isinstance(data, list):
        return [_argument(item, place) for item in data]
    if isinstance(data, str):
        return data
    raise wrong_type(place, "a string or a list", data)


if __name__ == "__main__":
    _SCHEMA = Path(__file__).with_name("report.schema.json")
    write_atomically(_SCHEMA, json.dumps(schema(), indent=1) + "\n")
