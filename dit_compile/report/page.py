"""The report as one page for a browser: no server, no network, one style, one script."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from pathlib import Path
from string import Template

from dit_compile.errors import ReportError
from dit_compile.files import write_atomically
from dit_compile.report.codec import to_json
from dit_compile.report.model import Report

#: The script's parts in the order in which they are joined.
SCRIPTS = (
    *("dom.js", "data.js", "diff.js", "charts.js", "inspector.js", "views.js", "samples.js"),
    "app.js",
)
#: Characters that could end the element that holds the data, or a line of JavaScript in it.
_ESCAPED = "<>&\u2028\u2029"


def page(report: Report) -> str:
    """The page. Nothing in it is loaded from anywhere, and only its own script may run."""
    style = _part("page.css")
    script = '"use strict";\n' + "\n".join(map(_part, SCRIPTS))
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src '{_hash(script)}'",
            f"style-src '{_hash(style)}'",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    return Template(_part("page.html")).substitute(
        POLICY=policy, STYLE=style, SCRIPT=script, REPORT=embedded(report)
    )


def embedded(report: Report) -> str:
    """The report as JSON that is safe inside of a ``script`` element, whatever it contains."""
    text = to_json(report)
    for char in _ESCAPED:
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def write_page(report: Report, path: str | Path) -> None:
    """Write the page to a file, whole or not at all.

    Raises:
        ReportError: the file cannot be written.
    """
    try:
        write_atomically(Path(path), page(report))
    except OSError as error:
        raise ReportError(f"cannot write {str(path)!r}: {error}") from error


def _part(name: str) -> str:
    return files("dit_compile.report").joinpath("web", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
