"""The text form of a pipeline: ``"fuse-qkv{min-siblings=3},fuse-adaln"``, parsed and printed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dit_compile.errors import PipelineError
from dit_compile.shown import shown

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_WORD = re.compile(r"[^\s,{}\[\]=\"]+")
_PLAIN = re.compile(r"[A-Za-z_./][A-Za-z0-9_./-]*")
#: Lists within each other.
_DEPTH = 16
_LITERALS = {"true": True, "false": False, "none": None}


@dataclass(frozen=True)
class Item:
    """One element of a pipeline's text: a name and its options."""

    name: str
    options: Mapping[str, Any]


def parse(text: str) -> list[Item]:
    """Parse a pipeline's text into items.

    Raises:
        PipelineError: with the text and a caret under the place that does not parse.
    """
    return _Parser(text).pipeline()


def print_item(name: str, options: Mapping[str, Any]) -> str:
    """The text of one item; :func:`parse` gives the same name and options back."""
    if not options:
        return name
    inner = ",".join(f"{key}={print_value(value)}" for key, value in options.items())
    return f"{name}{{{inner}}}"


def print_value(value: Any) -> str:
    """The text of one option's value."""
    if value is True or value is False or value is None:
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        return "[" + ",".join(print_value(item) for item in value) + "]"
    if isinstance(value, str):
        if _PLAIN.fullmatch(value) and _literal(value) == value:
            return value
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return repr(value)


class _Parser:
    """Recursive descent over the text; ``at`` is the next character."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def pipeline(self) -> list[Item]:
        items: list[Item] = []
        self._space()
        while self.at < len(self.text):
            items.append(self._item())
            if self.at < len(self.text):
                self._expect(",")
                if self.at == len(self.text):
                    self._fail("expected a pass after the comma")
        return items

    def _item(self) -> Item:
        name = self._match(_NAME, "a pass name")
        options: dict[str, Any] = {}
        if self._peek() == "{":
            self._expect("{")
            while self._peek() != "}":
                key = self._match(_NAME, "an option name")
                self._expect("=")
                if key in options:
                    self._fail(f"option {key!r} is given twice")
                options[key] = self._value()
                if self._peek() != "}":
                    self._expect(",", or_else="}")
            self._expect("}")
        return Item(name, options)

    def _value(self, depth: int = 0) -> Any:
        if self._peek() == "[":
            if depth == _DEPTH:
                self._fail(f"more than {_DEPTH} lists within each other")
            self._expect("[")
            values = []
            while self._peek() != "]":
                values.append(self._value(depth + 1))
                if self._peek() != "]":
                    self._expect(",", or_else="]")
            self._expect("]")
            return tuple(values)
        if self._peek() == '"':
            return self._quoted()
        return _literal(self._match(_WORD, "a value"))

    def _quoted(self) -> str:
        self.at += 1
        out = []
        while self.at < len(self.text) and self.text[self.at] != '"':
            self.at += self.text[self.at] == "\\"
            out.append(self.text[self.at : self.at + 1])
            self.at += 1
        if self.at >= len(self.text):
            self._fail("the string has no closing quote")
        self.at += 1
        self._space()
        return "".join(out)

    def _peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def _expect(self, char: str, *, or_else: str = "") -> None:
        if self._peek() != char:
            self._fail(f"expected {char!r}" + (f" or {or_else!r}" if or_else else ""))
        self.at += 1
        self._space()

    def _match(self, pattern: re.Pattern[str], what: str) -> str:
        found = pattern.match(self.text, self.at)
        if found is None:
            self._fail(f"expected {what}")
        assert found is not None
        self.at = found.end()
        self._space()
        return found.group()

    def _space(self) -> None:
        while self._peek().isspace():
            self.at += 1

    def _fail(self, reason: str) -> None:
        parts = self.text[: self.at], self.text[self.at :]
        before, behind = (shown(part.replace("\n", " ")) for part in parts)
        raise PipelineError(f"pipeline text: {reason}\n  {before}{behind}\n  {' ' * len(before)}^")


def _literal(word: str) -> Any:
    if word in _LITERALS:
        return _LITERALS[word]
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word
