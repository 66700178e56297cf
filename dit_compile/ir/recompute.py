"""Marks of what a model asks to be computed again in the backward pass instead of being kept.

They are torch's own: AOTAutograd takes them from a node to what it traces of it, and its
partitioner heeds them.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx
from torch.utils.checkpoint import CheckpointPolicy

#: Keys of a node's metadata: what to do with its values, and the number of its region. Where a
#: value goes from one region to a later one, the partitioner keeps it.
MARKS = ("recompute", "ac_graph_id")


def mark(node: fx.Node, region: int) -> None:
    """Let ``node``, in the checkpointed region of this number, be computed again."""
    node.meta.update(zip(MARKS, (CheckpointPolicy.PREFER_RECOMPUTE, region), strict=True))


def is_marked(node: fx.Node) -> bool:
    """Whether ``node`` is to be computed again."""
    return MARKS[0] in node.meta


def inherit_marks(node: fx.Node, replaces: Sequence[fx.Node]) -> None:
    """Mark ``node`` as what it stands for, in the last region of these, if all of it is marked."""
    if replaces and all(map(is_marked, replaces)):
        mark(node, max(old.meta[MARKS[1]] for old in replaces))
