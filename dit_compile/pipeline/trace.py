"""Tells torch's own logs what each pass did: ``tlparse`` lists the passes with their stages."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from torch._logging._internal import trace_structured

from dit_compile.ir.printer import print_program
from dit_compile.ir.program import Program
from dit_compile.pipeline.pipeline import PassRecord
from dit_compile.report.diff import diff_lines
from dit_compile.report.model import Rewrite

#: Shown by ``TORCH_LOGS="dit_compile"``, with diffs by ``TORCH_LOGS="+dit_compile"``. No shorter
#: name can be registered: torch reads the setting while it is imported, and refuses what is then
#: neither a log of its own nor a module that can be found.
log = logging.getLogger("dit_compile.passes")


@dataclass
class Trace:
    """Writes to torch's structured trace and to its logs; free when both are off.

    With ``TORCH_TRACE`` set, each stage is an artifact ``ditc_<position>_<pass>`` beside those that
    Dynamo and Inductor write.
    """

    _position: int = field(default=-1)

    def start(self, program: Program) -> None:
        """Write the captured Program."""
        self._position = -1
        _artifact("ditc_captured", lambda: print_program(program))

    def after(self, record: PassRecord, program: Program) -> None:
        """Write what a pass did, and what it left."""
        self._position += 1
        log.info(
            "#%d %s (%s): %d rewrites, %d near misses%s%s",
            self._position,
            record.item,
            record.item.kind.value,
            len(record.rewrites),
            len(record.misses),
            "" if record.changed else ", no change",
            "".join(f"; {note}" for note in record.notes),
        )
        for miss in record.misses:
            log.debug("near miss at %%%s (%s): %s", miss.node, miss.path, miss.reason)
        if not record.changed:
            return
        title = f"#{self._position} {record.item.name}"
        lines = _diff(title, record) if log.isEnabledFor(logging.DEBUG) else []
        for line in lines:
            log.debug("%s", line)
        _artifact(
            f"ditc_{self._position}_{record.item.name}",
            lambda: "\n".join([*_diff(title, record), "", print_program(program)]),
        )


def _artifact(name: str, payload: Callable[[], str]) -> None:
    trace_structured(
        "artifact",
        metadata_fn=lambda: {"name": name, "encoding": "string"},
        payload_fn=payload,
        expect_trace_id=False,
    )


def _diff(title: str, record: PassRecord) -> list[str]:
    rewrites = [Rewrite(r.graph, r.path, r.removed, r.added, r.source) for r in record.rewrites]
    return diff_lines(title, rewrites)
