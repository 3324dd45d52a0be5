"""An ONNX graph's bytes to its nodes and weights, without ONNX and without trust.

Read is what a voice's graphs are made of; functions, graphs in graphs, sparse tensors, training and whatever else
onnx.proto has are refused, and so is all that two readers could read differently (see ``wire``). Names and numbers of
fields are those of onnx.proto.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from notewave.errors import VoiceError
from notewave.voice.wire import BYTES, DOUBLE, FLOAT, INT, INT32, PASSED, REFUSED, TEXT, UINT, Field, Reader, Schema

MAX_FIELDS = 1_000_000  # of a graph, a few seconds' reading; the published size has 50,000
MAX_RANK = 8
_EXTERNAL = 1  # TensorProto.DataLocation
_FLOAT, _INT, _STRING, _TENSOR, _FLOATS, _INTS, _STRINGS = 1, 2, 3, 4, 6, 7, 8  # AttributeProto.AttributeType

# onnx.proto's TensorProto.DataType: number to NumPy's name and bytes of one.
ELEMENTS: Mapping[int, tuple[str, int]] = {
    1: ("float32", 4),
    2: ("uint8", 1),
    3: ("int8", 1),
    5: ("int16", 2),
    6: ("int32", 4),
    7: ("int64", 8),
    9: ("bool", 1),
    10: ("float16", 2),
    11: ("float64", 8),
    12: ("uint32", 4),
    13: ("uint64", 8),
    16: ("bfloat16", 2),
}
_EXPONENTS = {
    "float16": 0x7C00,
    "bfloat16": 0x7F80,
    "float32": 0x7F80_0000,
    "float64": 0x7FF0 << 48,
}  # all ones: no number
_TYPED = {"float_data": 4, "int32_data": 0, "int64_data": 8, "double_data": 8, "uint64_data": 8}  # bytes of one


def _passed(field: Field) -> Field:
    return field if field.kind in (INT, INT32) else Field(field.name, PASSED, field.repeated)


_NOTE, _FACTS = Field("doc_string", PASSED), Field("metadata_props", PASSED, repeated=True)
_SCHEMA: Schema = {
    "model": {
        1: Field("ir_version", INT),
        2: Field("producer_name", PASSED),
        3: Field("producer_version", PASSED),
        4: Field("domain", PASSED),
        5: Field("model_version", INT),
        6: _NOTE,
        7: Field("graph", "graph"),
        8: Field("opset_import", "opset", repeated=True),
        14: _FACTS,
        25: Field("a function", REFUSED),
    },
    "opset": {1: Field("domain", TEXT), 2: Field("version", INT)},
    "fact": {1: Field("key", TEXT), 2: Field("value", TEXT)},
    "graph": {
        1: Field("node", "node", repeated=True),
        2: Field("name", TEXT),
        5: Field("initializer", "tensor", repeated=True),
        10: _NOTE,
        11: Field("input", "value", repeated=True),
        12: Field("output", "value", repeated=True),
        13: Field("value_info", PASSED, repeated=True),
        16: _FACTS,
    },
    "node": {
        1: Field("input", TEXT, repeated=True),
        2: Field("output", TEXT, repeated=True),
        3: Field("name", PASSED),
        4: Field("op_type", TEXT),
        5: Field("attribute", "attribute", repeated=True),
        6: _NOTE,
        7: Field("domain", TEXT),
        9: _FACTS,
    },
    "attribute": {
        1: Field("name", TEXT),
        2: Field("f", FLOAT),
        3: Field("i", INT),
        4: Field("s", BYTES),
        5: Field("t", "tensor"),
        6: Field("a graph", REFUSED),
        7: Field("floats", FLOAT, repeated=True),
        8: Field("ints", INT, repeated=True),
        9: Field("strings", BYTES, repeated=True),
        11: Field("a graph", REFUSED),
        13: _NOTE,
        20: Field("type", INT32),
    },
    "tensor": {
        1: Field("dims", INT, repeated=True),
        2: Field("data_type", INT32),
        4: Field("float_data", FLOAT, repeated=True),
        5: Field("int32_data", INT32, repeated=True),
        7: Field("int64_data", INT, repeated=True),
        8: Field("name", TEXT),
        9: Field("raw_data", BYTES),
        10: Field("double_data", DOUBLE, repeated=True),
        11: Field("uint64_data", UINT, repeated=True),
        12: _NOTE,
        13: Field("external_data", "fact", repeated=True),
        14: Field("data_location", INT32),
        16: _FACTS,
    },
    "value": {1: Field("name", TEXT), 2: Field("type", "type"), 3: _NOTE, 4: _FACTS},
    "type": {1: Field("tensor_type", "tensor type"), 6: Field("denotation", TEXT)},
    "tensor type": {1: Field("elem_type", INT32), 2: Field("shape", "shape")},
    "shape": {1: Field("dim", "dimension", repeated=True)},
    "dimension": {1: Field("dim_value", INT), 2: Field("dim_param", TEXT), 3: Field("denotation", TEXT)},
}
# The same, of a graph that was checked, for what its weights in other files are used for.
_BRIEF: Schema = {
    **_SCHEMA,
    "model": {number: field if field.name == "graph" else _passed(field) for number, field in _SCHEMA["model"].items()},
    "graph": {
        number: field if field.name in ("node", "initializer") else _passed(field)
        for number, field in _SCHEMA["graph"].items()
    },
    "node": {
        number: field if field.name in ("input", "op_type") else _passed(field)
        for number, field in _SCHEMA["node"].items()
    },
}
_VALUES = {_FLOAT: "f", _INT: "i", _STRING: "s", _TENSOR: "t", _FLOATS: "floats", _INTS: "ints", _STRINGS: "strings"}


Use: TypeAlias = tuple[str, int]  # an operator, and which of its inputs


@dataclass(frozen=True)
class Place:
    """Where a tensor's bytes lie, if in another file."""

    location: str
    offset: int
    length: int  # bytes


