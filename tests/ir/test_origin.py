"""Provenance: what capture stamps, and what rewrites inherit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import fx

from dit_compile.ir.origin import (
    Origin,
    merge_origins,
    module_path,
    normalize_path,
    origin_of,
    source_line,
)
from tests.ir import models
from tests.ir.models import aten, calls, layers

TORCH = os.path.dirname(torch.__file__)


def node(**meta: object) -> fx.Node:
    made = fx.Graph().placeholder("x")
    made.meta.update(meta)
    return made


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        ("L['self']", ""),
        ("L['self'].blocks.0", "blocks.0"),
        ("L['self']._modules['blocks'][0]", "blocks.0"),
        ("L['self'].__dict__['_modules']['blocks'].0", "blocks.0"),
        ("L['self']._modules['blocks']._modules['0']._parameters['weight']", "blocks.0.weight"),
        ("L['self'].to_q._buffers['scale']", "to_q.scale"),
        ("L['x']", "x"),
        ("blocks.1.norm", "blocks.1.norm"),
        ("L['self'].self_attn", "self_attn"),
        ("L['self'].sub_modules.0.proj", "sub_modules.0.proj"),
        ("adapter_parameters.a", "adapter_parameters.a"),
    ],
)
def test_paths_read_as_the_user_writes_them(raw: str, path: str) -> None:
    assert normalize_path(raw) == path


def test_the_innermost_module_counts() -> None:
    stack = {"a": ("L['self']", object), "b": ("L['self'].blocks.3", object)}
    assert module_path(node(nn_module_stack=stack)) == "blocks.3"
    assert module_path(node()) == ""


@pytest.mark.parametrize(
    ("frames", "line"),
    [
        (["/home/u/run.py", "/home/u/model.py", f"{TORCH}/nn/functional.py"], "/home/u/model.py:2"),
        (["/home/u/run.py", f"{TORCH}vision/ops.py"], f"{TORCH}vision/ops.py:2"),
        ([f"{TORCH}/nn/functional.py"], f"{TORCH}/nn/functional.py:1"),
        ([], ""),
    ],
)
def test_the_innermost_line_outside_torch_counts(frames: list[str], line: str) -> None:
    trace = "".join(f'  File "{path}", line {i}, in f\n' for i, path in enumerate(frames, 1))
    assert source_line(node(stack_trace=trace)) == line


def test_merged_origins_share_a_path_and_keep_all_parents() -> None:
    merged = merge_origins(
        [
            node(origin=Origin("blocks.1.attn.to_q", "", ("a", "b"))),
            node(origin=Origin("blocks.1.attn.to_k", "m.py:3", ("b", "c"))),
            node(),
        ]
    )
    assert merged == Origin("blocks.1.attn", "m.py:3", ("a", "b", "c"))


def test_paths_are_merged_by_component() -> None:
    pair = [node(origin=Origin("blocks.1")), node(origin=Origin("blocks.10"))]
    assert merge_origins(pair).path == "blocks"
    assert merge_origins([]) == Origin()


def test_capture_stamps_each_node() -> None:
    program = layers()
    assert {type(each.meta.get("origin")) for each in program.main.nodes} == {Origin}
    origin = origin_of(calls(program, aten.mul.Tensor)[1])
    assert origin.path == "layers.1"
    assert origin.parents == ("mul_1",)
    path, _, line = origin.source.rpartition(":")
    assert path == models.__file__
    assert "F.gelu(self.proj(x)) * 2" in Path(path).read_text().splitlines()[int(line) - 1]


def test_a_foreign_node_has_an_empty_origin() -> None:
    assert origin_of(node(origin="somewhere")) == Origin()
