"""The exact preset on real architectures: what it removes is gone, and the numbers stay."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dit_compile.ir.fingerprint import fingerprint
from dit_compile.ir.program import Program, placeholders
from dit_compile.pipeline.pipeline import Pipeline
from tests.analysis.structures import captured
from tests.passes import detector
from tests.passes.irtest import ops, rewrite_on

#: The passes that the detectors know, without those that move work out of the loop.
PASSES = "remove-noops,eliminate-common,fuse-qkv,fuse-adaln,eliminate-dead"
#: Quick cases with blocks unlike each other.
ZOO = (
    "cogview3",
    "dit",
    "flux",
    "latte",
    "ltx",
    "minimax_music",
    "pixart",
    "prior",
    "sana",
    "sd3",
    "stable_audio",
    "wan",
)
DETECTORS: dict[str, Callable[[Program], set[str]]] = {
    "remove-noops": detector.noops,
    "eliminate-common": detector.repeated,
    "fuse-qkv": detector.sibling_linears,
    "fuse-adaln": detector.modulated_norms,
    "eliminate-dead": detector.unread,
}


#: What the detectors find as captured: one place of each pattern at the least.
FOUND = {
    "dit": {"remove-noops": 13, "eliminate-common": 7, "fuse-qkv": 9, "fuse-adaln": 7},
    "pixart": {"remove-noops": 22, "eliminate-common": 6, "fuse-qkv": 20, "fuse-adaln": 9},
    "sd3": {"remove-noops": 14, "eliminate-common": 8, "fuse-qkv": 30, "fuse-adaln": 14},
    "flux": {"remove-noops": 14, "eliminate-common": 27, "fuse-qkv": 24, "fuse-adaln": 11},
    "wan": {"remove-noops": 22, "eliminate-common": 10, "fuse-qkv": 15, "fuse-adaln": 7},
}
#: Operators before and after.
COUNTS = {
    "dit": {
        "aten.linear": (31, 23),
        "aten.layer_norm": (7, 0),
        "ditc.adaln_norm": (0, 7),
        "aten.silu": (8, 6),
        "aten.cos": (4, 1),
        "aten.clone": (7, 1),
    },
    "pixart": {
        "aten.linear": (46, 34),
        "aten.layer_norm": (9, 0),
        "ditc.adaln_norm": (0, 9),
        "aten.repeat_interleave": (4, 1),
        "aten.clone": (13, 1),
    },
    "sd3": {
        "aten.linear": (68, 44),
        "aten.layer_norm": (16, 4),
        "ditc.adaln_norm": (0, 12),
        "aten.silu": (11, 3),
        "aten.clone": (20, 7),
    },
    "flux": {
        "aten.linear": (56, 37),
        "aten.layer_norm": (12, 1),
        "ditc.adaln_norm": (0, 11),
        "aten.silu": (11, 4),
        "aten.clone": (6, 0),
    },
    "wan": {
        "aten.linear": (36, 27),
        "aten.layer_norm": (10, 3),
        "ditc.adaln_norm": (0, 7),
        "aten.slice": (32, 10),
        "aten.clone": (23, 2),
    },
}


@pytest.mark.parametrize("name", ZOO)
def test_nothing_is_left_but_recorded_near_misses(name: str) -> None:
    program = captured(name)[0]
    after = program.copy()
    run = Pipeline.parse(PASSES).run(after)
    missed = {record.item.name: {miss.node for miss in record.misses} for record in run.records}
    for pass_name, detect in DETECTORS.items():
        assert detect(after) <= missed[pass_name], pass_name
    found = {pass_name: len(detect(program)) for pass_name, detect in DETECTORS.items()}
    assert found.items() >= FOUND.get(name, {}).items()
    assert found["remove-noops"] * found["eliminate-common"] > 0, "there is something to find"
    counts = {op: (ops(program)[op], ops(after)[op]) for op in COUNTS.get(name, ())}
    assert counts == COUNTS.get(name, {})


@pytest.mark.parametrize("name", ["dit", "flux", "wan"])
def test_the_preset_is_exact_and_done_at_once(name: str) -> None:
    program, values = captured(name)
    named = zip([node.name for node in placeholders(program.main)], values, strict=True)
    after = rewrite_on("exact", program, dict(named)).after
    again = after.copy()
    Pipeline.parse("exact").run(again)
    assert fingerprint(again) == fingerprint(after)


def test_near_misses_of_sd3() -> None:
    """A norm that two attentions modulate each in their own way cannot go into either."""
    after = captured("sd3")[0].copy()
    records = Pipeline.parse(PASSES).run(after).records
    misses = [(miss.path, miss.reason) for record in records for miss in record.misses]
    assert [reason for _, reason in misses] == ["the layer norm has another user"] * 2
    assert all(path.startswith("transformer_blocks.") for path, _ in misses)
