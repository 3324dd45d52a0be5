"""What the graph check foretells: no tensor of a graph that it takes may get larger, or hold other integers.

An input is a program that builds a graph: each operator is a byte that names it, then a byte for each of its inputs and
attributes. What the check or ONNX Runtime refuses is left out, so that most programs make something.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import notewave
from fuzz_targets import Target
from fuzz_targets.tiny import model
from notewave.song.codec import MAX_TOKENS
from notewave.voice.contracts import Contract, Tensor
from notewave.voice.graph_check import _letters, _Refused, _Walk
from notewave.voice.graph_reader import read_graph
from notewave.voice.operators import Value
from notewave.voice.sizes import Ranges, Size

CONTRACT = Contract((Tensor("x", "float32", ("B", "N", 4)),), ())
SIZES = ((1, 3), (2, 5))  # of B and N, that a graph is run with
MOST_NODES, MOST_TRIED = 24, 120
LENGTH = 80  # bytes of a program to begin with
MOST_HELD = 1 << 22  # numbers
NUMBERS = (0, 1, -1, 2, 3, 4, -2, 5, 6, 7, 8, -4, 12, 16, 100, -100, 255, 256, 65535, 1 << 31, (1 << 31) - 1, 1 << 32)
NUMBERS += (-(1 << 31), (1 << 63) - 1, -(1 << 63))
SMALL = (0, 1, -1, 2, 3, -2, -3, 4)
Arrays = dict[str, NDArray[Any]]

# Operator, kinds of its inputs (f numbers, i integers, b truths; capitals may be left out), what it gives, and its
# attributes: n a small number, l a list of them, p an order of axes, v a tensor, several texts to choose from.
OPERATORS = (
    ("Add", "ff", "f", {}),
    ("MatMul", "ff", "f", {}),
    ("Gemm", "ff", "f", {"transA": "n", "transB": "n"}),
    ("Concat", "ff", "f", {"axis": "n"}),
    ("Concat", "fff", "f", {"axis": "n"}),
    ("Transpose", "f", "f", {"perm": "p"}),
    ("Reshape", "fi", "f", {"allowzero": "n"}),
    ("Reshape", "ii", "i", {"allowzero": "n"}),
    ("Flatten", "f", "f", {"axis": "n"}),
    ("Squeeze", "fI", "f", {}),
    ("Unsqueeze", "fi", "f", {}),
    ("Unsqueeze", "ii", "i", {}),
    ("Squeeze", "iI", "i", {}),
    ("Expand", "fi", "f", {}),
    ("Expand", "ii", "i", {}),
    ("Tile", "fi", "f", {}),
    ("Tile", "ii", "i", {}),
    ("Pad", "fiFI", "f", {"mode": ("constant", "reflect", "edge", "wrap")}),
    ("Slice", "fiiII", "f", {}),
    ("Slice", "iiiII", "i", {}),
    ("Split", "f", "ff", {"axis": "n", "num_outputs": 2}),
    ("Split", "f", "fff", {"axis": "n", "num_outputs": 3}),
    ("Split", "fi", "ff", {"axis": "n"}),
    ("Split", "i", "ii", {"axis": "n", "num_outputs": 2}),
    ("Gather", "fi", "f", {"axis": "n"}),
    ("Gather", "ii", "i", {"axis": "n"}),
    ("ReduceSum", "fI", "f", {"keepdims": "n", "noop_with_empty_axes": "n"}),
    ("ReduceMax", "fI", "f", {"keepdims": "n"}),
    ("ReduceProd", "iI", "i", {"keepdims": "n"}),
    ("ReduceSum", "iI", "i", {"keepdims": "n"}),
    ("Shape", "f", "i", {"start": "n", "end": "n"}),
    ("Shape", "f", "i", {}),
    ("Shape", "i", "i", {}),
    ("Size", "f", "i", {}),
    ("ConstantOfShape", "i", "f", {}),
    ("ConstantOfShape", "i", "i", {"value": "v"}),
    ("Range", "iii", "i", {}),
    ("Add", "ii", "i", {}),
    ("Sub", "ii", "i", {}),
    ("Mul", "ii", "i", {}),
    ("Div", "ii", "i", {}),
    ("Mod", "ii", "i", {"fmod": "n"}),
    ("Min", "ii", "i", {}),
    ("Max", "ii", "i", {}),
    ("Neg", "i", "i", {}),
    ("Abs", "i", "i", {}),
    ("Sign", "i", "i", {}),
    ("Equal", "ii", "b", {}),
    ("Less", "ii", "b", {}),
    ("Not", "b", "b", {}),
    ("Where", "bii", "i", {}),
    ("Where", "bff", "f", {}),
    ("CumSum", "fi", "f", {"exclusive": "n", "reverse": "n"}),
    ("Softmax", "f", "f", {"axis": "n"}),
    ("Clip", "fFF", "f", {}),
    ("LayerNormalization", "ff", "f", {"axis": "n"}),
    ("Conv", "ff", "f", {"strides": "l", "pads": "l", "dilations": "l", "auto_pad": ("NOTSET", "SAME_UPPER", "VALID")}),
    ("Conv", "ff", "f", {"group": "n"}),
    ("ConvTranspose", "ff", "f", {"strides": "l", "pads": "l", "output_padding": "l", "group": "n"}),
    ("ConvTranspose", "ff", "f", {"output_shape": "l", "auto_pad": ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")}),
    ("Attention", "fff", "f", {"q_num_heads": "n", "kv_num_heads": "n"}),
    ("DynamicQuantizeLinear", "f", "fff", {}),
    # older forms
    ("Squeeze", "fI", "f", {"axes": "l"}),
    ("Unsqueeze", "f", "f", {"axes": "l"}),
    ("Unsqueeze", "i", "i", {"axes": "l"}),
    ("ReduceMax", "f", "f", {"axes": "l", "keepdims": "n"}),
    ("ReduceProd", "iI", "i", {"axes": "l", "keepdims": "n"}),
    ("Split", "fI", "ff", {"axis": "n", "split": "l"}),
    ("Split", "i", "ii", {"axis": "n", "split": "l"}),
    ("Split", "f", "ff", {}),
    ("Pad", "fI", "f", {"pads": "l", "mode": ("constant", "edge")}),
    ("Slice", "fII", "f", {"starts": "l", "ends": "l", "axes": "l"}),
    ("Slice", "i", "i", {"starts": "l", "ends": "l"}),
    ("Reshape", "fI", "f", {"shape": "l"}),
    ("Expand", "fI", "f", {"shape": "l"}),
    ("Clip", "f", "f", {"min": "n"}),
)
VERSIONS = (23, 23, 23, 23, 7, 9, 11, 12, 13, 18, 21, 24)  # of the operators
CASTS = ("INT32", "INT8", "UINT8", "FLOAT", "BOOL", "UINT64")  # that integers go through
THROUGH_FLOAT = ("Floor", "Ceil", "Round", "Identity")
CHOICES = len(OPERATORS) + 3  # a constant, and integers through other types and through fractions


class Fuzzed(Target):
    """Programs of graphs."""

    expected = notewave.VoiceError

    def corpus(self) -> list[bytes]:
        onnxruntime.set_default_logger_severity(4)
        return [*(random.Random(seed).randbytes(LENGTH) for seed in range(50)), *super().corpus()]

    def run(self, content: bytes) -> Hashable:
        builder = Builder(content)
        builder.build()
        return tuple(sorted({node.op_type for node in builder.nodes}))


class Builder:
    """Reads a program, and holds what the check foretells to what ONNX Runtime makes."""

    def __init__(self, program: bytes) -> None:
        self._program, self._at, self._count = program, 0, 0
        self._version = VERSIONS[self._take() % len(VERSIONS)]
        self.nodes: list[onnx.NodeProto] = []
        rows = np.arange(64, dtype=np.float32).reshape(4, 4, 4)
        weights: Arrays = {"m": rows[0], "k": rows[:2], "kt": rows[:, :2].copy(), "v": rows[0, 0], "one": rows[0, 0, 1]}
        self._values: dict[str, list[str]] = {"f": ["x", *weights], "i": [], "b": []}
        self._made = [{**weights, "x": _song(*sizes)} for sizes in SIZES]
        tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", "N", 4])
        graph = read_graph(model(helper.make_graph([], "g", [x], [], tensors)))
        self._walk = _Walk(graph, CONTRACT, MOST_HELD, _letters(MAX_TOKENS, None))
        self._walk.go()

    def build(self) -> None:
        """Build the graph. Raises AssertionError where a tensor is not as foretold."""
        for numbers in (0, 1, [0], [1], [2, -1]):
            self._add("Constant", [], "i", {"value": numpy_helper.from_array(np.array(numbers, np.int64))})
        self._add("Transpose", ["x"], "f", {"perm": [0, 2, 1]})
        while self._at < len(self._program) and len(self.nodes) < MOST_NODES and self._count < MOST_TRIED:
            self._step()

    def _step(self) -> None:
        choice = self._take() % CHOICES
        if choice < len(OPERATORS):
            operator, kinds, given, attributes = OPERATORS[choice]
            inputs = [self._pick(kind) for kind in kinds]
            self._add(operator, inputs, given, {name: self._value(form) for name, form in attributes.items()})
        elif choice == len(OPERATORS):
            self._constant()
        elif choice == len(OPERATORS) + 1:
            self._through_type()
        else:
            self._through_fractions()

    def _through_type(self) -> None:
        """Integers as another type, and back, with or without a sum or product there."""
        kind = {"to": TensorProto.DataType.Value(CASTS[self._take() % len(CASTS)])}
        there = self._add("Cast", [self._pick("i")], "-", kind)
        operator = ("", "Add", "Mul", "Sub", "Neg")[self._take() % 5]
        if operator in ("Add", "Mul", "Sub"):
            there += self._add("Cast", [self._pick("i")], "-", kind)
        if operator:
            there = self._add(operator, there, "-", {})
        self._add("Cast", there, "i", {"to": TensorProto.INT64})

    def _through_fractions(self) -> None:
        """Integers that are divided or multiplied as numbers, and made whole again."""
        there = self._add("Cast", [self._pick("i")], "f", {"to": TensorProto.FLOAT})
        part = self._add(("Mul", "Div", "Sub")[self._take() % 3], [*there, self._pick("f")], "f", {})
        whole = self._add(THROUGH_FLOAT[self._take() % 4], part, "f", {})
        self._add("Cast", whole, "i", {"to": TensorProto.INT64})

    def _add(self, operator: str, inputs: list[str], given: str, attributes: dict[str, Any]) -> list[str]:
        """Add a node, unless it is refused; the names of what it gives, of kinds as in OPERATORS ("-" is none)."""
        self._count += 1
        names = [f"{operator}{self._count}.{at}" for at in range(len(given))]
        attributes = {name: value for name, value in attributes.items() if value is not None}
        node = helper.make_node(operator, inputs, names, **attributes)
        if not self._foretell(node):
            return []
        results = computed(node, self._made, self._version)
        for sizes, result, made in zip(SIZES, results, self._made, strict=True):
            for name, array in result.items():
                compare(node, self._walk._values[name], array, bounded(self._walk._ranges, *sizes))
            made.update(result)
        if not any(results):
            return []
        self.nodes.append(node)
        for kind, name in zip(given, names, strict=True):
            self._values.get(kind, []).append(name)
        return names

    def _foretell(self, node: onnx.NodeProto) -> bool:
        """Let the check look at a node; whether it takes it."""
        try:
            ours = read_graph(model(helper.make_graph([node], "g", [], []), self._version))
            self._walk._run(ours.nodes[0])
        except (notewave.VoiceError, _Refused, ArithmeticError, LookupError, TypeError, ValueError):
            return False
        return True

    def _constant(self) -> None:
        count = self._take() % 5
        numbers = [NUMBERS[self._take() % len(NUMBERS)] for _ in range(max(1, count))]
        array = np.array(numbers if count else numbers[0], np.int64)
        self._add("Constant", [], "i", {"value": numpy_helper.from_array(array)})

    def _pick(self, kind: str) -> str:
        """A value: the newest for 0, and so on; nothing for some where that may be."""
        byte, values = self._take(), self._values[kind.lower()]
        if not values or (kind.isupper() and byte % 3 == 0):
            return ""
        return values[-1 - byte % len(values)]

    def _value(self, form: Any) -> Any:
        """An attribute's value, or nothing."""
        if isinstance(form, int):
            return form
        byte = self._take()
        if isinstance(form, tuple):
            return form[byte % len(form)]
        if form == "v":
            return helper.make_tensor("v", TensorProto.INT64, [1], [NUMBERS[byte % len(NUMBERS)]])
        if form == "p":
            return ([0, 2, 1], [2, 0, 1], [1, 0], [0], [1, 2, 0], [0, 1, 3, 2])[byte % 6]
        number = SMALL[byte // 4 % len(SMALL)] if byte % 4 else None
        return number if form == "n" or number is None else [number] * (1 + byte % 2)

    def _take(self) -> int:
        self._at += 1
        return self._program[self._at - 1] if self._at <= len(self._program) else 0


def computed(node: onnx.NodeProto, made: Sequence[Arrays], version: int) -> list[Arrays]:
    """What ONNX Runtime makes by a node of each of these; nothing where it refuses to, or an input is missing."""
    names = [name for name in dict.fromkeys(node.input) if name]
    songs = [{name: arrays[name] for name in names if name in arrays} for arrays in made]
    types = [next((arrays[name].dtype for arrays in made if name in arrays), None) for name in names]
    if None in types:
        return [{}] * len(made)
    declared = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(kind), None)
        for name, kind in zip(names, types, strict=True)
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    try:
        graph = model(helper.make_graph([node], "g", declared, outputs), version)
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception:  # ONNX Runtime's errors have no common base
        return [{}] * len(made)
    return [_run(session, inputs) if len(inputs) == len(names) else {} for inputs in songs]