@dataclass(frozen=True)
class Weight:
    """A tensor that a graph brings."""

    name: str
    element: int  # a key of ELEMENTS
    shape: tuple[int, ...]
    place: Place | None
    raw: memoryview | None  # its bytes, where they are in the graph as such
    typed: Sequence[Any]  # its numbers, where they are in the graph one by one

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    def is_finite(self, outside: bytes) -> bool:
        """Whether all its numbers are finite. outside: its bytes, where they lie in another file."""
        name, size = ELEMENTS[self.element]
        if name not in _EXPONENTS:
            return True
        if self.typed and "64" not in name and "32" not in name:  # one by one, the bits of shorter ones as integers
            return all(bits & _EXPONENTS[name] != _EXPONENTS[name] for bits in self.typed)
        if self.typed:
            return all(map(math.isfinite, self.typed))
        bits = np.frombuffer(outside if self.raw is None else self.raw, f"<u{size}")
        exponent = bits.dtype.type(_EXPONENTS[name])
        return bool((bits & exponent).max(initial=0) != exponent)

    def integers(self) -> tuple[int, ...] | None:
        """Its numbers, where they are integers in the graph."""
        name, size = ELEMENTS[self.element]
        if not name.startswith(("int", "uint")) or self.place is not None:
            return None
        if self.raw is None:
            return tuple(self.typed)
        sign = name.startswith("int")
        return tuple(
            int.from_bytes(self.raw[at : at + size], "little", signed=sign) for at in range(0, len(self.raw), size)
        )


@dataclass(frozen=True)
class Node:
    """One operator at work."""

    operator: str
    domain: str
    inputs: tuple[str, ...]  # "" for one that is left out
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]  # numbers, bytes, lists of them, or a Weight


@dataclass(frozen=True)
class Declared:
    """An input or output as the graph declares it."""

    name: str
    element: int
    shape: tuple[int | str, ...] | None


@dataclass(frozen=True)
class Graph:
    """What a model's graph does."""

    opsets: Mapping[str, int]
    nodes: tuple[Node, ...]
    weights: Mapping[str, Weight]
    inputs: tuple[Declared, ...]
    outputs: tuple[Declared, ...]

    def places(self) -> set[str]:
        """The names of the other files that it reads."""
        return {weight.place.location for weight in self.weights.values() if weight.place is not None}


def read_graph(model: bytes) -> Graph:
    """The graph of a serialised ONNX model. Raises VoiceError for what is none, or is more than a voice needs."""
    try:
        return _graph(Reader(model, _SCHEMA, MAX_FIELDS).read("model"))
    except (IndexError, KeyError, OverflowError, ValueError, struct.error) as error:
        raise VoiceError(f"it is not a whole ONNX graph ({error}). Copy or export the voice again.") from error


def read_outside(model: bytes) -> tuple[list[Weight], dict[str, set[Use]]]:
    """Of a model that ``read_graph`` took before: its weights in other files, and what each weight is used for."""
    graph = Reader(model, _BRIEF, MAX_FIELDS).read("model")["graph"]
    weights = [_weight(tensor) for tensor in graph.get("initializer", ()) if "external_data" in tensor]
    uses: dict[str, set[Use]] = {weight.name: set() for weight in weights}
    for node in graph.get("node", ()):
        for place, name in enumerate(node.get("input", ())):
            if name in uses:
                uses[name].add((node["op_type"], place))
    return weights, uses


