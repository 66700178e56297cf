"""The zoo is not vacuous: each case runs, and its output answers to every input."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from diffusers.models import transformers
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from tests.zoo import BREAKS, CASES, EVERY, LEFT_OUT, REASONS, Case, build, case

each_case = pytest.mark.parametrize("item", EVERY, ids=lambda item: item.name)


def _inputs(item: Case, variant: int) -> dict[str, Any]:
    return item.inputs(variant, torch.Generator().manual_seed(variant))


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _run(model: nn.Module, kwargs: dict[str, Any]) -> list[Tensor]:
    with torch.no_grad():
        return _tensors(model(**kwargs))


def _disturb(value: object) -> object:
    """Change every float tensor in a value; halve integers, of which only timesteps are passed."""

    def change(leaf: object) -> object:
        if not isinstance(leaf, Tensor):
            return leaf
        if not (leaf.is_floating_point() or leaf.is_complex()):
            return leaf // 2
        # Not affine in the features, which a layer norm of the input would undo.
        ramp = torch.linspace(0.1, 0.5, leaf.numel()).view(leaf.shape)
        return leaf.flip(-1) * 0.5 + ramp if leaf.ndim > 1 else leaf * 0.5 + ramp

    return tree_map(change, value)


@each_case
def test_both_variants_run(item: Case) -> None:
    model = build(item)
    for variant in (0, 1):
        for output in _run(model, _inputs(item, variant)):
            assert output.dtype == torch.float32
            assert output.isfinite().all()
            assert output.std() > 1e-3


@each_case
def test_output_answers_to_every_input(item: Case) -> None:
    model = build(item)
    kwargs = _inputs(item, 1)
    before = _run(model, kwargs)
    for name, value in kwargs.items():
        real = any(t.is_floating_point() or t.is_complex() for t in _tensors(value))
        if not real and name != item.timestep:
            continue
        after = _run(model, kwargs | {name: _disturb(value)})
        change = max(float((a - b).norm() / b.norm()) for a, b in zip(after, before, strict=True))
        assert change > 1e-3, f"{name} changes the output by {change:.1e} only"


@each_case
def test_variants_differ_in_shape(item: Case) -> None:
    first, second = (
        [t.shape for t in _tensors(_inputs(item, variant)[item.latent])] for variant in (0, 1)
    )
    assert first != second
    assert set(_inputs(item, 0)) == set(_inputs(item, 1)) >= {item.latent, item.timestep}


@each_case
def test_forward_runs_each_configured_block_once(item: Case) -> None:
    model = build(item)
    ran: list[tuple[str, int]] = []
    for path, count in zip(item.stacks, item.blocks, strict=True):
        blocks = list(model.get_submodule(path).children())
        assert len(blocks) == count
        for index, block in enumerate(blocks):
            block.register_forward_pre_hook(partial(_record, ran, (path, index)))
    _run(model, _inputs(item, 0))
    assert tuple(dict.fromkeys(path for path, _ in ran)) == item.stacks
    for path, count in zip(item.stacks, item.blocks, strict=True):
        assert [index for run, index in ran if run == path] == list(range(count))


def _record(ran: list[tuple[str, int]], entry: tuple[str, int], *_: object) -> None:
    ran.append(entry)


def test_build_is_deterministic() -> None:
    for item in (case("stable_audio3"), case("flux")):
        first, again, other = (build(item, seed).state_dict() for seed in (0, 0, 1))
        assert all(torch.equal(first[key], again[key]) for key in first)
        assert not all(torch.equal(first[key], other[key]) for key in first)


def test_build_casts_as_diffusers_loads() -> None:
    model = build(case("wan"), dtype=torch.bfloat16)
    assert model.get_parameter("proj_out.weight").dtype == torch.bfloat16
    assert model.get_parameter("scale_shift_table").dtype == torch.float32


def test_every_class_has_a_case_or_a_reason() -> None:
    classes = {type(build(item)).__name__ for item in EVERY}
    assert len(classes) == len(EVERY) == len({item.name for item in EVERY})
    assert len({item.family for item in CASES}) >= 24
    left_out = {name for name, _ in LEFT_OUT}
    public = {
        name
        for name, value in vars(transformers).items()
        if isinstance(value, type) and issubclass(value, nn.Module)
    }
    assert classes.isdisjoint(left_out)
    assert classes | left_out == public


def test_each_class_that_breaks_has_its_reason() -> None:
    assert REASONS.keys() == {item.name for item in BREAKS}
