"""Branches: their kinds, gates and outputs, and that a cached output replaces the work."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from dit_compile.analysis.blocks import find_stacks
from dit_compile.analysis.branches import Branch
from dit_compile.analysis.flow import Flow, op_name
from dit_compile.ir.program import MAIN, Program, placeholders
from tests.analysis.structures import (
    FAMILIES,
    MLP,
    OTHERS,
    Attention,
    Chain,
    LinearAttention,
    captured,
    each,
    plain,
    stripped,
    tokens,
)

#: Branches of the first block of each stack: path inside the block, kind, whether gated.
FIRST = {
    "dit": [[("attn1", "attn", True), ("ff", "mlp", True)]],
    "pixart": [[("attn1", "attn", True), ("attn2", "cross", False), ("ff", "mlp", True)]],
    "sd3": [
        [
            ("attn.to_out", "attn", True),
            ("attn2", "attn", True),
            ("ff", "mlp", True),
            ("attn.to_add_out", "attn", True),
            ("ff_context", "mlp", True),
        ]
    ],
    "flux": [
        [
            ("attn.to_out", "attn", True),
            ("ff", "mlp", True),
            ("attn.to_add_out", "attn", True),
            ("ff_context", "mlp", True),
        ],
        [("attn_mlp", "attn+mlp", True)],
    ],
    "wan": [[("attn1", "attn", True), ("attn2", "cross", False), ("ffn", "mlp", True)]],
    "latte": [
        [("attn1", "attn", True), ("attn2", "cross", False), ("ff", "mlp", True)],
        [("attn1", "attn", True), ("ff", "mlp", True)],
    ],
}
#: Attention that is in no stack: it pools the text once, or joins the stream between two blocks.
ELSEWHERE = {"hunyuan_dit": 1, "mochi": 1, "consisid": 2}


def branches_of(program: Program) -> list[Branch]:
    return [b for stack in find_stacks(program) for block in stack.blocks for b in block.branches]


def sweep(graph: fx.Graph) -> None:
    """Dead-code elimination that takes attention for what it is here: without dropout."""
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op in {"placeholder", "output"})


def run(module: fx.GraphModule, values: tuple[Any, ...]) -> list[Tensor]:
    with torch.no_grad():
        return pytree.tree_leaves(fx.Interpreter(module).run(*values))


class Keeper(fx.Interpreter):
    """Keeps the values of some nodes."""

    def __init__(self, module: fx.GraphModule, wanted: set[fx.Node]) -> None:
        super().__init__(module)
        self.wanted, self.kept = wanted, {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self.wanted:
            self.kept[n] = value
        return value


def replace(graph: fx.Graph, outputs: list[fx.Node]) -> None:
    """Put a new placeholder for each output, after the others, in all its uses."""
    last = placeholders(graph)[-1]
    for number, output in enumerate(outputs):
        with graph.inserting_after(last):
            last = graph.placeholder(f"cached_{number}")
        last.meta["val"] = output.meta["val"]
        output.replace_all_uses_with(last)
    sweep(graph)
    graph.lint()


def check_caching(program: Program, values: tuple[Any, ...], elsewhere: int = 0) -> None:
    """Cached outputs of all branches leave no work of theirs and the same result."""
    program = program.copy()
    module = program.graphs[MAIN]
    sweep(module.graph)
    flow = Flow(program, module.graph)
    branches = branches_of(program)
    outputs = list(dict.fromkeys(branch.output for branch in branches))
    assert len(outputs) == len(branches)
    work = {
        node
        for branch in branches
        for node in branch.nodes
        if node in flow.members(flow.heavy & flow.between(branch.stream, branch.output))
    }
    keeper = Keeper(module, set(outputs))
    with torch.no_grad():
        before = pytree.tree_leaves(keeper.run(*values))
    replace(module.graph, outputs)
    alive = set(module.graph.nodes)
    assert sum(core in alive for core in flow.cores) == elsewhere
    assert not any(branch.nodes & alive for branch in branches)
    assert work.isdisjoint(alive)
    module.recompile()
    after = run(module, (*values, *(keeper.kept[output] for output in outputs)))
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old, new)


@pytest.mark.parametrize("name", FAMILIES)
def test_first_blocks(name: str) -> None:
    for stack, expected in zip(find_stacks(captured(name)[0]), FIRST[name], strict=True):
        block = stack.blocks[0]
        assert [
            (b.path.removeprefix(block.path + "."), b.kind, b.gate is not None)
            for b in block.branches
        ] == expected


@pytest.mark.parametrize("name", FAMILIES)
def test_cached_outputs_replace_the_work(name: str) -> None:
    program, values = captured(name)
    check_caching(program, values)
    check_caching(stripped(program), values)


@pytest.mark.parametrize("name", each(OTHERS))
def test_cached_outputs_replace_the_work_everywhere(name: str) -> None:
    program, values = captured(name, 1)
    check_caching(program, values, ELSEWHERE.get(name, 0))


@pytest.mark.parametrize("name", ["pixart", "flux", "sd3"])
def test_nodes_are_what_dies_with_the_output(name: str) -> None:
    reference = captured(name)[0].copy()
    sweep(reference.main)
    for number, branch in enumerate(branches_of(reference)):
        program = reference.copy()
        branch = branches_of(program)[number]
        before = set(program.main.nodes)
        replace(program.main, [branch.output])
        assert before - set(program.main.nodes) == branch.nodes


class Wrapped(nn.Module):
    """One residual branch, given as a function of the normed stream and a condition."""

    def __init__(self, join: Any, **modules: nn.Module) -> None:
        super().__init__()
        self.join, self.norm = join, nn.LayerNorm(16)
        self.scale = nn.Parameter(torch.ones(16))
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.join(self, x, self.norm(x), condition)


def only_branch(join: Any, **modules: nn.Module) -> Branch:
    """The branch of the second of two equal blocks."""
    blocks = [Wrapped(join, **{k: type(m)() for k, m in modules.items()}) for _ in range(2)]
    program = plain(Chain(*blocks), tokens(), torch.randn(2, 1, 16))
    first, second = branches_of(program)
    assert first.kind == second.kind
    return second


ATTENTION, MLPS = {"attn": Attention()}, {"mlp": MLP()}

GATES = {
    "none": (lambda m, x, y, c: x + m.attn(y), "linear", None),
    "modulation": (lambda m, x, y, c: x + c * m.attn(y), "linear", "context_0"),
    "one_plus": (lambda m, x, y, c: x + (1 + c) * m.attn(y), "linear", "add"),
    "tanh": (lambda m, x, y, c: m.attn(y) * c.tanh() + x, "linear", "context_0"),
    "expand": (lambda m, x, y, c: x + m.attn(y) * c.expand(-1, 6, -1), "linear", "context_0"),
    "layer_scale": (lambda m, x, y, c: x + m.scale * m.attn(y), "linear", "layers_1_scale"),
    "addcmul": (lambda m, x, y, c: torch.addcmul(x, c, m.attn(y)), "linear", "context_0"),
    "scaled": (lambda m, x, y, c: x + (c * m.attn(y)) / 2.0, "linear", "context_0"),
    "float64": (lambda m, x, y, c: (x.double() + m.attn(y).double() * c).float(), "linear",
                "context_0"),
    "sandwich": (lambda m, x, y, c: x + c * m.norm(m.attn(y)), "layer_norm", "context_0"),
    "sandwich_alone": (lambda m, x, y, c: x + m.norm(m.attn(y)), "layer_norm", None),
    "own": (lambda m, x, y, c: x + y.sigmoid() * m.attn(y), "mul", None),
}  # fmt: skip


@pytest.mark.parametrize("case", GATES)
def test_output_and_gate(case: str) -> None:
    join, output, gate = GATES[case]
    branch = only_branch(join, **ATTENTION)
    assert branch.kind == "attn"
    assert op_name(branch.output) == output
    found = None if branch.gate is None else branch.gate.name
    assert (found or "").rstrip("_0123456789") == (gate or "").rstrip("_0123456789")


def written_rms(m: Any, x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    z = m.attn(y)
    return x + m.scale * (z * torch.rsqrt(z.pow(2).mean(-1, keepdim=True) + 1e-6))


def test_weight_of_a_norm_is_no_gate() -> None:
    branch = only_branch(written_rms, **ATTENTION)
    assert branch.gate is None
    assert op_name(branch.output) == "mul"


class Conv(nn.Module):
    """A gated convolution on the tokens' grid."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Conv2d(16, 32, 1), nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.up(x.transpose(1, 2).unflatten(-1, (2, 3))).chunk(2, dim=1)
        return self.down(a * F.silu(b)).flatten(2).transpose(1, 2)


