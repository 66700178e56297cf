"""Passes are frozen dataclasses whose fields are their options."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from dit_compile.errors import PipelineError
from dit_compile.pipeline import registry
from dit_compile.pipeline.base import Kind
from tests.pipeline.passes import Everything, Late


def test_options_become_fields() -> None:
    options = {"count": 3, "max-error": 1, "is_on": True, "sizes": (4,), "maybe": 7}
    made = Everything.from_options(options)
    assert made == Everything(count=3, max_error=1.0, is_on=True, sizes=(4,), maybe=7)
    assert type(made.max_error) is float


def test_only_what_differs_is_printed() -> None:
    assert str(Everything()) == "everything"
    made = Everything(max_error=1.0, word="two words", maybe=0)
    assert str(made) == 'everything{max-error=1.0,word="two words",maybe=0}'
    assert made.to_options() == {"max-error": 1.0, "word": "two words", "maybe": 0}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"count": "many"}, "everything: option 'count' takes int, not str 'many'"),
        ({"count": 1.5}, "everything: option 'count' takes int, not float 1.5"),
        ({"count": True}, "everything: option 'count' takes int, not bool True"),
        ({"max-error": True}, "everything: option 'max-error' takes float, not bool True"),
        ({"is-on": 1}, "everything: option 'is-on' takes bool, not int 1"),
        ({"word": 7}, "everything: option 'word' takes str, not int 7"),
        ({"word": None}, "everything: option 'word' takes str, not NoneType None"),
        ({"maybe": "x"}, r"everything: option 'maybe' takes int \| None, not str 'x'"),
        ({"sizes": 3}, r"everything: option 'sizes' takes tuple\[int, ...\], not int 3"),
    ],
)
def test_wrong_types(options: dict[str, Any], text: str) -> None:
    with pytest.raises(PipelineError, match=f"^{text}$"):
        Everything.from_options(options)


def test_unknown_options() -> None:
    with pytest.raises(PipelineError) as caught:
        Everything.from_options({"max_eror": 1})
    assert str(caught.value) == (
        "everything has no option 'max_eror'; did you mean 'max-error'?; it takes count, "
        "max-error, is-on, word, maybe, sizes, words"
    )
    with pytest.raises(
        PipelineError, match=r"^late takes no options, so 'x' is unknown; remove it"
    ):
        Late.from_options({"x": 1})


@pytest.mark.parametrize("item", registry.passes().values(), ids=lambda item: item.name)
class TestEveryPass:
    def test_is_frozen(self, item: type[Any]) -> None:
        made = item()
        assert dataclasses.is_dataclass(made)
        with pytest.raises(dataclasses.FrozenInstanceError):
            made.anything = 1

    def test_says_before_after_and_when(self, item: type[Any]) -> None:
        for word in ("Before:", "After:", "Fires only if:"):
            assert word in (item.__doc__ or "")

    def test_has_a_kind_and_a_kebab_name(self, item: type[Any]) -> None:
        assert isinstance(item.kind, Kind)
        assert item.name == item.name.lower().replace("_", "-")
        assert set(item.after) <= set(registry.passes())
