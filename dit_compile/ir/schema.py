"""A node's arguments by the names that its operator's schema gives them."""

from __future__ import annotations

from typing import Any

from torch import fx

from dit_compile.errors import AnalysisError


def argument_names(node: fx.Node) -> list[str]:
    """The names of all arguments, in order; none for what is no operator with a schema."""
    schema = getattr(node.target, "_schema", None)
    return [argument.name for argument in schema.arguments] if schema is not None else []


def given_arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments that the node states; without a schema, positions stand for names."""
    names = argument_names(node) or map(str, range(len(node.args)))
    return dict(zip(names, node.args, strict=False)) | node.kwargs


def arguments(node: fx.Node) -> dict[str, Any]:
    """All arguments, those that are left out with their defaults."""
    schema = getattr(node.target, "_schema", None)
    declared = schema.arguments if schema is not None else ()
    return {each.name: each.default_value for each in declared} | given_arguments(node)


def argument(node: fx.Node, name: str) -> Any:
    """The argument called ``name``, or its default.

    Raises:
        AnalysisError: the operator has no such argument.
    """
    try:
        return arguments(node)[name]
    except KeyError:
        raise AnalysisError(f"{node.target} has no argument {name!r}") from None
