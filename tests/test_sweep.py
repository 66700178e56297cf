"""Real transformer classes through ``torch.compile(backend="ditc")``, whole, strict, in two shapes.

No class is special to ditc: the list below only says which are compiled with Inductor, which takes
a minute each, and which run in the quick stage.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dit_compile as ditc
from dit_compile.pipeline.presets import PRESETS
from dit_compile.quality.compilations import Compilations
from tests import zoo
from tests.support import (
    LIMIT,
    STEPS,
    TABLE,
    check_exact,
    inputs_of,
    measured,
    page,
    rows,
    sample,
    timesteps,
    worst_error,
)

QUICK = ("dit", "pixart", "sd3", "flux", "wan", "latte")
WITH_INDUCTOR = (
    *QUICK,
    *("hunyuan_dit", "lumina_next", "sana", "aura_flow", "cogview3", "cogvideox", "ltx", "chroma"),
    *("qwen_image", "flux2", "hunyuan_video", "bria", "prior", "stable_audio", "t5_film", "mochi"),
)


def compare(case: zoo.Case, target: str) -> None:
    torch._dynamo.reset()
    model = zoo.build(case)
    compiled = torch.compile(
        model, backend="ditc", fullgraph=True, options={"strict": True, "target": target}
    )
    with Compilations() as counted:
        for variant in (0, 1):
            inputs = inputs_of(case, variant)
            error = worst_error(model, compiled, inputs)
            if error > LIMIT and target == "inductor":
                # Inductor's own sines differ: then no worse than torch.compile without ditc.
                stock = torch.compile(model, fullgraph=True, dynamic=bool(variant))
                assert error <= 1.05 * worst_error(model, stock, inputs)
            else:
                assert error <= LIMIT
    assert counted.graph_breaks == 0


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(case.name, marks=() if case.name in QUICK else pytest.mark.full)
        for case in zoo.CASES
    ],
)
def test_same_results_as_eager(name: str) -> None:
    compare(zoo.case(name), "eager")


@pytest.mark.full
@pytest.mark.parametrize("name", [case.name for case in zoo.BREAKS])
def test_a_step_in_several_graphs_has_the_same_results(name: str) -> None:
    check_exact(zoo.case(name), whole=False)


@pytest.mark.full
@pytest.mark.parametrize("name", [case.name for case in zoo.BREAKS])
def test_dynamo_itself_does_not_capture_them_whole(name: str) -> None:
    case = zoo.case(name)
    torch._dynamo.reset()
    stock = torch.compile(zoo.build(case), backend="eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported), torch.no_grad():
        stock(**inputs_of(case))


@pytest.mark.full
@pytest.mark.parametrize("name", [case.name for case in zoo.EVERY])
def test_the_table_of_classes_is_true(name: str) -> None:
    row = measured(zoo.case(name))
    assert rows(TABLE.read_text())[row.name] == row


@pytest.mark.full
def test_the_table_has_every_class() -> None:
    text = TABLE.read_text()
    assert set(rows(text)) == {type(zoo.build(case)).__name__ for case in zoo.EVERY}
    assert page(rows(text).values()) == text


@pytest.mark.parametrize("name", ["dit", "sana_wm_refiner", "wan_animate"])
def test_latents_follow_the_model(name: str) -> None:
    case = zoo.case(name)
    model, seen = zoo.build(case), list[dict[str, Any]]()
    model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
    end = sample(case, model)
    assert len(seen) == STEPS
    for before, after in pairwise([*(each[case.latent] for each in seen), end[case.latent]]):
        change = (after - before).abs()
        assert 0 < change.mean() < before.abs().mean()
    times = [float(each[case.timestep].flatten()[0]) for each in seen]
    assert times == timesteps(case) == sorted(times, reverse=True)
    for key in seen[0].keys() - {case.latent, case.timestep}:
        assert all(each[key] is seen[0][key] for each in seen)


@pytest.mark.full
@pytest.mark.parametrize("name", WITH_INDUCTOR)
def test_same_results_with_inductor(name: str) -> None:
    compare(zoo.case(name), "inductor")


#: Two classes do not run in bfloat16 in eager either; two others take their place.
IN_HALF = {*WITH_INDUCTOR, "ernie_image", "cogview4"} - {"hunyuan_dit", "t5_film"}


@pytest.mark.full
@pytest.mark.parametrize("name", sorted(IN_HALF))
def test_half_precision_obeys_the_exact_rule(name: str) -> None:
    """``explain`` raises if a pass that claims to be exact moves the numbers beyond rounding."""
    case = zoo.case(name)
    model = zoo.build(case, dtype=torch.bfloat16)
    inputs = case.inputs(0, torch.Generator().manual_seed(0))
    inputs = {name: _halved(model, name, value) for name, value in inputs.items()}
    found = ditc.explain(model, kwargs=inputs)
    assert [entry.name for entry in found.report.passes] == PRESETS["exact"].split(",")


def _halved(model: nn.Module, name: str, value: Any) -> Any:
    """Latents and embeddings in the weights' dtype; timesteps keep theirs."""
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return value.bfloat16() if floating and "timestep" not in name else value
