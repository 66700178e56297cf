"""The table of several steps at once gives what the table gives one by one."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dit_compile.analysis.binding import settle
from dit_compile.backends.contents import known_weights
from dit_compile.backends.rows import COUNT, with_rows
from dit_compile.capture.export import capture_module
from dit_compile.ir.program import ROWS, TABLE, placeholders
from dit_compile.pipeline.pipeline import Pipeline
from tests.runtime.loops import WIDTH, _waves


class Normed(nn.Module):
    """Its table holds a root mean square, which is computed with writes under vmap."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.time = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x * F.rms_norm(self.time(_waves(t)), (WIDTH,))[:, None]


def test_rows_are_functional_and_right() -> None:
    model, x, t = Normed(), torch.randn(1, 6, WIDTH), torch.tensor([500.0])
    with torch.no_grad():
        program = capture_module(model, (x, t), {})
    settle(program, {"t": "timestep"})
    Pipeline.parse("exact").run(program)
    rows, table = with_rows(program).graphs[ROWS], program.graphs[TABLE]
    for node in rows.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        assert schema is None or not schema.is_mutable, node
    times = torch.linspace(0, 900, COUNT)[:, None]
    known = known_weights(program)

    def run(graph: torch.fx.GraphModule, **clock: Tensor) -> list[Tensor]:
        values = {**known, **clock}
        with torch.no_grad():
            return list(graph(*[values[str(n.target)] for n in placeholders(graph.graph)]))

    together = run(rows, t_rows=times)
    for i in range(COUNT):
        alone = run(table, t=times[i])
        for row, want in zip(together, alone, strict=True):
            torch.testing.assert_close(row[i], want)