def _run(session: Any, inputs: Arrays) -> Arrays:
    names = [output.name for output in session.get_outputs()]
    try:
        return dict(zip(names, session.run(names, inputs), strict=True))
    except Exception:  # ONNX Runtime's errors have no common base
        return {}


def compare(node: onnx.NodeProto, foretold: Value, array: NDArray[Any], ranges: Ranges) -> None:
    """Raise an AssertionError, of a kind for each operator, where a tensor is not as foretold."""

    def fits(sizes: Sequence[Size], numbers: Sequence[Any]) -> bool:
        within = (ranges.least(size) <= made <= ranges.most(size) for size, made in zip(sizes, numbers, strict=False))
        return len(sizes) == len(numbers) and all(within)

    numbers = array.ravel().tolist()
    if not fits(foretold.shape, array.shape) or not (foretold.content is None or fits(foretold.content, numbers)):
        said = f"foretold {foretold}, made {array.dtype} {array.shape} {numbers[:10]} by {' '.join(str(node).split())}"
        raise type(f"{node.op_type}Error", (AssertionError,), {})(said)


def bounded(ranges: Ranges, songs: int, tokens: int) -> Ranges:
    """The ranges of letters where two of them are known."""
    return Ranges({**ranges.of, "B": (songs, songs), "N": (tokens, tokens)})


def _song(songs: int, tokens: int) -> NDArray[np.float32]:
    return np.arange(songs * tokens * 4, dtype=np.float32).reshape(songs, tokens, 4)
