"""Compute and reuse by a mask that is given."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import floor
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from dit_compile.errors import PipelineError
from dit_compile.ir.schedule import Done, Row, Step
from dit_compile.json_files import JsonError, read_json, wrong_type
from dit_compile.passes.block_cache.calibrated import position
from dit_compile.passes.block_cache.policy import CachePolicy

if TYPE_CHECKING:
    from dit_compile.passes.block_cache.sites import Candidates, Site

_ALL = "blocks"

#: What the text of a mask for all branches is made of.
_PLAIN = frozenset("01[], ")


@dataclass(frozen=True, kw_only=True)
class Mask(CachePolicy):
    """Compute and reuse branches by a mask: for each step 1 = compute, 0 = reuse.

    A generation of another length follows the mask at its own pace: it computes a step if the mask
    computes anywhere since the step before.

    Attributes:
        mask: digits for all branches, ``"1101"``, or as cache-dit writes and prints them,
            ``"11 0 1"`` and ``"[1, 1, 0, 1]"``; or for each type of branch (``attn``, ``cross``,
            ``mlp``), ``"attn:1101 mlp:1001"``, types that are not named being computed always; or
            the path of a JSON file such as SmoothCache writes, ``{"attn": [1, 1, 0, 1], ...}``.
        times: the timesteps that the mask was made for, if they are known.
    """

    method: ClassVar[str] = "mask"
    mask: str | int = ""
    times: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        # A pipeline's text then says all, whatever becomes of the file.
        if self.mask:
            object.__setattr__(self, "mask", print_mask(read_mask(str(self.mask))))

    @cached_property
    def by_group(self) -> Mapping[str, Sequence[int]]:
        """The mask of each group."""
        return read_mask(str(self.mask))

    @property
    def steps(self) -> int:
        """The length of the mask."""
        return len(next(iter(self.by_group.values())))

    @property
    def uncalibrated(self) -> str:
        """Nothing can find the mask of this method.

        Raises:
            PipelineError: there is none.
        """
        if not self.mask:
            raise PipelineError('insert-block-cache: method=mask needs mask=, such as mask="1101"')
        return ""

    def sites(self, found: Candidates) -> Sequence[Site]:
        """The branches of the types that the mask names."""
        if _ALL in self.by_group:
            return found.branches(lambda branch: _ALL)
        kinds = {branch.kind for branch in found.all_branches()}
        unknown = self.by_group.keys() - kinds
        if unknown:
            raise PipelineError(
                f"insert-block-cache: the mask names {', '.join(sorted(unknown))}, but the "
                f"model's branches are {', '.join(sorted(kinds))}"
            )
        return found.branches(lambda branch: branch.kind if branch.kind in self.by_group else "")

    def computes(self, group: str, step: Step, past: Sequence[Done]) -> bool:
        """Whether the mask computes anywhere after the last step and up to this one."""
        own = self.by_group[group]
        before, now = (floor(position(s, len(own), self.times)) for s in (past[-1].step, step))
        return any(own[before + 1 : now + 1])

    def rows(self, groups: Sequence[str]) -> Sequence[Row]:
        """The rows of the mask."""
        columns = (self.by_group[group] for group in groups)
        return list(dict.fromkeys(zip(*columns, strict=True)))


def read_mask(text: str) -> dict[str, tuple[int, ...]]:
    """A mask by group, from its text or from a JSON file.

    Raises:
        PipelineError: it is neither, or its rows have different lengths.
    """
    if text.endswith(".json"):
        return _checked(_from_json(Path(text)), text)
    if set(text) <= _PLAIN:
        return _checked({_ALL: [digit for digit in text if digit in "01"]}, text)
    parts = [part.rpartition(":") for part in text.split()]
    return _checked({group or _ALL: [*digits] for group, _, digits in parts}, text)


def print_mask(mask: Mapping[str, Sequence[int]]) -> str:
    """The text of a mask."""
    rows = {group: "".join(map(str, row)) for group, row in mask.items()}
    return rows.get(_ALL) or " ".join(f"{group}:{row}" for group, row in rows.items())


def _from_json(path: Path) -> dict[str, object]:
    try:
        found = read_json(path)
        if not isinstance(found, (list, dict)):
            raise wrong_type("it", "a list or an object", found)
    except JsonError as error:
        raise PipelineError(
            f"insert-block-cache: cannot read the mask {str(path)!r}: {error}"
        ) from None
    return {_ALL: found} if isinstance(found, list) else found


_GROUP = re.compile(r"[\w.+-]+")

#: What SmoothCache calls the types of branches.
_SMOOTH = {
    "attn1": "attn",
    "attn2": "cross",
    "ff": "mlp",
    "self_attn": "attn",
    "cross_attn": "cross",
}


def _checked(found: Mapping[str, object], source: str) -> dict[str, tuple[int, ...]]:
    rows: dict[str, tuple[int, ...]] = {}
    for group, row in found.items():
        digits = [str(digit) for digit in row] if isinstance(row, (list, tuple)) else []
        if not _GROUP.fullmatch(group):
            raise PipelineError(
                f"insert-block-cache: the mask in {source!r} names the branches {group!r}; give "
                "types of branches, such as attn, cross and mlp"
            )
        if not digits or not set(digits) <= {"0", "1"} or digits[0] != "1":
            raise PipelineError(
                f"insert-block-cache: the mask of {group!r} in {source!r} must have a 1 or 0 for "
                'each step, beginning with 1; for example mask="attn:1101 mlp:1001"'
            )
        rows[_SMOOTH.get(group, group)] = tuple(map(int, digits))
    if len(set(map(len, rows.values()))) != 1:
        raise PipelineError(
            f"insert-block-cache: the rows of the mask {source!r} must have one length"
        )
    return rows
