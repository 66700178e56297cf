"""The text form: what is printed is parsed to the same, and what does not parse says where."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dit_compile.errors import PipelineError
from dit_compile.pipeline.text import Item, parse, print_item, print_value

NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9_-]*", fullmatch=True)
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4).map(tuple), max_leaves=8)


def same(left: Any, right: Any) -> bool:
    """Equal, and of the same types all the way down."""
    if isinstance(left, tuple) and isinstance(right, tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and left == right


@given(VALUES)
@example("inf")
@example("nan")
@example(".5")
@example("true")
@example("None")
@example("1_000")
@example('quo"te\\')
@example("")
@example("two words")
@example("a=b,c")
@example(float("inf"))
@example(1e-06)
@example(())
def test_values_round_trip(value: Any) -> None:
    (item,) = parse(print_item("p", {"x": value}))
    assert same(item.options["x"], value)


@given(st.lists(st.tuples(NAMES, st.dictionaries(NAMES, VALUES, max_size=3)), max_size=4))
def test_items_round_trip(items: list[tuple[str, dict[str, Any]]]) -> None:
    text = ",".join(print_item(name, options) for name, options in items)
    assert parse(text) == [Item(name, options) for name, options in items]


@given(st.text(alphabet='ab1,{}[]="\\ \n', max_size=12))
def test_any_text_parses_or_says_why_not(text: str) -> None:
    try:
        items = parse(text)
    except PipelineError:
        return
    assert parse(",".join(print_item(item.name, item.options) for item in items)) == items


def test_space_does_not_count() -> None:
    spread = ' a { x = 1 , y = [ 1 , "b c" ] } ,\n  b '
    assert parse(spread) == [Item("a", {"x": 1, "y": (1, "b c")}), Item("b", {})]
    assert parse("  ") == []


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        (None, "none"),
        (3, "3"),
        (1e-6, "1e-06"),
        ("taylor", "taylor"),
        ("plans/a-b.json", "plans/a-b.json"),
        ("a b", '"a b"'),
        ("7", '"7"'),
        ((1, ("a",)), "[1,[a]]"),
    ],
)
def test_values_read_well(value: Any, text: str) -> None:
    assert print_value(value) == text


@pytest.mark.parametrize(
    ("text", "reason", "rest"),
    [
        ("a b", "expected ','", "b"),
        ("a,", "expected a pass after the comma", ""),
        (",a", "expected a pass name", ",a"),
        ("a,,b", "expected a pass name", ",b"),
        ("1a", "expected a pass name", "1a"),
        ("a{x}", "expected '='", "}"),
        ("a{=1}", "expected an option name", "=1}"),
        ("a{x=}", "expected a value", "}"),
        ("a{x=1", "expected ',' or '}'", ""),
        ("a{x=1 y=2}", "expected ',' or '}'", "y=2}"),
        ("a{x=[1}", "expected ',' or ']'", "}"),
        ("a{x=1,x=2}", "option 'x' is given twice", "2}"),
        ('a{x="b}', "the string has no closing quote", ""),
        ("a}", "expected ','", "}"),
    ],
)
def test_errors_point_at_the_place(text: str, reason: str, rest: str) -> None:
    with pytest.raises(PipelineError) as caught:
        parse(text)
    head, shown, caret = str(caught.value).splitlines()
    assert head == f"pipeline text: {reason}"
    assert shown == f"  {text}"
    assert shown[caret.index("^") :] == rest


def test_errors_show_a_text_of_several_lines_as_one() -> None:
    with pytest.raises(PipelineError) as caught:
        parse("a,\nb c")
    assert str(caught.value).splitlines() == [
        "pipeline text: expected ','",
        "  a, b c",
        "       ^",
    ]