class Routed(nn.Module):
    """Each token's two best of four experts, gathered densely."""

    def __init__(self) -> None:
        super().__init__()
        self.route, self.experts = nn.Linear(16, 4), nn.ModuleList(MLP() for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        weight, index = self.route(x).softmax(-1).topk(2)
        dense = torch.zeros(*x.shape[:2], 4).scatter(-1, index, weight)
        out = torch.stack([expert(x) for expert in self.experts], dim=-1)
        return (out * dense.unsqueeze(2)).sum(-1)


class Projection(nn.Linear):
    def __init__(self) -> None:
        super().__init__(16, 16)


FUSED = F.scaled_dot_product_attention
KINDS = {
    "fused": (lambda m, x, y, c: x + m.a(FUSED(y, y, y)), {"a": Projection()}, "attn"),
    "written_out": (lambda m, x, y, c: x + m.a(y), {"a": Attention()}, "attn"),
    "linear": (lambda m, x, y, c: x + m.a(y), {"a": LinearAttention()}, "attn"),
    "cross": (lambda m, x, y, c: x + m.a(y, c), {"a": Attention()}, "cross"),
    "joint": (lambda m, x, y, c: x + m.a(y, torch.cat([c, y], 1)), {"a": Attention()}, "attn"),
    "gated_attention": (
        lambda m, x, y, c: x + m.b(m.a(y) * m.g(y).sigmoid()),
        {"a": Attention(), "b": Projection(), "g": Projection()}, "attn",
    ),
    "side_by_side": (lambda m, x, y, c: x + (m.a(y) + m.b(y)), {"a": Attention(), "b": MLP()},
                     "attn+mlp"),
    "in_turn": (lambda m, x, y, c: x + m.b(m.a(y)), {"a": Attention(), "b": MLP()}, "attn+mlp"),
    "adapter_inside": (
        lambda m, x, y, c: x + m.b((z := m.g(y)) + m.a(z)),
        {"a": Attention(), "b": Projection(), "g": Projection()}, "attn",
    ),
    "mlp": (lambda m, x, y, c: x + m.b(y), {"b": MLP()}, "mlp"),
    "conv": (lambda m, x, y, c: x + m.b(y), {"b": Conv()}, "mlp"),
    "experts": (lambda m, x, y, c: x + m.b(y), {"b": Routed()}, "mlp"),
    "projection": (lambda m, x, y, c: x + m.b(y), {"b": Projection()}, "other"),
}  # fmt: skip


@pytest.mark.parametrize("case", KINDS)
def test_kinds(case: str) -> None:
    join, modules, kind = KINDS[case]
    assert only_branch(join, **modules).kind == kind


def test_branches_side_by_side_on_one_stream() -> None:
    def both(m: Any, x: Tensor, y: Tensor, c: Tensor) -> Tensor:
        return x + m.a(y) + c * m.b(y)

    blocks = [Wrapped(both, a=Attention(), b=MLP()) for _ in range(2)]
    program = plain(Chain(*blocks), tokens(), torch.randn(2, 1, 16))
    for view in (program, stripped(program)):
        (stack,) = find_stacks(view)
        assert [[b.kind for b in block.branches] for block in stack.blocks] == [["attn", "mlp"]] * 2
        assert [b.gate is not None for b in stack.blocks[0].branches] == [False, True]


class Both(nn.Module):
    """Two streams, updated in turn by attention to each other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = Attention(), Attention()
        self.c, self.d = MLP(), MLP()

    def forward(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        x = x + self.a(x, z)
        x = x + self.c(x)
        z = z + self.b(z, x)
        z = z + self.d(z)
        return x, z


class TwoWay(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Both() for _ in range(3))

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        for layer in self.layers:
            x, z = layer(x, z)
        return torch.cat([x, z], 1)


def test_two_streams_that_read_each_other() -> None:
    program = plain(TwoWay(), tokens(6), tokens(4))
    (stack,) = find_stacks(program)
    expected = ["cross", "mlp", "cross", "mlp"]
    assert [[b.kind for b in block.branches] for block in stack.blocks] == [expected] * 3
    assert all(len(block.streams_out) == 2 for block in stack.blocks)
    for view in (program, stripped(program)):  # without paths each stream is a stack of its own
        assert [b.kind for b in branches_of(view)].count("cross") == 6
        assert len({b.residual for b in branches_of(view)}) == 12
