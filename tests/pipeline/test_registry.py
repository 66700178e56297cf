"""Names of passes, presets and backends."""

from __future__ import annotations

import pytest

from dit_compile.errors import OptionError, PipelineError
from dit_compile.pipeline.base import Kind
from dit_compile.pipeline.pipeline import Pipeline
from dit_compile.pipeline.presets import PRESETS, preset
from dit_compile.pipeline.registry import backends, find_backend, find_pass, passes


def test_names_are_unique_and_lead_back() -> None:
    from dit_compile.passes.catalog import ALL

    assert len(passes()) == len(ALL)
    assert all(find_pass(name).name == name for name in passes())
    assert all(find_backend(name).name == name for name in backends())
    assert not set(passes()) & set(PRESETS)


def test_unknown_pass() -> None:
    with pytest.raises(PipelineError) as caught:
        find_pass("fuse-qvk")
    assert str(caught.value) == (
        "unknown pass 'fuse-qvk'; did you mean 'fuse-qkv'?; `ditc passes` lists what there is"
    )


def test_unknown_backend() -> None:
    with pytest.raises(OptionError) as caught:
        find_backend("inducter")
    assert str(caught.value).startswith("unknown target 'inducter'; did you mean 'inductor'?; ")


def test_unknown_preset() -> None:
    with pytest.raises(OptionError) as caught:
        preset("balance")
    assert str(caught.value) == (
        "unknown preset 'balance'; did you mean 'balanced'?; presets are exact, balanced, fast"
    )


@pytest.mark.parametrize("name", PRESETS)
def test_presets_parse(name: str) -> None:
    assert Pipeline.parse(name) == Pipeline.parse(preset(name))
    assert len(Pipeline.parse(name)) > 0


def test_the_default_changes_nothing_on_purpose() -> None:
    assert {item.kind for item in Pipeline.parse("exact")} == {Kind.EXACT}
