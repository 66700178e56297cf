"""Passes for tests: some with options of every type, some that break a rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import fx

from dit_compile.ir.program import Program
from dit_compile.pipeline.base import Kind, Pass
from dit_compile.pipeline.rewriter import Rewriter
from tests.ir.models import aten, calls


@dataclass(frozen=True, kw_only=True)
class Everything(Pass):
    """Has an option of every type and does nothing."""

    name: ClassVar[str] = "everything"
    kind: ClassVar[Kind] = Kind.EXACT
    count: int = 1
    max_error: float = 0.5
    is_on: bool = False
    word: str = "plain"
    maybe: int | None = None
    sizes: tuple[int, ...] = (1, 2)
    words: tuple[str, ...] = ()

    def run(self, program: Program, rw: Rewriter) -> None:
        """Do nothing."""


@dataclass(frozen=True, kw_only=True)
class Late(Pass):
    """Must come after ``everything``."""

    name: ClassVar[str] = "late"
    kind: ClassVar[Kind] = Kind.EXACT
    after: ClassVar[tuple[str, ...]] = ("everything",)

    def run(self, program: Program, rw: Rewriter) -> None:
        """Do nothing."""


def made_of(
    edit: Callable[[Program, Rewriter], object], kind: Kind = Kind.EXACT, name: str = "broken"
) -> Pass:
    """A pass that runs ``edit``."""

    def run(self: Pass, program: Program, rw: Rewriter) -> None:
        edit(program, rw)

    fields = {"name": name, "kind": kind, "run": run, "__annotations__": {}}
    made: type[Pass] = dataclass(frozen=True, kw_only=True)(type("Made", (Pass,), fields))
    return made()


def middle(program: Program) -> fx.Node:
    """The node that the broken passes break: in the second of three layers."""
    return calls(program, aten.gelu.default)[1]


def swap(target: Any, *rest: Any) -> Callable[[Program, Rewriter], fx.Node]:
    """An edit that puts another operator in the place of the middle node."""

    def edit(program: Program, rw: Rewriter) -> fx.Node:
        for _ in rw.graphs():
            old = middle(program)
            rw.begin(old)
            new = rw.call(target, old.args[0], *rest, before=old, replaces=[old])
            rw.replace(old, new)
        return new

    return edit


def scaled(factor: float) -> Callable[[Program, Rewriter], None]:
    """An edit that multiplies the result."""

    def edit(program: Program, rw: Rewriter) -> None:
        for _ in rw.graphs():
            last = calls(program, aten.add.Tensor)[-1]
            rw.begin(last)
            new = rw.call(aten.add.Tensor, *last.args, before=last, replaces=[last])
            new = rw.call(aten.mul.Tensor, new, factor, before=last, replaces=[last])
            rw.replace(last, new)

    return edit
