"""The fusions on cases of the zoo."""

from __future__ import annotations

from dit_compile.ir.program import placeholders
from tests.analysis.structures import captured
from tests.passes.irtest import Rewritten, rewrite_on

CLEANUP = "remove-noops,eliminate-common,fuse-qkv,fuse-adaln,eliminate-dead"


def on_family(name: str, passes: str) -> Rewritten:
    """A case of the zoo, with passes behind the cleanup, all compared with float64."""
    program, values = captured(name)
    names = [node.name for node in placeholders(program.main)]
    return rewrite_on(f"{CLEANUP},{passes}", program, dict(zip(names, values, strict=True)))
