"""Reading JSON that others wrote: whatever it holds, it is read as declared or refused.

All of ditc's files are read here: reports, plans, manifests, masks, measurements. Nothing but
:class:`JsonError` is raised, so that each reader can say in its own words what to do.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import stat
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Union, get_args, get_origin

#: Bytes of the largest file that is read.
LIMIT = 256 << 20
#: Lists and objects within each other; what walks the data afterwards may then recurse.
_DEPTH = 100
_LARGEST = 1 << 63

#: Reads data as a type, at a place that is named in errors.
Reader = Callable[[Any, str], Any]


class JsonError(ValueError):
    """Why a text is not the JSON that was expected."""


def read_json(path: str | os.PathLike[str], *, limit: int = LIMIT, finite: bool = True) -> Any:
    """What the JSON file at ``path`` holds; see :func:`parse_json`.

    Raises:
        JsonError: there is no such file, it is none to read as a whole, or it holds something else.
    """
    try:
        with open(path, "rb", opener=_opened) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise JsonError("it is no regular file")
            content = file.read(limit + 1)
        if len(content) > limit:
            raise JsonError(f"it has more than {limit >> 20} MiB")
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise JsonError(error.strerror or str(error)) from None
    except UnicodeDecodeError as error:
        raise JsonError(f"it is no text in UTF-8: {error.reason} at byte {error.start}") from None
    except JsonError:
        raise
    except ValueError as error:  # a path with a zero byte
        raise JsonError(str(error)) from None
    return parse_json(text, finite=finite)


def parse_json(text: str, *, finite: bool = True) -> Any:
    """What a JSON text holds, if others can read it too.

    Args:
        text: the text; the mark of its byte order is skipped.
        finite: refuse ``NaN`` and infinities, which JSON does not have but Python writes.

    Raises:
        JsonError: it is no JSON, is nested too deeply, gives a key twice, or has a number of more
            than 64 bits or half of a surrogate pair.
    """
    try:
        data = json.loads(text.removeprefix("\ufeff"), object_pairs_hook=_unique)
    except RecursionError:
        raise JsonError("it is nested too deeply") from None
    except JsonError:
        raise
    except ValueError as error:  # numbers of thousands of digits among them
        raise JsonError(str(error).partition(";")[0]) from None
    _check_values(data, finite)
    return data


def read_as(
    hint: Any, data: Any, place: str, special: Mapping[Any, Reader] = types.MappingProxyType({})
) -> Any:
    """``data`` as a value of the type ``hint``: plain ones, dataclasses, and collections of these.

    Args:
        hint: the type.
        data: what :func:`parse_json` returned.
        place: what it is called in errors.
        special: readers of types that are not among these.

    Raises:
        JsonError: it is none.
    """
    if hint is Any:
        return data
    if hint in special:
        return special[hint](data, place)
    if hint in PLAIN:
        return _scalar(hint, data, place)
    if dataclasses.is_dataclass(hint):
        return _object(hint, data, place, special)
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if data is None and type(None) in args:
            return None
        return read_as(next(a for a in args if a is not type(None)), data, place, special)
    if origin in (list, tuple, Sequence):
        if not isinstance(data, list):
            raise wrong_type(place, "a list", data)
        items = [read_as(args[0], item, f"{place}[{i}]", special) for i, item in enumerate(data)]
        return tuple(items) if origin is tuple else items
    if not isinstance(data, dict):
        raise wrong_type(place, "an object", data)
    return {key: read_as(args[1], item, f"{place}.{key}", special) for key, item in data.items()}


#: What JSON calls the types of plain values.
PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}


def wrong_type(place: str, wanted: str, data: Any) -> JsonError:
    """The error for data of another type."""
    return JsonError(f"{place} must be {wanted}, not {type(data).__name__}")


@cache
def hints_of(cls: Any) -> dict[str, Any]:
    """The types of a dataclass's fields."""
    return typing.get_type_hints(cls)


@cache
def defaults_of(cls: Any) -> tuple[tuple[str, Any], ...]:
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


def _opened(path: str, flags: int) -> int:
    """Open without waiting for whoever writes to a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise JsonError(f"it gives {twice!r} twice")
    return found


def _check_values(data: Any, finite: bool) -> None:
    """Refuse, level by level, what later code could not compute with, print or walk."""
    level, depth = [data], 0
    while level:
        if depth > _DEPTH:
            raise JsonError("it is nested too deeply")
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += item.keys()
                below += item.values()
            elif isinstance(item, list):
                below += item
            else:
                _check_value(item, finite)
        level, depth = below, depth + 1


def _check_value(item: Any, finite: bool) -> None:
    if isinstance(item, str):
        if not item.isascii() and any("\ud800" <= char <= "\udfff" for char in item):
            raise JsonError("it has half of a surrogate pair")
    elif isinstance(item, float):
        if finite and not math.isfinite(item):
            raise JsonError(f"it has the number {item}, which JSON does not")
    elif isinstance(item, int) and not -_LARGEST <= item < _LARGEST:
        raise JsonError("it has a number of more than 64 bits")


def _scalar(kind: type, data: Any, place: str) -> Any:
    accepted = (int, float) if kind is float else kind
    if not isinstance(data, accepted) or (isinstance(data, bool) and kind is not bool):
        raise wrong_type(place, PLAIN[kind], data)
    return data


def _object(cls: Any, data: Any, place: str, special: Mapping[Any, Reader]) -> Any:
    if not isinstance(data, dict):
        raise wrong_type(place, "an object", data)
    hints = hints_of(cls)
    for name in data:
        if name not in hints:
            raise JsonError(f"{place} has an unknown field {name!r}")
    for name, default in defaults_of(cls):
        if default is dataclasses.MISSING and name not in data:
            raise JsonError(f"{place} lacks the field {name!r}")
    given = {
        name: read_as(hints[name], item, f"{place}.{name}", special) for name, item in data.items()
    }
    return cls(**given)
