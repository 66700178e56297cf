"""What each policy computes, on trajectories that can be worked out by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dit_compile.calibration.measured import Measured
from dit_compile.errors import PipelineError
from dit_compile.ir.schedule import Done, Step
from dit_compile.passes.block_cache.calibrated import position
from dit_compile.passes.block_cache.delta import Delta
from dit_compile.passes.block_cache.first_block import FirstBlock
from dit_compile.passes.block_cache.magnitude import Magnitude
from dit_compile.passes.block_cache.mask import Mask
from dit_compile.passes.block_cache.policies import POLICIES
from dit_compile.passes.block_cache.pyramid import Pyramid
from dit_compile.passes.block_cache.smooth import Smooth
from dit_compile.passes.block_cache.taylor import Taylor
from dit_compile.pipeline.pipeline import Pipeline
from tests.passes.block_cache.masks import computed_steps

ALL = frozenset({"blocks"})


def decided(policy: FirstBlock, changes: list[float]) -> str:
    """What a dynamic policy computes when its probe measures these changes, step 0 aside."""
    past = [Done(Step(0, None, False), ALL)]
    for index, change in enumerate(changes, start=1):
        step = Step(index, None, False, change=change)
        past.append(Done(step, ALL if policy.computes("blocks", step, past) else frozenset()))
    return "".join(str(int("blocks" in done.computed)) for done in past)


class TestTaylor:
    def test_warm_up_then_every_interval(self) -> None:
        assert computed_steps(Taylor(), 14) == {"blocks": "11100010001001"}
        assert computed_steps(Taylor(interval=2, warmup_steps=1), 7) == {"blocks": "1010101"}
        assert computed_steps(Taylor(compute_last=False), 14) == {"blocks": "11100010001000"}

    @pytest.mark.parametrize(
        ("interval", "computed"),
        [
            (1, "11111111111111111111"),
            (2, "11101010101010101011"),
            (3, "11101001001001001001"),
            (4, "11101000100010001001"),
            (5, "11101000100001000011"),
            (16, "11101000100000001001"),
        ],
    )
    def test_the_distance_doubles_until_it_is_the_interval(
        self, interval: int, computed: str
    ) -> None:
        assert computed_steps(Taylor(interval=interval, ramp=True), 20) == {"blocks": computed}
        assert Taylor(order=3).depth == 4


class TestDelta:
    def test_the_rear_span_first_then_the_front(self) -> None:
        mask = computed_steps(Delta(interval=3), 12, ("rear", "front"))
        assert mask == {"rear": "100100111111", "front": "111111100101"}

    def test_progress_by_timestep_where_nobody_said_how_many_steps(self) -> None:
        past = [Done(Step(0, None, False, 900.0), frozenset({"rear", "front"}))]
        early, late = Step(1, None, False, 700.0), Step(1, None, False, 300.0)
        policy = Delta(interval=9)
        assert [policy.computes(g, early, past) for g in ("rear", "front")] == [False, True]
        assert [policy.computes(g, late, past) for g in ("rear", "front")] == [True, False]


class TestPyramid:
    TIMES = tuple(range(975, 0, -50))

    def test_ranges_inside_the_window(self) -> None:
        groups = ("spatial", "temporal", "cross")
        mask = computed_steps(Pyramid(), len(self.TIMES), groups, self.TIMES)
        inside = [100 < t < 800 for t in self.TIMES]
        for name, every in (("spatial", 2), ("temporal", 4), ("cross", 6)):
            assert all(m == "1" for m, i in zip(mask[name], inside, strict=True) if not i)
            window = "".join(m for m, i in zip(mask[name], inside, strict=True) if i)
            assert window == ("0" * (every - 1) + "1") * (len(window) // every) + "0" * (
                len(window) % every
            )

    def test_flow_models_count_from_one(self) -> None:
        times = [t / 1000 for t in self.TIMES]
        groups = ("spatial", "cross")
        assert computed_steps(Pyramid(), 20, groups, times) == computed_steps(
            Pyramid(), 20, groups, self.TIMES
        )

    def test_without_timesteps_everything_is_computed(self) -> None:
        past = [Done(Step(0, None, False), frozenset({"spatial"}))]
        assert Pyramid().computes("spatial", Step(1, None, False), past)


class TestFirstBlock:
    def test_the_change_since_the_last_computed_step_decides(self) -> None:
        policy = FirstBlock(residual_diff_threshold=0.1)
        assert decided(policy, [0.05, 0.09, 0.1, 0.02, 0.3]) == "100101"

    def test_a_change_that_is_no_number_computes(self) -> None:
        assert decided(FirstBlock(), [float("nan"), float("inf")]) == "111"

    def test_limits(self) -> None:
        small = [0.0] * 8
        assert decided(FirstBlock(max_continuous_cached_steps=2), small) == "100100100"
        assert decided(FirstBlock(max_cached_steps=3), small) == "100011111"
        assert decided(FirstBlock(max_warmup_steps=3), small) == "111000000"

    def test_the_distance_between_computed_steps_may_at_most_double(self) -> None:
        small = [0.0] * 14
        assert decided(FirstBlock(ramp=True, max_warmup_steps=2), small) == "110100010000000"
        capped = FirstBlock(ramp=True, max_warmup_steps=2, max_continuous_cached_steps=2)
        assert decided(capped, small) == "110100100100100"
        assert decided(FirstBlock(ramp=True), small) == "110100010000000"  # one step tells nothing

    def test_changes_of_the_embedding_add_up_and_start_over(self) -> None:
        policy = FirstBlock(measure="embedding", residual_diff_threshold=0.1)
        assert decided(policy, [0.04, 0.04, 0.04, 0.04, 0.09]) == "100101"

    def test_the_polynomial_is_highest_power_first(self) -> None:
        policy = FirstBlock(
            measure="embedding", residual_diff_threshold=0.1, rescale=(2.0, 0.0, 0.01)
        )
        # 2 * 0.2^2 + 0.01 = 0.09 and 2 * 0.25^2 + 0.01 = 0.135
        assert decided(policy, [0.2]) == "10"
        assert decided(policy, [0.25]) == "11"

    def test_threshold_zero_never_reuses(self) -> None:
        assert FirstBlock(residual_diff_threshold=0).rows(["blocks"]) == [(1,)]


class TestMagnitude:
    def test_errors_of_the_accumulated_ratio_add_up(self) -> None:
        policy = Magnitude(ratios=(1, 0.98, 0.98, 0.98, 0.98, 0.98), retention=0)
        # |1 - 0.98| = 0.02, |1 - 0.98^2| = 0.0396: 0.0596; the third would make 0.118
        assert computed_steps(policy, 6) == {"blocks": "100101"}
        assert computed_steps(replace(policy, threshold=0.05), 6) == {"blocks": "101011"}

    def test_limits(self) -> None:
        policy = Magnitude(ratios=(1.0,) * 12, retention=0)
        assert computed_steps(policy, 12) == {"blocks": "100010001001"}
        assert computed_steps(replace(policy, retention=0.5), 12) == {"blocks": "111111000101"}


class TestSmooth:
    CHANGES = ((0.05, 0.09, 0.3), (0.1, 0.2, 0.3), (0.01, 0.2), (0.01,), ())

    def test_each_type_is_reused_as_far_as_its_change_allows(self) -> None:
        found = Measured((4.0, 3.0, 2.0, 1.0, 0.0), {"attn": self.CHANGES}, {})
        fitted = Smooth(alpha=0.1).fitted(found)
        assert fitted.mask == "attn:10010"
        assert fitted.times == found.times
        assert Smooth(alpha=0.1, max_continuous_cached_steps=1).fitted(found).mask == "attn:10101"
        assert Smooth(alpha=0).fitted(found).mask == "attn:11111"


class TestMask:
    def test_text_number_and_files_say_the_same(self, tmp_path: Path) -> None:
        plain = Mask(mask="1101")
        assert Mask(mask=1101) == plain
        assert Mask(mask="11 0 1") == Mask(mask="[1, 1, 0, 1]") == plain, "as cache-dit has them"
        (tmp_path / "list.json").write_text("[1, 1, 0, 1]")
        assert Mask(mask=str(tmp_path / "list.json")) == plain
        (tmp_path / "types.json").write_text(json.dumps({"attn1": [1, 0], "ff": [1, 1]}))
        assert Mask(mask=str(tmp_path / "types.json")).mask == "attn:10 mlp:11"

    @pytest.mark.parametrize("kind", ["attn", "cross", "mlp", "attn+mlp", "other"])
    def test_each_type_of_branch_can_be_named(self, kind: str) -> None:
        """Also what a calibration wrote: its text reads back."""
        found = Mask(mask=f"{kind}:10 x:11")
        assert found.by_group == {kind: (1, 0), "x": (1, 1)}
        assert Mask(mask=found.mask) == found

    def test_it_is_followed(self) -> None:
        assert computed_steps(Mask(mask="1001101"), 7) == {"blocks": "1001101"}

    @given(
        digits=st.lists(st.sampled_from("01"), max_size=20),
        steps=st.integers(2, 40),
    )
    def test_stretched_it_never_reuses_across_a_computed_step(
        self, digits: list[str], steps: int
    ) -> None:
        digits = ["1", *digits, "0"]
        got = computed_steps(Mask(mask="".join(digits)), steps)["blocks"]
        for i in range(1, steps):
            places = [int(position(Step(j, steps, False), len(digits))) for j in (i - 1, i)]
            assert got[i] == str(int("1" in digits[places[0] + 1 : places[1] + 1]))

    @pytest.mark.parametrize("text", ["0110", "abc", "attn:11 mlp:111", "attn:", "12"])
    def test_wrong_masks(self, text: str) -> None:
        with pytest.raises(PipelineError, match="mask"):
            Mask(mask=text)

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(PipelineError, match="cannot read the mask"):
            Mask(mask=str(tmp_path / "none.json"))


class TestPosition:
    def test_by_index_by_length_and_by_time(self) -> None:
        assert position(Step(3, 10, False), 10) == 3
        assert position(Step(3, None, False), 10) == 3
        assert position(Step(3, 4, False), 10) == 9
        assert position(Step(1, None, False, 250.0), 3, (300.0, 200.0, 100.0)) == 0.5
        assert position(Step(1, None, False, 900.0), 3, (300.0, 200.0, 100.0)) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method=taylor,basis=newtn", "basis is one of taylor, newton, not newtn; did you mean"),
        ("method=taylor,warmup-steps=0", "warmup-steps must be at least 1, not 0"),
        ("method=delta,boundary=1.5", "boundary must be between 0 and 1, not 1.5"),
        ("method=first-block,front=0", "front must be at least 1, not 0"),
        ("method=pyramid,cross=0", "cross must be at least 1, not 0"),
        ("method=magnitude,retention=-1", "retention must be between 0 and 1, not -1"),
        ("method=first-block,treshold=1", "has no option 'treshold'"),
        ("state-dtype=bf16", "state-dtype is one of float16, bfloat16, float32, not 'bf16'"),
    ],
)
def test_wrong_options(text: str, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        Pipeline.parse(f"insert-block-cache{{{text}}}")


@pytest.mark.parametrize("method", POLICIES)
def test_options_round_trip(method: str) -> None:
    options = {
        "mask": ',mask="attn:110 mlp:101",times=[3.0,2.0,1.0]',
        "magnitude": ",ratios=[1,2]",
        "skip-guidance": ",conditional=first",
        "linear-guidance": ",conditional=first",
    }
    text = f"insert-block-cache{{method={method}{options.get(method, '')},max-state-bytes=9}}"
    pipeline = Pipeline.parse(text)
    assert Pipeline.parse(str(pipeline)) == pipeline
    assert f"method={method}" in str(pipeline)
    assert "max-state-bytes=9" in str(pipeline)


@pytest.mark.parametrize("method", POLICIES)
def test_ladders_go_from_gentle_to_strong(method: str) -> None:
    kind = POLICIES[method]
    guidance = {"conditional": "first"}
    needed = {
        "mask": {"mask": "1101"},
        "skip-guidance": guidance,
        "linear-guidance": guidance,
    }
    policy = kind(**needed.get(method, {}))
    ladder = policy.ladder()
    assert all(type(rung) is kind for rung in ladder)
    assert len(set(ladder)) == len(ladder)
