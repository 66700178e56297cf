"""Which node of one stage is which node of the next."""

from __future__ import annotations

from torch import fx

from dit_compile.ir.origin import Origin
from dit_compile.ir.program import Program


class Identities:
    """Numbers for nodes that stay the same as long as a node lives, whatever it is called.

    A node object keeps its number. Where a pass puts a copy in the place of a whole graph, a node
    goes by its origin, which copies share; so does a copy that lives on in another graph.
    """

    def __init__(self) -> None:
        self._numbers: dict[fx.Node, int] = {}
        self._modules: dict[str, fx.GraphModule] = {}
        self._lost: dict[int, int] = {}
        # The origin is held too, so that its address is not used again.
        self._first: dict[int, tuple[int, fx.Node, Origin]] = {}

    def enter(self, program: Program) -> None:
        """Look at all graphs of a stage; nodes that are new get their numbers."""
        for name, module in program.graphs.items():
            old = self._modules.get(name)
            self._lost = _by_origin(old, self._numbers) if old not in (None, module) else {}
            self._modules[name] = module
            for node in module.graph.nodes:
                if node not in self._numbers:
                    self._number(node)
        for name in self._modules.keys() - program.graphs.keys():
            del self._modules[name]

    def __getitem__(self, node: fx.Node) -> int:
        return self._numbers[node]

    def get(self, node: fx.Node) -> int | None:
        """The number of ``node``, ``None`` if no stage has it."""
        return self._numbers.get(node)

    def copy_of(self, node: fx.Node) -> int | None:
        """The number of the node of another graph that ``node`` was copied from."""
        origin = node.meta.get("origin")
        number, first, _ = self._first.get(id(origin), (-1, node, None))
        same = first.target == node.target and first.op == node.op
        return number if first is not node and same else None

    def _number(self, node: fx.Node) -> None:
        origin = node.meta.get("origin")
        number = self._lost.pop(id(origin), len(self._numbers))
        self._numbers[node] = number
        if isinstance(origin, Origin):
            self._first.setdefault(id(origin), (number, node, origin))


def _by_origin(module: fx.GraphModule | None, numbers: dict[fx.Node, int]) -> dict[int, int]:
    nodes = module.graph.nodes if module is not None else ()
    return {id(node.meta["origin"]): numbers[node] for node in nodes if "origin" in node.meta}
