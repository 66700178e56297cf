"""Sizes that only the data tells: what the trace learned of them holds through all passes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from dit_compile.analysis.binding import settle
from dit_compile.errors import VerificationError
from dit_compile.ir.verifier import Verifier
from dit_compile.pipeline.pipeline import Pipeline
from tests.capture.through_dynamo import from_dynamo
from tests.passes.irtest import randn, weights


@pytest.fixture(autouse=True)
def _told_by_data() -> Iterator[None]:
    torch._dynamo.reset()
    with torch._dynamo.config.patch(
        capture_scalar_outputs=True, capture_dynamic_output_shape_ops=True
    ):
        yield


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)


class CutByCount(Base):
    """Text of a length read from its mask is put behind the image and cut off again."""

    def forward(self, x: Tensor, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        count = mask.sum().item()
        y = self.layer(torch.cat([x, text[:, :count]], 1))
        return x + y[:, :-count], y[:, -count:].sum(1)


class SplitByCount(Base):
    def forward(self, x: Tensor, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        count = mask.sum().item()
        y = self.layer(torch.cat([x, text[:, :count]], 1))
        image, rest = y.split([x.shape[1], count], 1)
        return x + image, rest.sum(1)


class CutByIndices(Base):
    def forward(self, x: Tensor, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        kept = mask.nonzero()[:, 0]
        y = self.layer(torch.cat([x, text[:, kept]], 1))
        return x + y[:, : -kept.shape[0]], y[:, x.shape[1] :].sum(1)


class CutByMask(Base):
    """What the mask picks depends on the conditions alone, and so is moved out of the step."""

    def forward(self, x: Tensor, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        kept = text[0][mask.bool()]
        y = self.layer(torch.cat([x[0], kept]))
        return x + y[: y.shape[0] - kept.shape[0]], y[x.shape[1] :].sum(0)


X, TEXT = randn(1, 6, 8), randn(1, 5, 8, seed=1)
MASKS = tuple(torch.tensor(mask) for mask in ([1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 0, 1, 0, 0]))


@pytest.mark.parametrize("target", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", [CutByCount, SplitByCount, CutByIndices, CutByMask])
@pytest.mark.parametrize("dynamic", [None, True])
def test_same_results_as_eager(kind: type[Base], target: str, dynamic: bool | None) -> None:
    model = weights(kind())
    options = {"target": target, "strict": True}
    fast = torch.compile(model, backend="ditc", fullgraph=True, dynamic=dynamic, options=options)
    with torch.no_grad():
        for mask in MASKS:
            torch.testing.assert_close(fast(X, TEXT, mask), model(X, TEXT, mask))


def test_a_size_that_the_trace_settled_may_be_minted_again() -> None:
    program, _ = from_dynamo(weights(CutByCount()), X, TEXT, MASKS[0])
    cuts = program.main.find_nodes(op="call_function", target=torch.ops.aten.slice.Tensor)
    assert tuple(X.shape) in [tuple(node.meta["val"].shape) for node in cuts]
    Verifier().check(program)


def test_sizes_that_are_known_must_still_agree() -> None:
    program, _ = from_dynamo(weights(CutByCount()), X, TEXT, MASKS[0])
    cuts = program.main.find_nodes(op="call_function", target=torch.ops.aten.slice.Tensor)
    cut = next(node for node in cuts if tuple(node.meta["val"].shape) == tuple(X.shape))
    with program.fake_mode:
        cut.meta["val"] = torch.empty(1, 6, 7)
    with pytest.raises(VerificationError, match=r"claims f32\[1,6,7\]"):
        Verifier().check(program)


def test_what_is_moved_out_keeps_its_symbols() -> None:
    program, _ = from_dynamo(weights(CutByMask()), X, TEXT, MASKS[0])
    verifier = Verifier()
    verifier.check(program)
    settle(program)
    Pipeline.parse("hoist-invariant").run(program)
    assert "aten.index.Tensor" in [
        str(node.target) for node in program.graphs["prologue"].graph.nodes
    ]
    verifier.check(program)
