"""A voice's graphs: of what our reader takes and protobuf's own parser too, both say the same.

Messages that ours passes over (UNREAD) may be none: a runtime, which reads by protobuf, then refuses the graph itself.
"""

from __future__ import annotations

import struct
from collections.abc import Hashable, Iterator
from typing import Any

import onnx
from google.protobuf.message import DecodeError, Message
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, helper

import notewave
from fuzz_targets import CORPUS, DATA, Target, kept
from fuzz_targets.tiny import external, model, voice_files
from notewave.voice.graph_reader import Declared, Graph, Node, Weight, read_graph
from notewave.voice.library import bundled_voices

REAL = ("time_embedding", "cross_attention")  # graphs of bundled voices to begin with: the smallest
OUTSIDE = "../secret.bin"
OPERATORS = ("Loop", "If", "Scan", "ConstantOfShape", "Expand", "Tile", "SequenceMap", "Constant", "Identity", "Cast")
UNREAD = {"value_info", "metadata_props"}  # messages of which our reader takes nothing
_KEPT = {1: "f", 2: "i", 3: "s", 4: "t", 6: "floats", 7: "ints", 8: "strings"}  # fields of AttributeProto by type
_TYPED = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")


class Fuzzed(Target):
    """Serialised graphs."""

    expected = notewave.VoiceError

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.words = words()

    def corpus(self) -> list[bytes]:
        tiny = [content for name, content in voice_files().items() if name.endswith(".onnx")]
        folders = bundled_voices().values()
        real = [path.read_bytes() for folder in folders for name in REAL if (path := folder / f"{name}.onnx").is_file()]
        return [*tiny, odd_tensors(), *real, *hostile()]

    def run(self, content: bytes) -> Hashable:
        ours = read_graph(content)
        try:
            theirs = ModelProto.FromString(content)
        except DecodeError:
            return "unread"
        compare(ours, theirs)
        return len(ours.nodes)


def hostile() -> list[bytes]:
    """Graphs that other tests keep, and those found here."""
    return kept(DATA / "hostile") + kept(CORPUS / "graph")


def words() -> tuple[bytes, ...]:
    """Names, and whole fields, that let a graph reach outside it: tensors in other files, wherever they may stand."""
    tensor = external("t", (1,), OUTSIDE)
    constant = helper.make_node("Constant", [], ["c"], value=tensor)
    graph = helper.make_graph([constant], "g", [], [], [tensor])
    function = helper.make_function("own", "f", [], ["c"], [constant], [helper.make_opsetid("", 23)])
    sparse = onnx.SparseTensorProto(values=tensor, indices=tensor, dims=[1])
    training = onnx.TrainingInfoProto(initialization=graph, algorithm=graph)
    fields = (
        ModelProto(graph=graph),
        ModelProto(functions=[function]),
        ModelProto(training_info=[training]),
        GraphProto(initializer=[tensor]),
        GraphProto(sparse_initializer=[sparse]),
        GraphProto(node=[constant, helper.make_node("If", ["c"], ["y"], then_branch=graph, else_branch=graph)]),
        onnx.NodeProto(attribute=[helper.make_attribute("body", graph)]),
        AttributeProto(t=tensor, tensors=[tensor], sparse_tensor=sparse, graphs=[graph]),
        TensorProto(external_data=tensor.external_data, data_location=TensorProto.EXTERNAL),
        onnx.StringStringEntryProto(key="location", value=OUTSIDE),
    )
    names = (*OPERATORS, "location", "offset", "length", "checksum", OUTSIDE, "com.microsoft", "ai.onnx", "weights.bin")
    return (*(field.SerializeToString() for field in fields), *(name.encode() for name in names))


def odd_tensors() -> bytes:
    """A graph whose tensors bring their numbers in every way there is, and a node with every kind of attribute."""
    make, types = helper.make_tensor, TensorProto
    tensors = [
        make("floats", types.FLOAT, [2], [1.0, -0.0]),
        make("ints", types.INT32, [2, 1], [1, -1]),
        make("longs", types.INT64, [2], [-1, 1 << 40]),
        make("doubles", types.DOUBLE, [], [0.1]),
        make("counts", types.UINT64, [1], [(1 << 64) - 1]),
        make("halves", types.FLOAT16, [2], [0.5, 1.5]),
        make("flags", types.BOOL, [2], [True, False]),
        make("raw", types.INT8, [3], b"\x01\xff\x80", raw=True),
        external("outside", (2, 2), "weights.bin"),
    ]
    tensor = {"value": tensors[0], "text": "text", "texts": ["a", "b"], "number": 2.5, "numbers": [1.5, 2.5]}
    node = helper.make_node("Odd", ["floats", ""], ["y", ""], domain="own", whole=-3, wholes=[-1, 0, 1 << 62], **tensor)
    y = helper.make_tensor_value_info("y", types.FLOAT, ["N", 3, None])
    return model(
        helper.make_graph([node], "odd", [helper.make_tensor_value_info("x", types.FLOAT, None)], [y], tensors)
    )


