"""A bundle decides at each of 50 steps as the compiled model does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import dit_compile as ditc
from dit_compile.bundle.policy import from_data, to_data
from dit_compile.demo.models import BUNDLED
from dit_compile.ir.schedule import Done, Row, Schedule
from dit_compile.pipeline.registry import policies
from tests.runtime.loops import Loop, Toy, compiled, label

STEPS = 50
THRESHOLD = 0.1

STATIC: dict[str, dict[str, Any]] = {
    "interval": {"interval": 3},
    "delta": {"interval": 2},
    "taylor": {"interval": 4, "order": 2},
    "pyramid": {},
    "mask": {"mask": "attn:" + "10" * 25 + " mlp:" + "11000" * 10},
}

OPENED: dict[str, dict[str, Any]] = {
    "onnx": {"intra_op_num_threads": 1},
    "aoti": {"trust": True},
}

GROUPS = {"delta": ("front", "rear"), "pyramid": ("spatial", "cross")}


def decided(session: ditc.Session) -> list[Done]:
    """What the only lane of a session did at each step."""
    (tracker,) = session._trackers()
    assert tracker.generation is not None
    (lane,) = tracker.generation.lanes
    (kept,) = lane.kept.values()
    return kept.past


def schedule(method: str) -> Schedule:
    policy = policies()[method](**STATIC[method])
    groups = GROUPS.get(method, ("attn", "mlp"))
    rows: list[Row] = [(1, 1), (1, 0), (0, 1), (0, 0)]
    names = ["full", "no_mlp", "no_attn", "reuse"]
    return Schedule(
        "full", policy=policy, groups=groups, variants=tuple(zip(rows, names, strict=True))
    )


@pytest.mark.parametrize("method", STATIC)
def test_static_policies_survive_the_manifest(method: str) -> None:
    before = schedule(method)
    data = to_data(before)
    assert data.policy is not None
    options = json.loads(json.dumps(dict(data.policy.options)))
    after = from_data(replace(data, policy=replace(data.policy, options=options)))
    times = [980.0 - 20 * i for i in range(STEPS)]
    mask = before.mask(STEPS, times)
    assert mask is not None
    assert len({*mask}) > 1
    assert after.mask(STEPS, times) == mask


def test_a_static_policy(merged: Path, toy: Toy) -> None:
    times = [980.0 - 19 * i for i in range(STEPS)]
    torch._dynamo.reset()
    fast, loaded = compiled(toy), ditc.load(merged, intra_op_num_threads=1)
    past = []
    for model in (fast, loaded):
        with torch.no_grad(), ditc.session(model, timesteps=times) as session:
            for call in Loop(label(2), times=times):
                model(**call)
            past.append([bool(done.computed) for done in decided(session)])
    assert past[0] == past[1]
    assert (len(past[0]), sum(past[0])) == (STEPS, 26)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "format"), [("eager", "onnx"), ("inductor", "onnx"), ("inductor", "aoti")]
)
def test_a_dynamic_policy(tmp_path: Path, target: str, format: str) -> None:
    bundled = BUNDLED["digits"]
    model, labels = bundled.load(), torch.tensor([3])
    method = f"method=first-block,residual-diff-threshold={THRESHOLD}"
    passes = f"exact,insert-block-cache{{{method}}}"
    call = bundled.example(labels)
    path = tmp_path / "b"
    manifest = ditc.export(model, call.args, call.kwargs, path, passes=passes, format=format)
    assert manifest.schedule.judge
    torch._dynamo.reset()
    options = {"target": target, "strict": True, "passes": passes}
    fast = torch.compile(model, backend="ditc", options=options)
    loaded = ditc.load(path, **OPENED[format])
    images, past = [], []
    for way in (fast, loaded):
        with ditc.session(way, timesteps=bundled.timesteps(STEPS)) as session:
            images.append(bundled.sample(way, labels, num_inference_steps=STEPS))
            past.append(decided(session))
    for want, got in zip(*past, strict=True):
        if bool(want.computed) == bool(got.computed):
            continue
        changes = want.step.change, got.step.change
        assert all(c is not None and abs(c - THRESHOLD) < 1e-3 for c in changes), (want, got)
        return  # from here on the two keep different states
    computed = sum(bool(done.computed) for done in past[0])
    assert 5 < computed < STEPS - 5
    torch.testing.assert_close(images[1], images[0], rtol=0, atol=1e-3)
