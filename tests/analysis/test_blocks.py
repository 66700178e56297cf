"""Stacks of blocks: found by module path, by dataflow alone, and not where there are none."""

from __future__ import annotations

import json
import time
from collections import Counter

import pytest
import torch
from torch import Tensor, fx, nn

from dit_compile.analysis.blocks import Stack, describe_stacks, find_stacks, find_structure
from dit_compile.ir.program import Program
from dit_compile.pipeline.pipeline import Pipeline
from dit_compile.pipeline.presets import preset
from tests import zoo
from tests.analysis.structures import (
    FAMILIES,
    MLP,
    OTHERS,
    Attention,
    Chain,
    PreNorm,
    captured,
    each,
    plain,
    stripped,
    through_dynamo,
    tokens,
)

CLASSES = {
    "dit": {"transformer_blocks": (0, 0, 0)},
    "pixart": {"transformer_blocks": (0, 0, 0, 0)},
    "sd3": {"transformer_blocks": (0, 0, 1, 2)},  # two with dual attention, one without text MLP
    "flux": {"transformer_blocks": (0, 0), "single_transformer_blocks": (0, 0, 1)},
    "wan": {"blocks": (0, 0, 0)},
    "latte": {"transformer_blocks": (0, 0, 0), "temporal_transformer_blocks": (0, 0, 0)},
}
LETTERS = {"a": "attn", "c": "cross", "m": "mlp"}
#: Stacks that are in the model but that the zoo does not count: a resampler of identity features.
UNCOUNTED = {"consisid": {"local_facial_extractor.layers": 2}}
#: Attention that joins the stream between blocks: no block's when paths tell, a block's without.
BETWEEN = {"consisid": 2}


def lengths(stacks: tuple[Stack, ...]) -> dict[str, int]:
    return {stack.path: len(stack.blocks) for stack in stacks}


def kinds(stacks: tuple[Stack, ...]) -> list[list[str]]:
    return [[branch.kind for branch in block.branches] for s in stacks for block in s.blocks]


def branch_paths(stacks: tuple[Stack, ...]) -> list[str]:
    return [branch.path for s in stacks for block in s.blocks for branch in block.branches]


def check_invariants(program: Program, stacks: tuple[Stack, ...]) -> None:
    """Blocks are ordered, disjoint and convex; their streams lie at their edge."""
    every = [node for stack in stacks for block in stack.blocks for node in block.nodes]
    assert len(every) == len(set(every))
    paths = branch_paths(stacks)
    assert len(paths) == len(set(paths))
    position = {node: i for i, node in enumerate(program.main.nodes)}
    for stack in stacks:
        assert [block.index for block in stack.blocks] == list(range(len(stack.blocks)))
        for block in stack.blocks:
            inside = set(block.nodes)
            places = [position[node] for node in block.nodes]
            assert places == sorted(places)
            assert block.streams_in
            assert inside.isdisjoint(block.streams_in)
            assert block.streams_out
            assert inside.issuperset(block.streams_out)
            assert all(branch.residual in inside for branch in block.branches)
            below: set[fx.Node] = set()
            for node in program.main.nodes:
                if node in inside:
                    assert below.isdisjoint(node.all_input_nodes)
                elif any(arg in inside or arg in below for arg in node.all_input_nodes):
                    below.add(node)


def check_case(name: str, variant: int = 0) -> None:
    case, (program, _) = zoo.case(name), captured(name, variant)
    stacks = find_stacks(program)
    expected = dict(zip(case.stacks, case.blocks, strict=True)) | UNCOUNTED.get(name, {})
    assert Counter(len(stack.blocks) for stack in stacks) == Counter(expected.values())
    check_invariants(program, stacks)
    blind = stripped(program)
    found = find_stacks(blind)
    check_invariants(blind, found)
    assert sum(lengths(found).values()) == sum(expected.values())
    seen, blindly = (Counter(kind for block in kinds(s) for kind in block) for s in (stacks, found))
    assert blindly - seen == Counter({"cross": BETWEEN[name]} if name in BETWEEN else {})


@pytest.mark.parametrize("name", FAMILIES)
def test_families(name: str) -> None:
    stacks = find_stacks(captured(name)[0])
    assert {stack.path: stack.classes for stack in stacks} == CLASSES[name]
    check_case(name)


@pytest.mark.parametrize("name", each(OTHERS))
def test_sweep(name: str) -> None:
    check_case(name, 1)


@pytest.mark.parametrize("order", ["am", "acm", "mam", "aam", "a", "ac"])
def test_plain_blocks_with_and_without_paths(order: str) -> None:
    context = (tokens(4),) if "c" in order else ()
    program = plain(Chain(*(PreNorm(order) for _ in range(4))), tokens(), *context)
    names = [LETTERS[letter] for letter in order]
    for view in (program, stripped(program)):
        (stack,) = find_stacks(view)
        assert kinds((stack,)) == [names] * 4
        assert stack.classes == (0, 0, 0, 0)
        check_invariants(view, (stack,))


