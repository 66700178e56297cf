"""What was measured of one setting in one form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dit_compile.bench.caching.scores import ImageScores, Interval


@dataclass(frozen=True)
class Row:
    """What was measured of one setting in one form.

    Attributes:
        model, group, method, setting: as in ``contenders.Contender``.
        form: ``eager`` or ``compiled``.
        turns: wall time of each generation in seconds, first call apart; equal places of rows that
            were measured together ran next to each other.
        seconds: their median for an image.
        speed_up: median ratio of the plain model's wall time in eager to its own, taking turns.
        speed_up_interval: its 95 % interval.
        flop_ratio: operations of the plain model over its own.
        scores: of the images.
        drift: relative L2 error of the latents against the plain model's after each step.
        kept_bytes: of tensors that live from step to step.
        first_call: seconds of the first generation; 0 in eager, as the two below.
        graph_breaks: places where Dynamo gave up a single graph.
        recompiles: compilations after the first generation.
    """

    model: str
    group: str
    method: str
    setting: str
    form: str
    turns: Sequence[float]
    seconds: float
    speed_up: float
    speed_up_interval: Interval
    flop_ratio: float
    scores: ImageScores
    drift: Sequence[float]
    kept_bytes: int
    first_call: float = 0.0
    graph_breaks: int = 0
    recompiles: int = 0

    @property
    def name(self) -> str:
        """Its group and method."""
        return self.group if self.group == self.method else f"{self.group} {self.method}"

    @property
    def title(self) -> str:
        """The same with its setting."""
        return f"{self.name} {self.setting}".strip()
