"""Reports of ``torch.compile``: one file for each graph."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

from dit_compile.errors import OptionError, ReportError
from dit_compile.files import write_atomically
from dit_compile.report.codec import to_json
from dit_compile.report.model import Report
from dit_compile.report.page import page

_RENDER = {".html": page, ".json": to_json}
_lock = threading.Lock()
#: How many graphs of this process have been written for each file that was asked for.
_written: Counter[Path] = Counter()


def check_target(path: str) -> None:
    """Check the name of the file before a model is traced for minutes.

    Raises:
        OptionError: the ending is not known, or the folder does not exist.
    """
    target = Path(path)
    if target.suffix not in _RENDER:
        raise OptionError(f"report={path!r} must end in {' or '.join(_RENDER)}")
    if not target.absolute().parent.is_dir():
        raise OptionError(f"report={path!r}: the folder {str(target.parent)!r} does not exist")


def write_numbered(report: Report, path: str) -> Path:
    """Write a report; the second graph of this process goes to ``name.2.html``, and so on.

    Returns:
        The file that was written.

    Raises:
        ReportError: it cannot be written.
    """
    target = Path(path).absolute()
    with _lock:
        _written[target] += 1
        number = _written[target]
    if number > 1:
        target = target.with_name(f"{target.stem}.{number}{target.suffix}")
    try:
        write_atomically(target, _RENDER[target.suffix](report))
    except OSError as error:
        raise ReportError(f"cannot write {str(target)!r}: {error}") from error
    return target
