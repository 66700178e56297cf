"""What a pass is."""

from __future__ import annotations

import dataclasses
import enum
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import Self

from dit_compile.errors import PipelineError, suggest

if TYPE_CHECKING:
    from dit_compile.calibration.measured import Measured
    from dit_compile.ir.program import Program
    from dit_compile.pipeline.rewriter import Rewriter


class Kind(enum.Enum):
    """What a pass promises about the results."""

    EXACT = "exact"  # the same mathematics; only rounding may move
    LOWER = "lower"  # exact, but the set of operators changes
    ANNOTATE = "annotate"  # metadata only
    APPROX = "APPROX"  # changes results on purpose


@dataclass(frozen=True, kw_only=True)
class Pass:
    """A rewrite of a Program. Its fields are its options; nothing else is kept on ``self``.

    Class attributes:
        name: kebab-case, verb first; unique.
        kind: what it promises.
        bakes_weights: it computes with weights ahead of the loop, so it cannot run while autograd
            records.
        after: names of passes that, where both are in a pipeline, must come before this one.
    """

    name: ClassVar[str]
    kind: ClassVar[Kind]
    bakes_weights: ClassVar[bool] = False
    after: ClassVar[tuple[str, ...]] = ()

    def run(self, program: Program, rw: Rewriter) -> None:
        """Rewrite ``program`` through ``rw``."""
        raise NotImplementedError  # pragma: no cover - every pass overrides it

    @property
    def uncalibrated(self) -> str:
        """What calibration must record before it can run; empty if nothing."""
        return ""

    def recorder(self, also: Sequence[Pass] = ()) -> Pass:
        """The pass that runs in its place while calibration records, for others with it."""
        return self

    def own(self, measured: Measured) -> Measured:
        """What this pass must be told, of what a recorder for several measured."""
        return measured

    def fitted(self, measured: Measured) -> Self:
        """This pass with what calibration measured through its :meth:`recorder`."""
        return self

    def ladder(self) -> Sequence[Pass]:
        """This pass from its gentlest to its strongest setting; itself where there is but one."""
        return [self]

    def parts(self, program: Program) -> Mapping[str, Pass]:
        """This pass on each part of a Program alone, by the part's path; empty if it has none."""
        return {}

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """Make the pass from option names and values, as the pipeline's text gives them.

        Raises:
            PipelineError: an unknown option, or a value of the wrong type.
        """
        known = {field.name: field for field in dataclasses.fields(cls)}
        values = {}
        for key, value in options.items():
            field = key.replace("-", "_")
            if field not in known:
                raise unknown_option(cls.name, key, known)
            values[field] = coerce(cls.name, key, value, known[field])
        return cls(**values)

    def to_options(self) -> dict[str, Any]:
        """The options that differ from their defaults, in field order."""
        return changed_fields(self)

    def __str__(self) -> str:
        from dit_compile.pipeline.text import print_item

        return print_item(self.name, self.to_options())


def changed_fields(item: Any) -> dict[str, Any]:
    """Fields of a dataclass whose value is not the default, by option name."""
    return {
        field.name.replace("_", "-"): getattr(item, field.name)
        for field in dataclasses.fields(item)
        if getattr(item, field.name) != field.default
    }


def unknown_option(owner: str, key: str, known: Mapping[str, Any]) -> PipelineError:
    """The error for an option that ``owner`` does not have."""
    names = [name.replace("_", "-") for name in known]
    if not names:
        return PipelineError(f"{owner} takes no options, so {key!r} is unknown; remove it")
    return PipelineError(
        f"{owner} has no option {key!r}{suggest(key.replace('_', '-'), names)}; "
        f"it takes {', '.join(names)}"
    )


#: A larger integer raises as soon as it meets a float.
_LARGEST = int(sys.float_info.max)
_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "str": (str,),
    "None": (type(None),),
    "tuple": (tuple,),
}


def coerce(owner: str, key: str, value: Any, field: dataclasses.Field[Any]) -> Any:
    """Check ``value`` against the annotation of ``field``; widen int to float where asked.

    Raises:
        PipelineError: the value has another type, or is a number that nothing computes with.
    """
    names = [part.strip().split("[")[0] for part in str(field.type).split("|")]
    accepted = tuple(t for name in names for t in _TYPES.get(name, (object,)))
    if isinstance(value, bool) and "bool" not in names:
        accepted = ()
    if not isinstance(value, accepted):
        raise PipelineError(
            f"{owner}: option {key!r} takes {field.type}, not {type(value).__name__} {value!r}"
        )
    if not all(map(_computable, value if isinstance(value, tuple) else (value,))):
        raise PipelineError(f"{owner}: option {key!r} takes no nan, and no number beyond a float's")
    return float(value) if names[0] == "float" and isinstance(value, int) else value


def _computable(value: Any) -> bool:
    """Whether a number is one that all arithmetic takes."""
    if isinstance(value, float):
        return not math.isnan(value)
    return not isinstance(value, int) or abs(value) <= _LARGEST
