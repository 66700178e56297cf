"""What a model refers to is found wherever it hides."""

from __future__ import annotations

import contextlib

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from dit_compile.bundle.onnx_file import check_model
from dit_compile.errors import BundleError

FILES = {"weights.bin": 4096}


def external(location: str = "../x", offset: str = "0", length: str = "4") -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=value)
    return tensor


def graph(*nodes: onnx.NodeProto, weights: tuple[TensorProto, ...] = ()) -> onnx.GraphProto:
    return helper.make_graph(nodes, "g", [], [], initializer=weights)


def model(inner: onnx.GraphProto, domain: str = "") -> bytes:
    made = helper.make_model(inner, opset_imports=[helper.make_opsetid(domain, 1)])
    return made.SerializeToString()


def constant(tensor: TensorProto) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["c"], value=tensor)


def test_the_bundles_own_weights() -> None:
    check_model("m", model(graph(weights=(external("weights.bin", "0", "4096"),))), FILES)


def sparse(tensor: TensorProto) -> onnx.GraphProto:
    inner = graph()
    inner.sparse_initializer.add(values=tensor, indices=TensorProto())
    return inner


def function(tensor: TensorProto) -> bytes:
    made = helper.make_model(graph(), opset_imports=[helper.make_opsetid("", 1)])
    made.functions.append(
        helper.make_function("ai.onnx", "f", [], ["c"], [constant(tensor)], made.opset_import)
    )
    return made.SerializeToString()


@pytest.mark.parametrize(
    "data",
    [
        model(graph(weights=(external(),))),
        model(graph(constant(external()))),
        model(graph(helper.make_node("If", ["c"], ["y"], then_branch=graph(constant(external()))))),
        model(graph(helper.make_node("X", [], ["y"], tensors=[external()]))),
        model(graph(helper.make_node("X", [], ["y"], graphs=[graph(weights=(external(),))]))),
        model(sparse(external())),
        function(external()),
        model(graph()) + model(graph(weights=(external(),))),  # messages that merge
    ],
    ids=["weight", "constant", "branch", "tensors", "graphs", "sparse", "function", "merged"],
)
def test_wherever_a_tensor_is(data: bytes) -> None:
    with pytest.raises(BundleError, match=r"m refers to the file '\.\./x'"):
        check_model("m", data, FILES)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (external("weights.bin", "4096", "1"), "behind the end"),
        (external("weights.bin", "-4", "4"), "no positions"),
        (external("weights.bin", "٣", "4"), "no positions"),
        (external("weights.bin", "9" * 5000, "4"), "no positions"),
        (external("weights.bin", "0", "9" * 20), "no positions"),
        (external("weights.bin", str((1 << 63) - 1), "4"), "behind the end"),
        (external("weights.bin", str((1 << 64) - 4), "8"), "no positions"),
        (external("weights.bin", "", "4"), "no positions"),
        (external("weights.bin", " 1", "4"), "no positions"),
        (external("weights.bin", "1_0", "4"), "no positions"),
        (external("weights.bin", "0x1", "4"), "no positions"),
        (external("weights.bin", "1.0", "4"), "no positions"),
        (external("weights.bin", "0\n", "4"), "no positions"),
        (external("/etc/passwd"), "refers to the file '/etc/passwd'"),
        (external("*/_ORT_MEM_ADDR_/*"), "refers to the file"),
        (external("./weights.bin"), "refers to the file './weights.bin'"),
        (external("weights.bin\0"), "refers to the file"),
        (TensorProto(data_location=TensorProto.EXTERNAL), "refers to the file ''"),
    ],
)
def test_positions_and_spellings(tensor: TensorProto, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        check_model("m", model(graph(weights=(tensor,))), FILES)


@given(st.text(max_size=25), st.text(max_size=25), st.text(max_size=12))
def test_any_positions_are_read_or_refused(offset: str, length: str, location: str) -> None:
    for name in (location, "weights.bin"):
        with contextlib.suppress(BundleError):
            check_model("m", model(graph(weights=(external(name, offset, length),))), FILES)


@given(st.integers(-(1 << 70), 1 << 70), st.integers(-(1 << 70), 1 << 70))
def test_only_what_lies_in_the_file_is_read(offset: int, length: int) -> None:
    data = model(graph(weights=(external("weights.bin", str(offset), str(length)),)))
    if offset >= 0 and length >= 0 and offset + length <= FILES["weights.bin"]:
        check_model("m", data, FILES)
        return
    with pytest.raises(BundleError, match=r"behind the end|no positions"):
        check_model("m", data, FILES)


def test_tensors_may_share_bytes() -> None:
    """Equal tensors are written once; what overlaps is read, and never written to."""
    shared = (external("weights.bin", "0", "8"), external("weights.bin", "4", "8"))
    check_model("m", model(graph(weights=shared)), FILES)


def test_a_location_given_twice() -> None:
    tensor = external("../x")
    tensor.external_data.add(key="location", value="weights.bin")
    with pytest.raises(BundleError, match="gives the location of a tensor twice"):
        check_model("m", model(graph(weights=(tensor,))), FILES)


def test_operators_that_may_run_code() -> None:
    with pytest.raises(BundleError, match="operators of 'evil'"):
        check_model("m", model(graph(), domain="evil"), FILES)
    with pytest.raises(BundleError, match="uses EPContext"):
        check_model("m", model(graph(helper.make_node("EPContext", [], ["y"]))), FILES)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(BundleError):
        check_model("m", data, FILES)


@given(st.integers(0, 400))
def test_cut_off_anywhere(size: int) -> None:
    whole = model(graph(constant(external("weights.bin")), weights=(external("weights.bin"),)))
    with contextlib.suppress(BundleError):
        check_model("m", whole[:size], FILES)


def test_a_half_of_a_model() -> None:
    whole = model(graph(constant(external("weights.bin"))))
    with pytest.raises(BundleError, match="is no ONNX file, or a part of one"):
        check_model("m", whole[: len(whole) // 2], FILES)
