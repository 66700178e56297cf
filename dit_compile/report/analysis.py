"""What the analyses found in a model, for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dit_compile.errors import ReportError
from dit_compile.report.terminal import plain


def print_analysis(analysis: Mapping[str, Any], console: Console) -> None:
    """Inputs with their bindings, stacks of blocks with their branches, tokens.

    Raises:
        ReportError: it is not what ``ditc explain`` finds; reports of ``torch.compile`` have none.
    """
    try:
        parts = [*_parts(analysis)]
    except (KeyError, TypeError, AttributeError) as error:
        raise ReportError(
            "the report has no analysis, or a damaged one; make it again with `ditc explain --json`"
        ) from error
    for part in parts:
        console.print(part)


def _parts(analysis: Mapping[str, Any]) -> Iterator[Table | Text]:
    inputs = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("input", "binding", ""):
        inputs.add_column(title)
    for item in analysis["inputs"]:
        settled = "" if item["settled"] else "(taken for granted; every call compares it)"
        inputs.add_row(plain(item["name"]), plain(item["binding"]), settled)
    yield inputs
    counts = ", ".join(f"{count} {when}" for when, count in analysis["nodes_by_binding"].items())
    yield plain(f"nodes by binding time: {counts}")
    for stack in analysis["stacks"]:
        yield from _stack(stack)
    for miss in analysis["structure_misses"]:
        yield plain(f"not recognised: {miss}")
    yield from _tokens(analysis["tokens"])


def _tokens(tokens: Mapping[str, Any]) -> Iterator[Text]:
    if "error" in tokens:
        yield plain(f"tokens: {tokens['error']}")
        return
    count, latent = tokens["count"], tokens["latent"]
    yield plain(
        f"tokens: {count} = {tokens['tokens']}, from {latent}; {len(tokens['axes'])} values carry "
        f"them, {len(tokens['misses'])} sizes are unknown"
    )
    for miss in tokens["misses"]:
        yield plain(f"  %{miss['node']}: {miss['reason']}")


def _stack(stack: Mapping[str, Any]) -> Iterator[Table | Text]:
    kinds = len(set(stack["classes"]))
    same = "all alike" if kinds == 1 else f"{kinds} classes"
    yield plain(f"stack {stack['path']}: {stack['blocks']} blocks, {same}")
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("  branch", "kind", "gated", "output"):
        table.add_column(title)
    for branch in stack["branches"]:
        gated = "yes" if branch["gated"] else "no"
        table.add_row(
            plain(f"  {branch['path']}"), plain(branch["kind"]), gated, plain(branch["output"])
        )
    yield table
