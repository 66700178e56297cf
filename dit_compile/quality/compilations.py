"""How often torch compiled in a stretch of code: graph breaks, Dynamo's graphs, Inductor's."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType

from torch._dynamo.utils import compilation_time_metrics, counters

_INDUCTOR = "compile_fx_inner"


@dataclass
class Compilations:
    """A context manager that counts compilations inside it.

    Attributes:
        graph_breaks: places where Dynamo gave up a single graph.
        dynamo_graphs: graphs that Dynamo captured.
        inductor_calls: graphs that Inductor compiled or loaded from its cache.
    """

    graph_breaks: int = 0
    dynamo_graphs: int = 0
    inductor_calls: int = 0

    def __enter__(self) -> Compilations:
        self._start = _now()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        now = _now()
        self.graph_breaks, self.dynamo_graphs, self.inductor_calls = (
            after - before for before, after in zip(self._start, now, strict=True)
        )


def _now() -> tuple[int, int, int]:
    return (
        sum(counters["graph_break"].values()),
        counters["stats"]["unique_graphs"],
        len(compilation_time_metrics.get(_INDUCTOR, ()))
        + counters["aot_autograd"]["autograd_cache_hit"],  # which never gets as far as Inductor
    )
