"""A voice's graphs are read as protobuf reads them, or not at all."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from notewave import VoiceError
from notewave.voice import graph_reader
from notewave.voice.graph_reader import ELEMENTS, Graph, read_graph
from notewave.voice.wire import varint

BAND = Path(__file__).parent.parent / "engine" / "bundled" / "voices" / "band"


def model(*nodes: onnx.NodeProto, weights: tuple[TensorProto, ...] = (), **more: Any) -> onnx.ModelProto:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 3])
    graph = helper.make_graph(list(nodes), "g", [value], [value], list(weights), **more)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])


def assert_same(graph: Graph, proto: onnx.ModelProto) -> None:
    """Ours says what protobuf's reader says."""
    assert graph.opsets == {opset.domain: opset.version for opset in proto.opset_import}
    for node, theirs in zip(graph.nodes, proto.graph.node, strict=True):
        assert (node.operator, node.domain) == (theirs.op_type, theirs.domain)
        assert (node.inputs, node.outputs) == (tuple(theirs.input), tuple(theirs.output))
        for attribute in theirs.attribute:
            value, found = helper.get_attribute_value(attribute), node.attributes[attribute.name]
            if isinstance(value, TensorProto):
                assert_same_weight(found, value)
            else:
                assert found == value, attribute
    for name, theirs in {tensor.name: tensor for tensor in proto.graph.initializer}.items():
        assert_same_weight(graph.weights[name], theirs)
    for ours, values in ((graph.inputs, proto.graph.input), (graph.outputs, proto.graph.output)):
        assert [value.name for value in ours] == [value.name for value in values]


def assert_same_weight(weight: graph_reader.Weight, proto: TensorProto) -> None:
    assert (weight.element, weight.shape) == (proto.data_type, tuple(proto.dims))
    if proto.data_location == TensorProto.EXTERNAL:
        facts = {entry.key: entry.value for entry in proto.external_data}
        assert weight.place is not None and weight.place.location == facts["location"]
        assert weight.place.offset == int(facts.get("offset", 0))
    elif weight.raw is not None:
        assert bytes(weight.raw) == proto.raw_data
    elif (integers := weight.integers()) is not None:
        assert list(integers) == numpy_helper.to_array(proto).ravel().tolist()


@pytest.mark.parametrize("path", sorted(BAND.glob("*.onnx")), ids=lambda path: path.stem)
def test_the_bundled_voices_graphs(path: Path) -> None:
    content = path.read_bytes()
    assert_same(read_graph(content), onnx.load_model_from_string(content))


def test_every_kind_of_attribute_and_weight() -> None:
    numbers: dict[str, Any] = {
        "i": -5, "f": 0.5, "s": b"\xff\0", "ints": [1 << 62, -1], "floats": [1.5, -2], "strings": [b"", b"x"],
        "t": numpy_helper.from_array(np.array([[3, -4]], np.int64)),
    }  # fmt: skip
    weights = [
        numpy_helper.from_array(np.zeros((2, 3), helper.tensor_dtype_to_np_dtype(element)), f"raw {name}")
        for element, (name, _) in ELEMENTS.items()
    ]
    for element in (TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64, TensorProto.DOUBLE, TensorProto.UINT64):
        weights.append(helper.make_tensor(f"typed {element}", element, [2], [1, 2]))
    weights.append(helper.make_tensor("unsigned", TensorProto.UINT64, [1], [(1 << 64) - 1]))
    weights.append(helper.make_tensor("signed", TensorProto.INT64, [3], [-(1 << 63), -1, (1 << 63) - 1]))
    made = model(
        helper.make_node("Any", ["x", ""], ["y"], domain="d", doc_string="é", **numbers), weights=tuple(weights)
    )
    assert_same(read_graph(made.SerializeToString()), made)


def test_an_input_without_a_shape() -> None:
    made = model()
    made.graph.input[0].type.tensor_type.ClearField("shape")
    assert read_graph(made.SerializeToString()).inputs[0].shape is None