def compare(ours: Graph, theirs: ModelProto) -> None:
    """Raise AssertionError where two readers understand the same bytes differently."""
    graph = theirs.graph
    assert theirs.HasField("graph")
    assert not _unknown(theirs), "protobuf kept fields that it does not know"
    assert dict(ours.opsets) == {opset.domain: opset.version for opset in theirs.opset_import}
    assert ours.places() == set(locations(theirs))
    assert len(ours.nodes) == len(graph.node)
    for node, other in zip(ours.nodes, graph.node, strict=True):
        _compare_nodes(node, other)
    assert list(ours.weights) == [tensor.name for tensor in graph.initializer]
    for tensor in graph.initializer:
        _compare_weights(ours.weights[tensor.name], tensor)
    for declared, values in ((ours.inputs, graph.input), (ours.outputs, graph.output)):
        assert list(declared) == [_declared(value) for value in values]


def _compare_nodes(ours: Node, theirs: onnx.NodeProto) -> None:
    assert (ours.operator, ours.domain) == (theirs.op_type, theirs.domain)
    assert (ours.inputs, ours.outputs) == (tuple(theirs.input), tuple(theirs.output))
    assert list(ours.attributes) == [attribute.name for attribute in theirs.attribute]
    for attribute in theirs.attribute:
        value, field = ours.attributes[attribute.name], _KEPT[attribute.type]
        expected = getattr(attribute, field)
        if field == "t":
            _compare_weights(value, expected)
        elif field.endswith("s") and field != "s":
            assert _bits(value) == _bits(expected), attribute.name
        else:
            assert attribute.HasField(field)
            assert _bits([value]) == _bits([expected]), attribute.name
        filled = {descriptor.name for descriptor, _ in attribute.ListFields()}
        assert filled <= {"name", "doc_string", "type", field}, "protobuf sees more in an attribute"


def _compare_weights(ours: Weight, theirs: TensorProto) -> None:
    assert (ours.name, ours.element, ours.shape) == (theirs.name, theirs.data_type, tuple(theirs.dims))
    assert not theirs.HasField("segment")
    assert not theirs.string_data
    if ours.place is not None:
        facts = {"location": ours.place.location, "offset": str(ours.place.offset), "length": str(ours.place.length)}
        assert theirs.data_location == TensorProto.EXTERNAL
        assert {entry.key: entry.value for entry in theirs.external_data}.items() <= facts.items()
        return
    assert theirs.data_location == TensorProto.DEFAULT
    assert not theirs.external_data
    assert bytes(ours.raw or b"") == theirs.raw_data
    assert _bits(ours.typed) == _bits([number for field in _TYPED for number in getattr(theirs, field)])


def _declared(value: onnx.ValueInfoProto) -> Declared:
    kind = value.type.tensor_type
    assert value.type.WhichOneof("value") == "tensor_type"
    if not kind.HasField("shape"):
        return Declared(value.name, kind.elem_type, None)
    dims = [getattr(dim, dim.WhichOneof("value") or "dim_param") for dim in kind.shape.dim]
    return Declared(value.name, kind.elem_type, tuple(dims))


def locations(message: Message) -> Iterator[str]:
    """The files that any tensor in a message names, wherever in it that stands."""
    if isinstance(message, TensorProto):
        yield from (entry.value for entry in message.external_data if entry.key == "location")
    for inner in _inner(message):
        yield from locations(inner)


def _unknown(message: ModelProto) -> bool:
    """Whether what is read of a model holds fields that their kind of message has not."""
    again = ModelProto()
    again.CopyFrom(message)
    _drop_unread(again)
    size = again.ByteSize()
    again.DiscardUnknownFields()
    return again.ByteSize() != size


def _drop_unread(message: Message) -> None:
    for name in UNREAD.intersection(message.DESCRIPTOR.fields_by_name):
        message.ClearField(name)
    for inner in _inner(message):
        _drop_unread(inner)


def _inner(message: Message) -> Iterator[Message]:
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None:
            yield from [value] if isinstance(value, Message) else value


def _bits(values: Any) -> list[Any]:
    """Values that compare as their bits do: NaN is itself, and -0.0 is not 0.0."""
    return [struct.pack("<d", value) if isinstance(value, float) else value for value in values]
