"""The textual IR."""

from __future__ import annotations

import operator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import FileCheck

from dit_compile.ir.printer import node_text, print_graph, print_program, target_name
from dit_compile.ir.program import Binding
from dit_compile.pipeline.pipeline import Pipeline
from tests.ir.models import Function, aten, calls, capture, layers, noise, program_of, transformer


def test_a_block() -> None:
    program = transformer()
    program.bind("c", Binding.TIMESTEP)
    text = print_graph(program)
    (
        FileCheck()
        .check("ditc.graph @full (%x: f32[2,4,8] latent, %c: f32[2,8] timestep) -> (f32[2,4,8]) {")
        .check_next("  %linear = aten.linear(%c, @blocks.0.modulation.weight, ")
        .check_same("@blocks.0.modulation.bias) : f32[2,16]")
        .check_same("  # blocks.0.modulation")
        .check_next("  %unsqueeze = aten.unsqueeze(%linear, 1) : f32[2,1,16]")
        .check_next("  %getitem, %getitem_1 = aten.split(%unsqueeze, 8, -1) : f32[2,1,8] x2")
        .check_next(
            "  %layer_norm = aten.layer_norm(%x, [8], None, None, 1e-05, False) : f32[2,4,8]"
        )
        .check("aten.scaled_dot_product_attention(%linear_1, %linear_2, %linear_3)")
        .check("  return %add_8")
        .check_next("}")
        .check_not("getitem(")
        .run(text)
    )


def test_what_a_fusion_did() -> None:
    program = transformer()
    Pipeline.parse("exact").run(program)
    (
        FileCheck()
        .check("ditc.adaln_norm(%x, %getitem, %getitem_1, 1e-05) : f32[2,4,8]")
        .check_same("# blocks.0 from layer_norm, add, mul, add_1")
        .check(
            "@blocks.0.q.weight|k.weight|v.weight, @blocks.0.q.bias|k.bias|v.bias) : f32[2,4,24]"
        )
        .check_not("aten.layer_norm")
        .check("ditc.graph @weights () -> (f32[24,8], f32[24], ")
        .check("aten.cat([@blocks.0.q.weight, @blocks.0.k.weight, @blocks.0.v.weight]) : f32[24,8]")
        .run(print_program(program))
    )


def test_state_is_named_as_such() -> None:
    program = transformer()
    Pipeline.parse("insert-block-cache").run(program)
    (
        FileCheck()
        .check("ditc.graph @full (%x: f32[2,4,8] latent, %c: f32[2,8] latent) -> ")
        .check("ditc.graph @reuse (")
        .check_same(": f32[2,4,8] state, ")
        .run(print_program(program))
    )


def test_weights_never_show_their_values() -> None:
    program = program_of(lambda w, x: x * w, noise(1), weights=(torch.full((1,), 1234.5),))
    text = print_graph(program)
    assert "aten.mul(%" in text
    assert "@weights.0) : f32[1]" in text
    assert "1234" not in text


def test_arguments() -> None:
    def forward(x: Tensor) -> Tensor:
        y = F.gelu(x[1:, :], approximate="tanh").to(torch.bfloat16)
        return y.sum(-1, keepdim=True, dtype=torch.float64)

    text = print_graph(program_of(forward, noise(3, 4)))
    (
        FileCheck()
        .check("aten.slice(%")
        .check_same(", 0, 1, end) : f32[2,4]")
        .check("aten.gelu(")
        .check_same("approximate='tanh')")
        .check("bf16) : bf16[2,4]")
        .check("aten.sum(")
        .check_same("[-1], True, dtype=f64) : f64[2,1]")
        .run(text)
    )


def test_symbolic_sizes() -> None:
    tokens = torch.export.Dim("tokens")
    program = capture(Function(lambda x: x + 1), noise(3, 4), dynamic_shapes=(({0: tokens},),))
    symbol = str(calls(program, aten.add.Tensor)[0].meta["val"].shape[0])
    assert not symbol.isdigit()
    FileCheck().check(f": f32[{symbol},4] latent) -> (f32[{symbol},4])").run(print_graph(program))


def test_results_that_nobody_picks_are_blanks() -> None:
    program = program_of(lambda x: x.chunk(3)[1] * 2, noise(6))
    (split,) = calls(program, aten.split.Tensor)
    for pick in list(split.users):
        if not pick.users:
            program.main.erase_node(pick)
    assert node_text(split, program).startswith("_, %getitem_1, _ = aten.split(")


@pytest.mark.parametrize("picked", [1, -1])
def test_each_name_that_is_read_is_also_written(picked: int) -> None:
    """Results picked twice, or from the end, have lines of their own."""
    program = program_of(lambda x: x.chunk(2)[1] * 2, noise(4))
    (product,) = calls(program, aten.mul.Tensor)
    with program.main.inserting_before(product):
        again = program.main.call_function(operator.getitem, (product.args[0].args[0], picked))
    again.meta.update(product.args[0].meta)
    product.args = (again, 2)
    text = print_graph(program)
    assert f"%{again.name} = getitem(%split, {picked})" in text
    assert "%split = aten.split(" in text


def test_the_same_twice_and_in_a_copy() -> None:
    program = transformer()
    Pipeline.parse("exact,insert-block-cache").run(program)
    text = print_program(program)
    assert print_program(program) == text
    assert print_program(program.copy()) == text


def test_a_program_with_one_graph() -> None:
    program = layers()
    assert print_program(program) == print_graph(program)


def test_target_names() -> None:
    assert target_name(aten.add.Tensor) == "aten.add"
    assert target_name(operator.getitem) == "getitem"
    assert target_name("relu") == "relu"


def test_a_node_without_its_program() -> None:
    (linear, *_) = calls(layers(), aten.linear.default)
    assert node_text(linear) == (
        "%linear = aten.linear(%x, %layers_0_proj_weight, %layers_0_proj_bias) : f32[2,4,8]"
    )