def test_places_in_other_files() -> None:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "there"), ("offset", "64"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    assert read_graph(model(weights=(tensor,)).SerializeToString()).places() == {"there"}
    for key, value in (("offset", "-1"), ("offset", "1" * 30), ("offset", "08"), ("length", "15"), ("key", "0")):
        crooked = TensorProto()
        crooked.CopyFrom(tensor)
        entry = crooked.external_data[{"location": 0, "offset": 1, "length": 2}.get(key, 2)]
        entry.key, entry.value = key, value
        with pytest.raises(VoiceError, match="not a whole ONNX graph"):
            read_graph(model(weights=(crooked,)).SerializeToString())


@pytest.mark.parametrize("element", [name for name, _ in ELEMENTS.values()])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_found(element: str, bad: float) -> None:
    kind = helper.tensor_dtype_to_np_dtype(next(key for key, (name, _) in ELEMENTS.items() if name == element))
    good = np.array([0, 1, 1 if kind.kind in "biu" else -60000], kind)
    raw = numpy_helper.from_array(good, "raw")
    assert read_graph(model(weights=(raw,)).SerializeToString()).weights["raw"].is_finite(b"")
    if kind.kind in "biu":
        return
    poor = good.copy()
    poor[1] = bad
    tensors = [numpy_helper.from_array(poor, "raw"), helper.make_tensor("typed", raw.data_type, [3], poor)]
    graph = read_graph(model(weights=tuple(tensors)).SerializeToString())
    assert not any(weight.is_finite(b"") for weight in graph.weights.values())


def branch() -> onnx.GraphProto:
    return helper.make_graph([helper.make_node("Constant", [], ["c"], value_float=1.0)], "branch", [], [])


def changed(change: Any) -> bytes:
    made = model(weights=(numpy_helper.from_array(np.zeros(3, np.float32), "w"),))
    change(made)
    content: bytes = made.SerializeToString()
    return content


def attributed(*attributes: dict[str, Any]) -> onnx.NodeProto:
    return onnx.NodeProto(op_type="Any", attribute=[onnx.AttributeProto(name="a", **facts) for facts in attributes])


OUTSIDE = TensorProto(data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
OUTSIDE.external_data.add(key="location", value="secret.bin")
TWICE = {"name": "t", "data_type": 1, "dims": [1], "raw_data": bytes(4), "data_location": 1}  # here and elsewhere
FUNCTION = helper.make_function("own", "f", [], ["y"], [], [helper.make_opsetid("", 23)])


@pytest.mark.parametrize(
    "change",
    [
        lambda made: made.functions.append(FUNCTION),
        lambda made: made.training_info.add(),
        lambda made: made.graph.sparse_initializer.add(),
        lambda made: made.graph.quantization_annotation.add(),
        lambda made: made.graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=branch())),
        lambda made: made.graph.node.append(helper.make_node("Any", ["x"], ["y"], graphs=[branch()])),
        lambda made: made.graph.node.append(helper.make_node("Constant", [], ["y"], value=OUTSIDE)),
        lambda made: made.graph.node.append(onnx.NodeProto(op_type="Any", overload="o")),
        lambda made: made.graph.node.add(output=["no operator"]),
        lambda made: made.graph.node.append(attributed({"i": 1, "type": 2}, {"i": 2, "type": 2})),
        lambda made: made.graph.node.append(attributed({"i": 1, "f": 1.0, "type": 2})),
        lambda made: made.graph.node.append(attributed({"type": 2})),
        lambda made: made.graph.initializer[0].external_data.add(key="location", value="x"),
        lambda made: made.graph.initializer.append(onnx.TensorProto(name="t", data_type=1, dims=[3], float_data=[1])),
        lambda made: made.graph.initializer[0].ClearField("raw_data"),
        lambda made: made.graph.initializer[0].float_data.append(1),
        lambda made: made.graph.initializer[0].dims.append(2),
        lambda made: made.graph.initializer[0].dims.extend([1 << 40] * 9),
        lambda made: setattr(made.graph.initializer[0], "data_type", TensorProto.STRING),
        lambda made: setattr(made.graph.initializer[0], "data_type", TensorProto.FLOAT4E2M1),
        lambda made: made.graph.initializer.append(made.graph.initializer[0]),
        lambda made: made.graph.initializer.add(**TWICE),
        lambda made: made.graph.input[0].type.sequence_type.SetInParent(),
        lambda made: made.opset_import.append(made.opset_import[0]),
        lambda made: made.ClearField("graph"),
    ],
)  # fmt: skip
def test_what_no_voice_needs(change: Any) -> None:
    with pytest.raises(VoiceError, match="not a whole ONNX graph"):
        read_graph(changed(change))