class Unrolled(nn.Module):
    """Two pre-norm blocks without any list, everything an attribute of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Attention(), Attention()
        self.third, self.fourth = MLP(), MLP()
        self.norm = nn.LayerNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.first(self.norm(x))
        x = x + self.third(self.norm(x))
        x = x + self.second(self.norm(x))
        return x + self.fourth(self.norm(x))


def test_blocks_without_a_list() -> None:
    program = plain(Unrolled(), tokens())
    for view in (program, stripped(program)):
        (stack,) = find_stacks(view)
        assert [block.path for block in stack.blocks] == ["blocks.0", "blocks.1"]
        assert kinds((stack,)) == [["attn", "mlp"]] * 2
        assert [b.path for b in stack.blocks[1].branches] == ["blocks.1.attn", "blocks.1.mlp"]
        check_invariants(view, (stack,))


class TwoLists(nn.Module):
    """Attentions in one list and MLPs in another, added by the model itself."""

    def __init__(self) -> None:
        super().__init__()
        self.mixers = nn.ModuleList(Attention() for _ in range(3))
        self.mlps = nn.ModuleList(MLP() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for mixer, mlp in zip(self.mixers, self.mlps, strict=True):
            x = x + mixer(x)
            x = x + mlp(x)
        return x


def test_found_stacks_get_free_paths() -> None:
    class Named(TwoLists):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(PreNorm() for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return self.blocks[1](self.blocks[0](super().forward(x)))

    assert lengths(find_stacks(plain(Named(), tokens()))) == {"blocks2": 3, "blocks": 2}


def test_two_lists_that_make_up_one_stack() -> None:
    (stack,) = find_stacks(plain(TwoLists(), tokens()))
    assert kinds((stack,)) == [["attn", "mlp"]] * 3


class Staged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(nn.Sequential(PreNorm(), PreNorm()) for _ in range(2))
        self.between = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.stages[1](self.between(self.stages[0](x)))


def test_stages_hold_stacks_but_a_block_holds_none() -> None:
    assert lengths(find_stacks(plain(Staged(), tokens()))) == {"stages.0": 2, "stages.1": 2}
    inner = [nn.Sequential(PreNorm("a"), PreNorm("m")) for _ in range(3)]
    assert lengths(find_stacks(plain(Chain(*inner), tokens()))) == {"layers": 3}


class Looped(nn.Module):
    """Two blocks run one after the other, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(PreNorm() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for i in range(4):
            x = self.layers[i % 2](x)
        return x


def test_module_called_again_is_another_block() -> None:
    program = plain(Looped(), tokens())
    (stack,) = find_stacks(program)
    paths = [block.path for block in stack.blocks]
    assert paths == ["layers.0", "layers.1", "layers.0@1", "layers.1@1"]
    assert stack.classes == (0, 0, 0, 0)
    check_invariants(program, (stack,))


class AddsInput(nn.Module):
    """A skip connection over all blocks, or over the middle ones, is no branch."""

    def __init__(self, *, ends: bool) -> None:
        super().__init__()
        self.ends = ends
        self.layers = nn.ModuleList(PreNorm() for _ in range(4))
        self.out = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        given = x
        x = self.layers[0](x)
        early = x
        x = self.layers[2](self.layers[1](x))
        x = self.layers[3](x if self.ends else x + early)
        return given + self.out(x) if self.ends else x


@pytest.mark.parametrize("ends", [True, False])
def test_skip_connections_are_no_branches(ends: bool) -> None:
    program = plain(AddsInput(ends=ends), tokens())
    for view in (program, stripped(program)):
        (stack,) = find_stacks(view)
        assert kinds((stack,)) == [["attn", "mlp"]] * 4


class Layers(nn.Module):
    def __init__(self, *, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        self.layers = nn.ModuleList(MLP() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x) if self.residual else layer(x)
        return x


class Conditioned(nn.Module):
    """A residual MLP on the condition beside a transformer on the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.refine = nn.ModuleList(PreNorm("m") for _ in range(3))
        self.layers = nn.ModuleList(PreNorm() for _ in range(2))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        for layer in self.refine:
            condition = layer(condition)
        for block in self.layers:
            x = block(x * condition)
        return x


def test_near_misses() -> None:
    assert find_stacks(plain(Layers(residual=False), tokens())) == ()
    structure = find_structure(plain(Conditioned(), tokens(), torch.randn(2, 1, 16)))
    assert lengths(structure.stacks) == {"layers": 2}
    assert structure.misses == ("refine: 3 residual layers without attention",)


def test_attention_without_residual_is_reported() -> None:
    structure = find_structure(plain(nn.Sequential(Attention(), nn.Linear(16, 4)), tokens()))
    assert structure.stacks == ()
    assert [miss.partition(" at ")[0] for miss in structure.misses] == ["attention"]
    assert structure.misses[0].endswith("is in no residual branch")


def test_without_any_attention_residual_mlps_are_blocks() -> None:
    program = plain(Layers(residual=True), tokens())
    assert kinds(find_stacks(program)) == [["mlp"]] * 3


def test_classes_tell_constants_shapes_and_operators_apart() -> None:
    blocks = [
        PreNorm(), PreNorm(), PreNorm(eps=1e-6), PreNorm(hidden=48), PreNorm("aam"), PreNorm(),
    ]  # fmt: skip
    program = plain(Chain(*blocks), tokens())
    assert find_stacks(program)[0].classes == (0, 0, 1, 2, 3, 0)


def test_classes_tell_the_wiring_apart() -> None:
    class Crossed(PreNorm):
        def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
            return super().forward(x, x)

    program = plain(Chain(PreNorm("acm"), Crossed("acm"), PreNorm("acm")), tokens(), tokens())
    assert find_stacks(program)[0].classes == (0, 1, 0)


def test_description_is_plain_data() -> None:
    program = plain(Chain(PreNorm("am"), PreNorm("am")), tokens())
    (row,) = describe_stacks(find_stacks(program))
    same = {"gated": False, "output": "f32[2,6,16]"}
    assert json.loads(json.dumps(row)) == {
        "path": "layers",
        "blocks": 2,
        "classes": [0, 0],
        "branches": [
            {"path": "layers.0.branches.0a", "kind": "attn", **same},
            {"path": "layers.0.branches.1m", "kind": "mlp", **same},
        ],
    }


def test_dead_code_is_no_part_of_a_block() -> None:
    class Careless(PreNorm):
        def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
            out = super().forward(x)
            out + self.branches["0a"](self.norm(out))
            return out

    program = plain(Chain(Careless(), PreNorm()), tokens())
    (stack,) = find_stacks(program)
    assert kinds((stack,)) == [["attn", "mlp"]] * 2
    assert stack.classes == (0, 0)


class Modulated(nn.Module):
    """A block that embeds the condition itself."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attn, self.mlp = nn.Linear(16, 16), Attention(), MLP()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift = self.embed(condition).sigmoid()
        x = x + self.attn(x + shift)
        return x + self.mlp(x + shift)


class Reuses(Chain):
    """The head reads the first block's embedding of the condition."""

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return super().forward(x, condition) + self.layers[0].embed(condition).sigmoid().mean()


def test_work_for_one_block_belongs_to_it() -> None:
    condition = torch.randn(2, 1, 16)
    (stack,) = find_stacks(plain(Chain(Modulated(), Modulated()), tokens(), condition))
    for block in stack.blocks:
        assert sum(node.target is torch.ops.aten.sigmoid.default for node in block.nodes) == 1
    program = plain(Reuses(Modulated(), Modulated()), tokens(), condition)
    Pipeline.parse("eliminate-common").run(program)
    (stack,) = find_stacks(program)
    assert stack.classes == (0, 0)  # what only one of them could claim, neither does
    check_invariants(program, (stack,))


@pytest.mark.parametrize("name", FAMILIES)
def test_exact_passes_leave_the_structure(name: str) -> None:
    program = captured(name)[0].copy()
    before = find_stacks(program)
    Pipeline.parse(preset("exact")).run(program)
    after = find_stacks(program)
    check_invariants(program, after)
    assert [stack.classes for stack in after] == [stack.classes for stack in before]
    assert kinds(after) == kinds(before)
    assert branch_paths(after) == branch_paths(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dynamic_shapes_and_half_precision_through_dynamo(dtype: torch.dtype) -> None:
    model = Chain(*(PreNorm("acm") for _ in range(3))).to(dtype).eval()
    program, _ = through_dynamo(model, tokens().to(dtype), tokens(4).to(dtype), dynamic=True)
    for view in (program, stripped(program)):
        (stack,) = find_stacks(view)
        assert kinds((stack,)) == [["attn", "cross", "mlp"]] * 3
        assert stack.classes == (0, 0, 0)
        check_invariants(view, (stack,))
    assert find_stacks(program)[0].path == "layers"


def test_a_named_graph_of_the_program() -> None:
    program = plain(Chain(PreNorm(), PreNorm()), tokens())
    copy = program.copy()
    assert lengths(find_stacks(program, copy.main)) == {"layers": 2}
    assert set(find_stacks(program, copy.main)[0].blocks[0].nodes) <= set(copy.main.nodes)


def test_time_is_bounded_at_real_depth() -> None:
    program = plain(Chain(*(PreNorm() for _ in range(28))), tokens())
    begin = time.perf_counter()
    (stack,) = find_stacks(program)
    assert time.perf_counter() - begin < 3  # 0.2 s on an idle core
    assert set(stack.classes) == {0}
