"""Checks data against a JSON schema: the keywords that ours uses, and an error for any other."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

_TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda v: isinstance(v, dict),
    "array": lambda v: isinstance(v, list),
    "string": lambda v: isinstance(v, str),
    "boolean": lambda v: isinstance(v, bool),
    "integer": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "number": lambda v: isinstance(v, (int, float)) and not isinstance(v, bool),
    "null": lambda v: v is None,
}


def violation(data: Any, schema: Mapping[str, Any]) -> str | None:
    """Where and how ``data`` breaks ``schema``; ``None`` if it does not."""
    return next(_violations(data, schema, schema, "$"), None)


def _violations(
    data: Any, schema: Mapping[str, Any], root: Mapping[str, Any], where: str
) -> Iterator[str]:
    for keyword, rule in schema.items():
        if data is None and keyword != "type" and "type" in schema:
            return  # allowed by its type, and empty
        if keyword == "$ref":
            yield from _violations(data, root["$defs"][rule.removeprefix("#/$defs/")], root, where)
        elif keyword in ("properties", "items", "additionalProperties"):
            yield from _nested(data, keyword, rule, schema, root, where)
        elif keyword not in ("$schema", "$id", "$defs", "title", "description"):
            reason = _CHECKS[keyword](data, rule)
            if reason:
                yield f"{where} {reason}"
                return


def _nested(
    data: Any,
    keyword: str,
    rule: Any,
    schema: Mapping[str, Any],
    root: Mapping[str, Any],
    where: str,
) -> Iterator[str]:
    if keyword == "items":
        for position, item in enumerate(data):
            yield from _violations(item, rule, root, f"{where}[{position}]")
        return
    declared = schema.get("properties", {})
    for key, item in data.items():
        if keyword == "properties" and key in rule:
            yield from _violations(item, rule[key], root, f"{where}.{key}")
        elif keyword == "additionalProperties" and key not in declared:
            if rule is False:
                yield f"{where} has an unknown key {key!r}"
            else:
                yield from _violations(item, rule, root, f"{where}.{key}")


def _wrong_type(data: Any, rule: Any) -> str:
    names = [rule] if isinstance(rule, str) else rule
    return "" if any(_TYPES[name](data) for name in names) else f"is not {' or '.join(names)}"


def _wrong_keys(data: Any, rule: Any) -> str:
    missing = [key for key in rule if key not in data]
    return f"lacks {missing[0]!r}" if missing else ""


def _wrong_names(data: Any, rule: Any) -> str:
    bad = [key for key in data if not re.fullmatch(rule["pattern"], key)]
    return f"has the key {bad[0]!r}, which must match {rule['pattern']}" if bad else ""


def _wrong_text(data: Any, rule: Any) -> str:
    wrong = isinstance(data, str) and not re.fullmatch(rule, data)
    return f"is {data!r}, which must match {rule}" if wrong else ""


def _too_small(data: Any, rule: Any) -> str:
    wrong = isinstance(data, (int, float)) and data < rule
    return f"is {data}, less than {rule}" if wrong else ""


#: In schemas ``type`` comes first, so that the other checks see data of that type.
_CHECKS: dict[str, Callable[[Any, Any], str]] = {
    "type": _wrong_type,
    "required": _wrong_keys,
    "propertyNames": _wrong_names,
    "pattern": _wrong_text,
    "minimum": _too_small,
    "enum": lambda data, rule: "" if data in rule else f"is {data!r}, not one of {rule}",
}
