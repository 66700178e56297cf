"""Every graph of unlike families gives in a bundle what its nodes give one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import dit_compile as ditc
from dit_compile.analysis.binding import settle
from dit_compile.backends.eager import Eager
from dit_compile.backends.rows import with_rows
from dit_compile.bundle.manifest import Manifest
from dit_compile.bundle.sessions import RuntimeOptions
from dit_compile.capture.export import capture_module
from dit_compile.explanation import example_inputs
from dit_compile.ir.program import MAIN, OutputKind, Program, placeholders
from dit_compile.pipeline.pipeline import Pipeline
from dit_compile.pipeline.registry import find_runner
from tests import zoo

pytestmark = pytest.mark.slow

CACHED = "exact,insert-block-cache{method=interval,interval=2}"
FAMILIES = ("dit", "pixart", "sd3", "flux", "wan", "latte")


def by_nodes(program: Program, given: dict[str, Any], manifest: Manifest) -> dict[str, Any]:
    """The results of each graph, earlier ones feeding later ones."""
    values = {**program.constants, **given}
    ahead = [name for name, _ in program.ahead_graphs()]
    results = {}
    for name in (*ahead, MAIN, *(manifest.graphs.keys() - {*ahead, MAIN})):
        reads = [values[str(node.target)] for node in placeholders(program.graphs[name].graph)]
        with torch.no_grad():
            results[name] = Eager().compile(program, name)(*reads)
        for output, value in zip(program.outputs[name], results[name], strict=True):
            if output.name and output.kind is not OutputKind.ROWS:
                values[output.name] = value
    return values | {"results": results}


@pytest.mark.parametrize("form", ["onnx", "pt2"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_graph(name: str, form: str, tmp_path: Path) -> None:
    case = zoo.case(name)
    model, inputs = zoo.build(case), case.inputs(0, torch.Generator().manual_seed(0))
    manifest = ditc.export(model, (), inputs, tmp_path / "b", passes=CACHED, format=form)
    assert "reuse" in manifest.graphs
    with torch.no_grad():
        program = capture_module(model, (), inputs)
    settle(program, None)
    Pipeline.parse(CACHED).run(program)
    given = example_inputs(program, (), inputs)
    for value in manifest.rows:
        given[value.name] = given[value.name.removesuffix("_rows")].expand(value.shape).clone()
    known = by_nodes(with_rows(program), given, manifest)
    runner = find_runner(form)(tmp_path / "b", manifest, RuntimeOptions())
    values = {
        value.name: runner.take(value, known[value.name])
        for value in (*manifest.inputs, *manifest.rows, *manifest.states, *manifest.derived)
    }
    for graph in manifest.graphs:
        returned = runner.run(graph, values)
        for got, want in zip(returned, known["results"][graph], strict=True):
            array = got if hasattr(got, "dtype") else got.numpy()
            have, expected = torch.as_tensor(array).double(), want.double()
            assert (have - expected).norm() <= 1e-4 * expected.norm(), graph
