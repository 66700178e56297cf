"""Several graphs in one model: each number runs its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from dit_compile.backends.onnxruntime.merge import merge
from dit_compile.backends.onnxruntime.weights import WeightsFile


def model(file: WeightsFile, *, factor: float, keeps: bool) -> ir.Model:
    """``y = (x or state) @ w * factor``, and the product as state if it ``keeps``."""
    source = "x" if keeps else "state"
    read = ir.val(source, ir.DataType.FLOAT, [2, 3])
    weight = ir.val("w", ir.DataType.FLOAT, [3, 3])
    weight.const_value = file.add("w", torch.eye(3) * 2, ir.DataType.FLOAT)
    scale = ir.val("scale", const_value=ir.tensor(np.float32(factor), name="scale"))
    product = ir.node("MatMul", [read, weight])
    scaled = ir.node("Mul", [product.outputs[0], scale])
    outputs = [scaled.outputs[0], *([product.outputs[0]] if keeps else [])]
    for value, name in zip(outputs, ("y", "next_state"), strict=False):
        value.name, value.dtype, value.shape = name, ir.DataType.FLOAT, ir.Shape([2, 3])
    graph = ir.Graph(
        [read],
        outputs,
        nodes=[product, scaled],
        initializers=[weight, scale],
        opset_imports={"": 20},
        name="g",
    )
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_each_number_runs_its_own_graph(tmp_path: Path, count: int) -> None:
    file = WeightsFile(tmp_path / "weights.bin")
    models = {f"graph_{i}": model(file, factor=i + 1.0, keeps=i == 0) for i in range(count)}
    ir.save(merge(models, ["state"]), tmp_path / "step.onnx")
    onnx.checker.check_model(str(tmp_path / "step.onnx"), full_check=True)
    loaded = onnx.load(tmp_path / "step.onnx", load_external_data=False)
    assert [tensor.name for tensor in loaded.graph.initializer] == ["w"]
    assert (tmp_path / "weights.bin").stat().st_size == 36
    session = onnxruntime.InferenceSession(str(tmp_path / "step.onnx"))
    x, state = np.ones((2, 3), np.float32), np.full((2, 3), 5, np.float32)
    for number in range(count):
        given = {"variant": np.array(number), "x": x, "state": state[: 2 * bool(number)]}
        y, kept = session.run(["y", "next_state"], given)
        want = 2 * x if number == 0 else 2 * state * (number + 1)
        np.testing.assert_array_equal(y, want)
        assert kept.shape == ((2, 3) if number == 0 else (0, 3))


def test_equal_weights_are_written_once(tmp_path: Path) -> None:
    file = WeightsFile(tmp_path / "w")
    first = file.add("a", torch.arange(5), ir.DataType.INT64)
    second = file.add("b", torch.arange(5).double(), ir.DataType.DOUBLE)
    again = file.add("c", torch.arange(10)[:5], ir.DataType.INT64)
    assert (first.offset, second.offset, again.offset) == (0, 4096, 0)
    np.testing.assert_array_equal(again.numpy(), np.arange(5))
    np.testing.assert_array_equal(second.numpy(), np.arange(5.0))
