"""What an ONNX file refers to, read from its bytes, so that no runtime follows a hostile path.

ONNX is protocol buffers: a message is a sequence of fields, each a number, a wire type and a
payload. Only the few fields that lead to tensors and operators' domains are looked into.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from dit_compile.errors import BundleError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_DEPTH = 64

#: For each message, the fields that hold messages of interest, by number.
_FIELDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 8: "opset", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 9: "opset", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external"},
}
#: At most 64 bits: Python refuses to read numbers of thousands of digits.
_POSITION = re.compile("[0-9]{1,19}")
_DOMAINS = ("", "ai.onnx", "com.microsoft", "pkg.onnxscript.torch_lib.common")
#: Operators that read files or run code of their own.
_REFUSED = (b"EPContext", b"PyOp")


def check_model(name: str, data: bytes, files: Mapping[str, int]) -> None:
    """Make sure that a model reads nothing but the files that it may, and runs known operators.

    Args:
        name: what to call the model in errors.
        data: its bytes.
        files: sizes of the files that its external data may lie in, by name.

    Raises:
        BundleError: it refers to anything else, or is no ONNX file.
    """
    try:
        for kind, message in _messages("model", memoryview(data), 0):
            if kind == "external":
                _check_external(name, message, files)
            elif kind == "opset":
                domain = _text(message, 1)
                if domain not in _DOMAINS:
                    raise BundleError(f"{name} uses operators of {domain!r}, which are not known")
            elif kind == "node":
                operator = _payload(message, 4)
                if bytes(operator) in _REFUSED:
                    raise BundleError(f"{name} uses {bytes(operator).decode()}, which may run code")
    except (IndexError, UnicodeDecodeError) as error:
        raise BundleError(
            f"{name} is no ONNX file, or a part of one; copy the bundle again"
        ) from error


def _check_external(name: str, message: memoryview, files: Mapping[str, int]) -> None:
    entries: dict[str, str] = {}
    for field, payload in _fields(message):
        if field == 13 and isinstance(payload, memoryview):
            key = _text(payload, 1)
            if key in entries:
                raise BundleError(f"{name} gives the {key} of a tensor twice")
            entries[key] = _text(payload, 2)
    location = entries.get("location", "")
    if location not in files:
        raise BundleError(f"{name} refers to the file {location!r}, which is not the bundle's")
    numbers = [entries.get(key, "0") for key in ("offset", "length")]
    if not all(map(_POSITION.fullmatch, numbers)):
        raise BundleError(f"{name} refers to {location} by {numbers}, which are no positions")
    if sum(map(int, numbers)) > files[location]:
        raise BundleError(f"{name} refers to bytes behind the end of {location}")


def _messages(kind: str, data: memoryview, depth: int) -> Iterator[tuple[str, memoryview]]:
    """The nodes, opset imports and tensors with external data in a message, at any depth."""
    if depth > _MAX_DEPTH:
        raise IndexError("nested too deeply")
    external = False
    for field, payload in _fields(data):
        inner = _FIELDS[kind].get(field)
        if inner is None or not isinstance(payload, memoryview):
            external |= kind == "tensor" and field == 14 and payload == 1
        elif inner == "external":
            external = True
        elif inner == "opset":
            yield inner, payload
        else:
            if inner == "node":
                yield inner, payload
            yield from _messages(inner, payload, depth + 1)
    if external:
        yield "external", data


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """The fields of a message: number, and payload as bytes or as a number."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        field, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, position = _varint(data, position)
            yield field, value
            continue
        if wire == _BYTES:
            size, position = _varint(data, position)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise IndexError("unknown wire type")
        if position + size > len(data):
            raise IndexError("cut off")
        yield field, data[position : position + size]
        position += size


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise IndexError("a number of more than 64 bits")


def _payload(message: memoryview, number: int) -> memoryview:
    """The last payload of a field, as protocol buffers read it; empty if it is absent."""
    found = memoryview(b"")
    for field, payload in _fields(message):
        if field == number and isinstance(payload, memoryview):
            found = payload
    return found


def _text(message: memoryview, number: int) -> str:
    return bytes(_payload(message, number)).decode()