def _graph(model: Mapping[str, Any]) -> Graph:
    graph = model["graph"]
    opsets = {opset.get("domain", ""): opset["version"] for opset in model.get("opset_import", ())}
    if len(opsets) != len(model.get("opset_import", ())):
        raise ValueError("it has two versions of one set of operators")
    weights = {weight.name: weight for weight in map(_weight, graph.get("initializer", ()))}
    if len(weights) != len(graph.get("initializer", ())):
        raise ValueError("two weights have one name")
    return Graph(
        opsets,
        tuple(map(_node, graph.get("node", ()))),
        weights,
        tuple(map(_declared, graph.get("input", ()))),
        tuple(map(_declared, graph.get("output", ()))),
    )


def _node(node: Mapping[str, Any]) -> Node:
    attributes = {attribute["name"]: _attribute(attribute) for attribute in node.get("attribute", ())}
    if len(attributes) != len(node.get("attribute", ())):
        raise ValueError("two attributes have one name")
    inputs, outputs = (tuple(node.get(key, ())) for key in ("input", "output"))
    return Node(node["op_type"], node.get("domain", ""), inputs, outputs, attributes)


def _attribute(attribute: Mapping[str, Any]) -> Any:
    key = _VALUES[attribute["type"]]
    if any(other in attribute for other in _VALUES.values() if other != key):
        raise ValueError(f"attribute {attribute['name']} has two values")
    repeated = key.endswith("s") and key != "s"
    value = attribute.get(key, [] if repeated else None)
    if value is None:
        raise ValueError(f"attribute {attribute['name']} has no value")
    if key == "t":
        weight = _weight(value)
        if weight.place is not None:  # nobody would bring its bytes, and a runtime would look for them
            raise ValueError(f"attribute {attribute['name']} lies in another file")
        return weight
    return [bytes(one) for one in value] if key == "strings" else bytes(value) if key == "s" else value


def _weight(tensor: Mapping[str, Any]) -> Weight:
    name, shape, element = tensor.get("name", ""), tuple(tensor.get("dims", ())), tensor["data_type"]
    if element not in ELEMENTS:
        raise ValueError(f"{name} has data type {element}")
    if len(shape) > MAX_RANK or any(size < 0 for size in shape):
        raise ValueError(f"{name} has the shape {list(shape)}")
    count = math.prod(shape)
    size = count * ELEMENTS[element][1]
    given = [key for key in ("raw_data", *_TYPED) if key in tensor]
    if tensor.get("data_location", 0) == _EXTERNAL:
        if given:
            raise ValueError(f"{name} is in two places")
        return Weight(name, element, shape, _place(name, tensor.get("external_data", ()), size), None, ())
    if tensor.get("data_location", 0) or "external_data" in tensor or len(given) > 1:
        raise ValueError(f"{name} is in two places")
    if "raw_data" in tensor or not given:
        raw = tensor.get("raw_data", memoryview(b""))
        if len(raw) != size:
            raise ValueError(f"{name} has {len(raw)} bytes of {size}")
        return Weight(name, element, shape, None, raw, ())
    if len(tensor[given[0]]) != count:
        raise ValueError(f"{name} has {len(tensor[given[0]])} numbers of {count}")
    return Weight(name, element, shape, None, None, tensor[given[0]])


def _place(name: str, entries: Sequence[Mapping[str, str]], size: int) -> Place:
    """Where a tensor of so many bytes lies, by its external_data."""
    facts = {entry["key"]: entry.get("value", "") for entry in entries}
    if len(facts) != len(entries) or not facts.keys() <= {"location", "offset", "length"}:
        raise ValueError(f"{name} lies at {list(facts)}")
    offset, length = (_decimal(facts.get(key, default)) for key, default in (("offset", "0"), ("length", str(size))))
    if length != size:
        raise ValueError(f"{name} has {length} bytes of {size}")
    return Place(facts["location"], offset, length)


def _decimal(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18) or str(int(text)) != text:
        raise ValueError("a place is no plain number")
    return int(text)


def _declared(value: Mapping[str, Any]) -> Declared:
    kind = value["type"]["tensor_type"]
    if "shape" not in kind:
        return Declared(value["name"], kind["elem_type"], None)
    shape = tuple(_dimension(dimension) for dimension in kind["shape"].get("dim", ()))
    return Declared(value["name"], kind["elem_type"], shape)


def _dimension(dimension: Mapping[str, Any]) -> int | str:
    if "dim_value" in dimension and "dim_param" in dimension:
        raise ValueError("a dimension is given twice")
    return dimension.get("dim_value", dimension.get("dim_param", ""))