def field(number: int, content: bytes, wire: int = 2) -> bytes:
    return number_bytes(number << 3 | wire) + (number_bytes(len(content)) if wire == 2 else b"") + content


def number_bytes(number: int) -> bytes:
    parts = []
    while number >= 128:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


@pytest.mark.parametrize(
    "tail",
    [
        field(7 + (1 << 29), b""),  # a tag of 33 bits, of which the lower 32 say: the graph
        b"\xba\x80\x00",  # the graph's tag, written longer than it is
        field(7, b""),  # a second graph, which would be joined to the first
        b"\x08" + b"\xff" * 10 + b"\x01",  # more than 64 bits
        b"\x0a\x01x",  # the version as text
        b"\x3a\xff\xff\xff\xff\x0f",  # longer than all of it
        field(8, field(1, b"\xff\xfe")),  # no text
        field(1000, b""),
    ],
    ids=lambda tail: tail.hex()[:24],
)
def test_what_two_readers_could_read_differently(tail: bytes) -> None:
    whole = model().SerializeToString()
    assert read_graph(whole)
    with pytest.raises(VoiceError, match="not a whole ONNX graph"):
        read_graph(whole + tail)


def weight(element: int, content: bytes) -> bytes:
    """A weight "w" [1], as a field of a graph."""
    return field(5, field(8, b"w") + b"\x08\x01\x10" + number_bytes(element) + content)


def value(dimension: bytes) -> bytes:
    """An input "z" of floats with one axis, as a field of a graph."""
    return field(11, field(1, b"z") + field(2, field(1, b"\x08\x01" + field(2, field(1, dimension)))))


@pytest.mark.parametrize(
    ("good", "crooked", "reason"),
    [
        (b"", b"\x0b\x0c", "has wire type 3"),  # a group
        (weight(1, field(4, bytes(4))), weight(1, field(4, bytes(3))), "half of one"),
        (weight(6, field(5, b"\x05")), weight(6, field(5, number_bytes(1 << 40))), "beyond 32 bits"),
        (weight(6, field(5, b"\x05")), weight(6, field(5, b"\x80") + b"\x62\0"), "it ends early"),
        (b"", weight(1, field(4, bytes(4)) + b"\x70\x80") + b"\x62\0", "it ends early"),
        (value(b"\x08\x01"), value(b"\x08\x01" + field(2, b"B")), "a dimension is given twice"),
        (value(field(2, b"B")), value(field(2, b"B") + field(2, b"C")), "two of dim_param"),
    ],
    ids=lambda part: part if isinstance(part, str) else part.hex()[:24],
)
def test_what_two_readers_could_read_differently_in_a_graph(good: bytes, crooked: bytes, reason: str) -> None:
    made = model()
    graph = made.graph.SerializeToString()
    made.ClearField("graph")
    assert read_graph(made.SerializeToString() + field(7, graph + good))
    with pytest.raises(VoiceError, match=rf"not a whole ONNX graph \(.*{reason}"):
        read_graph(made.SerializeToString() + field(7, graph + crooked))


def test_a_graph_of_a_million_fields_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_reader, "MAX_FIELDS", 100)
    many = numpy_helper.from_array(np.zeros(1, np.float32), "w")
    packed = helper.make_tensor("t", TensorProto.INT64, [101], range(101))
    for content in (model(weights=(packed,)), model(*[helper.make_node("Any", ["x"], ["y"])] * 40, weights=(many,))):
        with pytest.raises(VoiceError, match="too many fields"):
            read_graph(content.SerializeToString())


@given(st.integers(0, (1 << 64) - 1))
def test_numbers_are_written_one_way(number: int) -> None:
    content = number_bytes(number)
    assert varint(content, 0) == (number, len(content))
    with pytest.raises(ValueError):
        varint(content[:-1] + bytes([content[-1] | 128]) + b"\0", 0)


@settings(max_examples=300)
@given(st.data())
def test_whatever_is_accepted_protobuf_reads_as_we_do(data: st.DataObject) -> None:
    """Of damaged graphs too; the fuzzing suite goes further."""
    content = bytearray((BAND / "cross_attention.onnx").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    with contextlib.suppress(VoiceError):
        graph = read_graph(bytes(content))
        try:
            proto = onnx.load_model_from_string(bytes(content))
        except DecodeError:  # in what is passed over here, such as shapes that readers infer themselves
            return
        assert_same(graph, proto)
