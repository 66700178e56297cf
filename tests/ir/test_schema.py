"""Arguments by the names of the schema."""

from __future__ import annotations

import operator

import pytest
import torch
from torch import fx

from dit_compile.errors import AnalysisError
from dit_compile.ir.schema import argument, argument_names, arguments, given_arguments

aten = torch.ops.aten


@pytest.fixture
def graph() -> fx.Graph:
    return fx.Graph()


def test_operators(graph: fx.Graph) -> None:
    x = graph.placeholder("x")
    node = graph.call_function(aten.slice.Tensor, (x, 1), {"end": 4})
    assert argument_names(node) == ["self", "dim", "start", "end", "step"]
    assert given_arguments(node) == {"self": x, "dim": 1, "end": 4}
    assert arguments(node) == {"self": x, "dim": 1, "start": None, "end": 4, "step": 1}
    assert (argument(node, "end"), argument(node, "step")) == (4, 1)
    with pytest.raises(AnalysisError, match="no argument 'z'"):
        argument(node, "z")


def test_functions_have_positions_alone(graph: fx.Graph) -> None:
    x = graph.placeholder("x")
    node = graph.call_function(operator.getitem, (x, 2))
    assert argument_names(node) == []
    assert arguments(node) == given_arguments(node) == {"0": x, "1": 2}
