"""What a graph may do is known before a runtime is given it: sizes hold, and what takes too much is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper, shape_inference

from notewave import Voice, VoiceError
from notewave.backends.graphs.typed import whole_model
from notewave.export.convert import export_checkpoint
from notewave.export.vocoders import MelGAN
from notewave.sound.stream import VocoderTraits
from notewave.voice import files, graph_check
from notewave.voice.contracts import Contract, Dimensions, Tensor
from notewave.voice.graph_check import check_graph
from notewave.voice.graph_reader import ELEMENTS, read_graph
from notewave.voice.library import DESCRIPTION
from notewave.voice.rules import RULES
from notewave.voice.sizes import Polynomial, Ranges, Size, minus, plus, quotient, times

SMALL = Dimensions(64, 2, 32, 128, 1, 1, 1)
LETTERS = {"B": 2, "N": 5, "C": 256, "J": 261, "S": 3, "T": 9, "V": 7}
CONTRACT = Contract(
    (Tensor("x", "float32", ("B", 4, "V")), Tensor("n", "int64", (1,))), (Tensor("y", "float32", ("B", "V")),)
)
TYPES = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32, "int64": TensorProto.INT64}


def arrays(**values: Any) -> list[TensorProto]:
    return [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]


def walked(graph: onnx.ModelProto, contract: Contract) -> graph_check._Walk:
    """A graph's walk, whatever it takes."""
    letters = graph_check._letters(2048, VocoderTraits(0, 0))
    walk = graph_check._Walk(read_graph(graph.SerializeToString()), contract, 1 << 60, letters)
    walk.go()
    return walk


def bounds(size: Size, ranges: Ranges) -> tuple[int, int]:
    """What a size can be where the letters of the contract are those of LETTERS."""
    here = Ranges(
        {letter: (LETTERS.get(letter, low), LETTERS.get(letter, high)) for letter, (low, high) in ranges.of.items()}
    )
    return here.least(size), here.most(size)


def assert_sizes_hold(
    model: onnx.ModelProto, contract: Contract, inputs: dict[str, Any], *, exact: bool = False
) -> None:
    """Every value that ONNX Runtime makes has a size, and a content, as was foretold."""
    walk = walked(model, contract)
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    made = dict.fromkeys(name for node in whole.graph.node for name in node.output if name)
    inferred = {value.name: value for value in shape_inference.infer_shapes(whole).graph.value_info}
    missing = [name for name in made if name not in {value.name for value in whole.graph.output}]
    whole.graph.output.extend(inferred.get(name, helper.make_empty_tensor_value_info(name)) for name in missing)
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(whole.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    for name, found in zip(names, session.run(names, inputs), strict=True):
        value = walk._values[name]
        assert ELEMENTS[value.element][0] == found.dtype, name
        foretold = [bounds(size, walk._ranges) for size in value.shape]
        assert len(foretold) == found.ndim, (name, foretold, found.shape)
        for (least, most), size in zip(foretold, found.shape, strict=True):
            assert least <= size <= most, (name, foretold, found.shape)
            assert not exact or least == most, (name, foretold, found.shape)
        if value.content is not None:
            for (least, most), number in zip(
                (bounds(size, walk._ranges) for size in value.content), found.ravel().tolist(), strict=True
            ):
                assert least <= number <= most, (name, value.content, found)


def given(contract: Contract) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        tensor.name: (rng.standard_normal(shape) if tensor.dtype == "float32" else rng.integers(1, 9, shape)).astype(
            tensor.dtype
        )
        for tensor in contract.inputs
        for shape in [tensor.shape_at(LETTERS)]
    }


@pytest.fixture(scope="module")
def voices(reference_voice: Path, vocoded_voice: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Voice]:
    folder = tmp_path_factory.mktemp("checked")
    eight = export_checkpoint(vocoded_voice, folder / "int8", precision="int8")
    half = export_checkpoint(vocoded_voice, folder / "fp16", precision="fp16")
    return [Voice.load(vocoded_voice), half, eight, Voice.load("band")]


def test_sizes_of_all_that_our_voices_compute(voices: list[Voice]) -> None:
    for voice in voices:
        for network, contract in voice.contracts().items():
            assert_sizes_hold(whole_model(voice, network), contract, given(contract), exact=voice.precision != "int8")


def test_sizes_of_a_melgan(tmp_path: Path) -> None:
    from notewave.export.graphs.vocoder import export_vocoder_onnx

    export_vocoder_onnx(MelGAN(width=32), tmp_path / "vocoder.onnx")
    contract = Voice.load("band").contracts()["vocoder"]
    contract = dataclasses.replace(contract, inputs=contract.inputs[:1])
    assert_sizes_hold(onnx.load(tmp_path / "vocoder.onnx"), contract, given(contract), exact=True)


def shape_of(*entries: Any) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
    """Nodes that make the tensor "shape" of sizes of x, by number, and of given ones."""
    nodes = [helper.make_node("Shape", ["x"], ["sizes"])]
    weights = []
    for at, entry in enumerate(entries):
        index, start = f"i{at}", entry if isinstance(entry, int) else 0
        if isinstance(entry, int):
            weights += arrays(**{f"e{at}": np.array([start], np.int64)})
        else:
            weights += arrays(**{index: np.array([int(entry)], np.int64)})
            nodes.append(helper.make_node("Gather", ["sizes", index], [f"e{at}"], axis=0))
    nodes.append(helper.make_node("Concat", [f"e{at}" for at in range(len(entries))], ["shape"], axis=0))
    return nodes, weights


I64, F32, I8, INT64 = np.int64, np.float32, np.int8, TensorProto.INT64
# Operator: inputs (x, n, or arrays), attributes, how many outputs.
CASES: list[tuple[str, list[Any], dict[str, Any], int]] = [
    ("Add", ["x", np.ones((4, 1), F32)], {}, 1),
    ("Mul", ["x", np.ones((3, 1, 1, 1), F32)], {}, 1),
    ("Clip", ["x", F32(0)], {}, 1),
    ("Cast", ["x"], {"to": TensorProto.DOUBLE}, 1),
    ("Elu", ["x"], {"alpha": 1.0}, 1),
    ("PRelu", ["x", np.ones((4, 1), F32)], {}, 1),
    ("Softmax", ["x"], {"axis": 1}, 1),
    ("CumSum", ["x", np.array(1, I64)], {}, 1),
    ("LayerNormalization", ["x", np.ones((4, 7), F32)], {"axis": 1}, 1),
    ("InstanceNormalization", ["x", np.ones(4, F32), np.ones(4, F32)], {}, 1),
    ("DynamicQuantizeLinear", ["x"], {}, 3),
    ("QuantizeLinear", ["x", F32(0.1), np.uint8(0)], {}, 1),
    ("QuantizeLinear", ["x", F32(0.1)], {"output_dtype": TensorProto.INT8}, 1),
    ("DequantizeLinear", [np.ones(4, I8), F32(0.1)], {}, 1),
    ("CastLike", ["x", np.array(1, I64)], {}, 1),
    ("Div", [np.array([7, 9], I64), np.array([2], I64)], {}, 1),
    ("Greater", ["x", F32(0)], {}, 1),
    ("Where", [np.array([[True], [False], [True], [True]]), "x", F32(2)], {}, 1),
    ("ConvInteger", [np.ones((1, 2, 9), np.uint8), np.ones((3, 2, 3), np.uint8)], {}, 1),
    ("ConstantOfShape", [np.array([3, 2], I64)], {}, 1),
    ("Constant", [], {"value_float": 1.0}, 1),
    ("Constant", [], {"value_int": 3}, 1),
    ("Transpose", ["x"], {"perm": [2, 0, 1]}, 1),
    ("Transpose", ["x"], {}, 1),
    ("Flatten", ["x"], {"axis": 2}, 1),
    ("Squeeze", [np.ones((1, 3, 1), F32), np.array([-1], I64)], {}, 1),
    ("Slice", [np.array([4, 5, 6, 7], I64), np.array([1], I64), np.array([3], I64)], {}, 1),
    ("Expand", [np.array([7], I64), np.array([3], I64)], {}, 1),
    ("Unsqueeze", ["x", np.array([0, -1], I64)], {}, 1),
    ("Reshape", ["x", np.array([0, -1], I64)], {}, 1),
    ("Reshape", ["x", np.array([-1, 2, 2, 7], I64)], {"allowzero": 1}, 1),
    ("Concat", ["x", "x", np.ones((2, 3, 7), F32)], {"axis": 1}, 1),
    ("Split", ["x"], {"axis": 2, "num_outputs": 3}, 3),
    ("Split", ["x", np.array([1, 3], I64)], {"axis": 1}, 2),
    ("Slice", ["x", np.array([1], I64), np.array([-1], I64), np.array([2], I64)], {}, 1),
    ("Slice", ["x", np.array([-3], I64), np.array([1 << 60], I64), np.array([2], I64), np.array([2], I64)], {}, 1),
    ("Slice", ["x", np.array([9], I64), np.array([3], I64), np.array([2], I64), np.array([-1], I64)], {}, 1),
    ("Gather", ["x", np.array([[0, 1, 2], [3, 0, 0]], I64)], {"axis": 1}, 1),
    ("Tile", ["x", np.array([1, 3, 2], I64)], {}, 1),
    ("Expand", ["x", np.array([2, 1, 1, 1], I64)], {}, 1),
    ("Pad", ["x", np.array([0, 0, 3, 0, 1, -2], I64)], {}, 1),
    ("Pad", ["x", np.array([2, 3], I64), F32(0), np.array([2], I64)], {"mode": "reflect"}, 1),
    ("ReduceMean", ["x", np.array([-1], I64)], {"keepdims": 0}, 1),
    ("ReduceMax", ["x"], {}, 1),
    ("ReduceSum", ["x"], {"noop_with_empty_axes": 1}, 1),
    ("ConstantOfShape", [np.array([3, 2], I64)], {"value": numpy_helper.from_array(np.array([7], I64))}, 1),
    ("Range", [np.array(3, I64), np.array(20, I64), np.array(4, I64)], {}, 1),
    ("Range", [np.array(9, I64), np.array(-3, I64), np.array(-2, I64)], {}, 1),
    ("Constant", [], {"value_ints": [3, 4]}, 1),
    ("Constant", [], {"value": numpy_helper.from_array(np.ones((2, 3), F32))}, 1),
    ("Shape", ["x"], {"start": 1}, 1),
    ("Size", ["x"], {}, 1),
    ("MatMul", ["x", np.ones((3, 1, 7, 6), F32)], {}, 1),
    ("MatMul", ["x", np.ones(7, F32)], {}, 1),
    ("MatMul", [np.ones(4, F32), "x"], {}, 1),
    ("Gemm", [np.ones((3, 5), F32), np.ones((6, 3), F32)], {"transA": 1, "transB": 1}, 1),
    ("MatMulInteger", [np.ones((2, 3, 4), np.uint8), np.ones((4, 6), I8)], {}, 1),
    ("Conv", ["x", np.ones((6, 2, 3), F32)], {"group": 2, "pads": [1, 2], "strides": [2], "dilations": [2]}, 1),
    ("Conv", ["x", np.ones((6, 4, 3), F32)], {"auto_pad": "SAME_UPPER", "strides": [2]}, 1),
    ("ConvTranspose", ["x", np.ones((4, 3, 5), F32)], {"strides": [3], "pads": [1, 1], "output_padding": [2]}, 1),
    ("ConvTranspose", ["x", np.ones((4, 3, 4), F32)], {"group": 2, "strides": [2], "dilations": [2]}, 1),
    ("Attention", [np.ones((2, 3, 5, 8), F32), np.ones((2, 3, 6, 8), F32), np.ones((2, 3, 6, 4), F32)], {}, 1),
    (
        "Attention",
        [np.ones((2, 5, 24), F32), np.ones((2, 6, 24), F32), np.ones((2, 6, 12), F32)],
        {"q_num_heads": 3, "kv_num_heads": 3},
        1,
    ),
]  # fmt: skip


ROUNDED = ("Concat", "Conv", "Reshape", "Slice", "Split")  # sizes that are no polynomials of the letters


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_rules_are_the_operators(case: tuple[str, list[Any], dict[str, Any], int]) -> None:
    operator, inputs, attributes, outputs = case
    weights = arrays(**{f"w{at}": value for at, value in enumerate(inputs) if not isinstance(value, str)})
    names = [value if isinstance(value, str) else f"w{at}" for at, value in enumerate(inputs)]
    node = helper.make_node(operator, names, [f"o{at}" for at in range(outputs)], **attributes)
    assert_sizes_hold(made([node], weights), CONTRACT, given(CONTRACT), exact=operator not in ROUNDED)


def made(nodes: list[onnx.NodeProto], weights: list[TensorProto]) -> onnx.ModelProto:
    """A model by CONTRACT that runs these nodes beside what the contract asks for."""
    values = [
        helper.make_tensor_value_info(tensor.name, TYPES[tensor.dtype], tensor.shape) for tensor in CONTRACT.inputs
    ]
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", "V"])
    nodes = [*nodes, helper.make_node("ReduceMean", ["x", "one"], ["y"], keepdims=0)]
    graph = helper.make_graph(nodes, "g", values, [result], [*weights, *arrays(one=np.array([1], I64))])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)


@pytest.mark.parametrize(
    "nodes",
    [
        ["Mul sizes two", "Sub m one", "Div m two", "Mod m two", "Neg m", "Add m m", "Min m two", "Max m two"],
        [
            "Equal sizes minus",
            "Where e sizes two",
            "Cast sizes",
            "Gather sizes second",
            "Squeeze g",
            "ReduceProd sizes",
        ],
        ["Equal sizes sizes", "Where e sizes two"],
    ],
)
def test_contents_that_shapes_are_made_of(nodes: list[str]) -> None:
    short = {"Mul": "m", "Equal": "e", "Gather": "g"}
    built = [helper.make_node("Shape", ["x"], ["sizes"])]
    for at, text in enumerate(nodes):
        operator, *inputs = text.split()
        more = {"to": TensorProto.INT32} if operator == "Cast" else {}
        built.append(helper.make_node(operator, inputs, [short.get(operator, f"o{at}")], **more))
    one, two, minus_one, second = (np.array([value], I64) for value in (1, 2, -1, 2))
    model = made(built, arrays(one_=one, two=two, minus=minus_one, second=second))
    assert_sizes_hold(model, CONTRACT, given(CONTRACT))
    assert walked(model, CONTRACT)._values["sizes"].content is not None


def test_older_forms_have_attributes_in_the_place_of_inputs() -> None:
    values = [
        helper.make_tensor_value_info(tensor.name, TYPES[tensor.dtype], tensor.shape) for tensor in CONTRACT.inputs
    ]
    nodes = [
        helper.make_node("Unsqueeze", ["x"], ["u"], axes=[0, 2]),
        helper.make_node("Squeeze", ["u"], ["s"], axes=[2, 0]),
        helper.make_node("Split", ["s"], ["first", "second"], axis=1, split=[1, 3]),
        helper.make_node("ReduceSum", ["second"], ["r"], axes=[-1]),
        helper.make_node("ReduceMean", ["x"], ["y"], axes=[1], keepdims=0),
    ]
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", "V"])
    graph = helper.make_graph(nodes, "g", values, [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6)
    assert_sizes_hold(model, CONTRACT, given(CONTRACT))


@pytest.mark.parametrize("element", [TensorProto.UINT8, TensorProto.BOOL, TensorProto.FLOAT16, TensorProto.UINT64])
def test_integers_are_not_followed_through_types_that_change_them(element: int) -> None:
    nodes = [helper.make_node("Cast", ["w"], ["c"], to=element), helper.make_node("Cast", ["c"], ["s"], to=INT64)]
    model = made([*nodes, helper.make_node("ConstantOfShape", ["s"], ["big"])], arrays(w=np.array([-1], I64)))
    with pytest.raises(VoiceError, match="hangs on what is computed"):
        check_graph(read_graph(model.SerializeToString()), CONTRACT, SMALL, VocoderTraits(20, 20))


def test_flags_are_yes_by_one_alone() -> None:
    cases = (("ReduceSum", "keepdims", ["x", "a"]), ("ReduceSum", "noop_with_empty_axes", ["x"]))
    for operator, flag, inputs in cases:
        node = helper.make_node(operator, inputs, ["o"], **{flag: 2})
        weights = arrays(a=np.array([1], I64))
        assert_sizes_hold(made([node], weights), CONTRACT, given(CONTRACT))


def test_a_new_rule_has_a_test_or_is_elementwise() -> None:
    alike = [RULES[name] for name in ("Abs", "Greater", "Softmax", "ReduceMax")]
    plain = {name for name, rule in RULES.items() if rule in alike}
    followed = {"Sub", "Mod", "Neg", "Min", "Max", "Equal", "Squeeze", "ReduceProd", "Identity"}
    assert set(RULES) == plain | followed | {case[0] for case in CASES}


def sized(*entries: Any, operator: str = "Expand") -> onnx.ModelProto:
    """A model that fills a tensor of a shape made of sizes of x (text) and of numbers."""
    nodes, weights = shape_of(*entries)
    zero = arrays(zero=np.zeros(1, F32))
    fill = helper.make_node("Expand", ["zero", "shape"], ["big"])
    if operator == "ConstantOfShape":
        fill = helper.make_node("ConstantOfShape", ["shape"], ["big"])
    return made([*nodes, fill], [*weights, *zero])


def chain(count: int) -> onnx.ModelProto:
    """Nodes one after another."""
    nodes = [helper.make_node("Neg", ["x" if at == 0 else f"c{at - 1}"], [f"c{at}"]) for at in range(count)]
    return made(nodes, [])


def doubling(count: int) -> onnx.ModelProto:
    """A tensor that is joined to itself again and again."""
    nodes = [helper.make_node("Concat", [f"c{at}"] * 2, [f"c{at + 1}"], axis=0) for at in range(count)]
    return made(nodes, arrays(c0=np.zeros(1 << 10, F32)))


def hidden_by_the_batch() -> onnx.ModelProto:
    """A size that is small for 1 and for 16 songs, and large between: (B - 1) (16 - B) 10^7."""
    nodes = [helper.make_node("Shape", ["x"], ["b"], end=1)]
    nodes += [helper.make_node("Sub", ["b", "one_"], ["less"]), helper.make_node("Sub", ["most", "b"], ["more"])]
    nodes += [
        helper.make_node("Mul", ["less", "more"], ["mixed"]),
        helper.make_node("Mul", ["mixed", "many"], ["shape"]),
    ]
    nodes.append(helper.make_node("ConstantOfShape", ["shape"], ["big"]))
    return made(nodes, arrays(one_=np.array([1], I64), most=np.array([16], I64), many=np.array([10**8], I64)))


def joined_sizes(operator: str) -> onnx.ModelProto:
    """A range whose step is an axis of x."""
    nodes = [helper.make_node("Shape", ["x"], ["sizes"]), helper.make_node("Gather", ["sizes", "last"], ["size"])]
    nodes.append(helper.make_node(operator, ["none", "many", "size"], ["big"]))
    return made(nodes, arrays(last=np.array(2, I64), none=np.array(0, I64), many=np.array(99, I64)))


def repeated_outputs() -> onnx.ModelProto:
    """A value that two nodes make."""
    return made([helper.make_node("Neg", ["x"], ["twice"]), helper.make_node("Abs", ["x"], ["twice"])], [])


def two_outputs() -> onnx.ModelProto:
    """A node that gives more than its operator has."""
    return made([helper.make_node("Neg", ["x"], ["one", "two"])], [])


def products(count: int) -> onnx.ModelProto:
    """Matrix products one after another, of what a song brings: little memory, much work."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["p0"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["p0", "a"], ["q0"]),
    ]
    for at in range(count):
        nodes.append(helper.make_node("MatMul", [f"q{at}", "w"], [f"q{at + 1}"]))
    return made(nodes, arrays(a=np.zeros((4, 2048), F32), w=np.zeros((2048, 2048), F32)))


def single(operator: str, *inputs: Any, **attributes: Any) -> Callable[[], onnx.ModelProto]:
    """A model with one more node."""

    def make() -> onnx.ModelProto:
        weights = arrays(**{f"w{at}": value for at, value in enumerate(inputs) if not isinstance(value, str)})
        names = [value if isinstance(value, str) else f"w{at}" for at, value in enumerate(inputs)]
        return made([helper.make_node(operator, names, ["big"], **attributes)], weights)

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (single("NonZero", "x"), "NonZero, which voices have no use for"),
        (single("RandomNormal", shape=[3]), "RandomNormal, which"),
        (single("Sin", "x", domain="com.microsoft"), "com.microsoft:Sin, which"),
        (lambda: sized(750_000_000), "numbers at once"),
        (lambda: sized(750_000_000, operator="ConstantOfShape"), "numbers at once"),
        (lambda: sized("2", "2", 10_000), "numbers at once"),
        (lambda: sized(40_000_000), "of its weights"),
        (lambda: doubling(30), "of its weights"),
        (lambda: sized(1 << 40, 1 << 40), "beyond all bounds"),
        (lambda: chain(9000), "nodes, over"),
        (hidden_by_the_batch, "numbers at once"),
        (single("Tile", "x", np.array([1, 1, 1 << 40], I64)), "numbers at once|beyond all bounds"),
        (single("Pad", "x", np.array([0, 0, 0, 0, 0, 1 << 40], I64)), "numbers at once"),
        (single("Range", np.array(0, I64), np.array(1 << 40, I64), np.array(1, I64)), "numbers at once"),
        (single("Range", np.array(0, I64), np.array(5, I64), np.array(0, I64)), "does not go on"),
        (single("ConstantOfShape", "n"), "hangs on what is computed"),
        (single("Expand", "x", "n"), "hangs on what is computed"),
        (single("ConvTranspose", "x", np.ones((4, 4, 1), F32), strides=[1 << 30]), "numbers at once"),
        (single("Conv", "x", np.ones((4, 4, 1), F32), pads=[1 << 40, 0]), "numbers at once"),
        (single("Gather", np.zeros((1, 1 << 14), F32), np.zeros((1 << 14), I64)), "numbers at once"),
        (single("Add", np.zeros((1 << 14, 1), F32), np.zeros((1, 1 << 14), F32)), "numbers at once"),
        (single("MatMul", np.zeros((1 << 14, 1), F32), np.zeros((1, 1 << 14), F32)), "numbers at once"),
        (single("Reshape", "x", np.array([-1, -1], I64)), "has the shape"),
        (single("Conv", "x", np.ones((4, 4, 0), F32)), "no numbers, or no groups"),
        (single("Conv", "x", np.ones((4, 4, 1), F32), group=0), "no numbers, or no groups"),
        (single("ConvTranspose", "x", np.ones((4, 4, 1), F32), group=0), "no numbers, or no groups"),
        (single("Unsqueeze", "x", np.array([0, 0], I64)), "an axis is there twice"),
        (single("Concat", np.ones((0, 2, 8), F32), np.ones((2, 2, 8), F32), axis=1), "do not fit"),
        (single("Reshape", "x"), "an input is missing"),
        (single("Shape"), "an input is missing"),
        (single("Shape", "x", start=1.5), "start is no integer"),
        (single("Transpose", "x", perm=b"021"), "perm is no list of integers"),
        (single("Transpose", "x", perm=[0, 0, 1]), "are none of 3"),
        (single("Conv", "x", np.ones((4, 4, 1), F32), auto_pad=1), "auto_pad is no text"),
        (single("Constant"), "a constant has no numbers"),
        (single("Split", "x", np.array([1, 1, 2], I64), axis=1), "3 sizes for 1 parts"),
        (single("Attention", *[np.ones((1, 2, 3, 4), F32)] * 3, "", np.ones((1, 2, 3, 4), F32)), "has a memory"),
        (single("Attention", *[np.ones((1, 3, 4), F32)] * 3, q_num_heads=3, kv_num_heads=3), "there are no 3 heads"),
        (lambda: joined_sizes("Range"), "hangs on the song"),
        (lambda: repeated_outputs(), "is made twice"),
        (lambda: two_outputs(), "has 2 outputs"),
        (lambda: products(2000), "multiplications for a segment"),
        (single("Div", "n", "n"), "hangs on what is computed"),
        (single("Div", np.array([-(1 << 63)], I64), np.array([-1], I64)), "divided by what may be none, or less"),
        (single("Div", "n", np.array([0], I64)), "divided by what may be none, or less"),
        (single("Cast", "x", to=TensorProto.STRING), "there is no type 8"),
        (single("Add", "x", "later"), "not made before it"),
        (single("Conv", "x", np.ones((4, 4), F32), strides=[0]), "does not fit together"),
        (single("Split", "x", np.array([3], I64), axis=9), "there is no axis 9"),
        (lambda: made([helper.make_node("Split", ["x"], [])], []), "a size is divided by 0"),
        (single("Sin", "x", "x", "x"), None),
    ],
)
def test_what_takes_too_much_is_refused(make: Callable[[], onnx.ModelProto], message: str | None) -> None:
    graph = read_graph(make().SerializeToString())
    if message is None:  # nonsense that a runtime refuses itself, in no time
        check_graph(graph, CONTRACT, SMALL, VocoderTraits(20, 20))
        return
    with pytest.raises(VoiceError, match=message):
        check_graph(graph, CONTRACT, SMALL, VocoderTraits(20, 20))


def test_work_without_end_is_refused() -> None:
    square = np.zeros((1 << 11, 1 << 11), F32)
    nodes = [helper.make_node("MatMul", ["w", "w" if at == 0 else f"c{at - 1}"], [f"c{at}"]) for at in range(400)]
    with pytest.raises(VoiceError, match=r"multiplications for a segment|of its weights"):
        check_graph(read_graph(made(nodes, arrays(w=square)).SerializeToString()), CONTRACT, SMALL, VocoderTraits(0, 0))


def test_more_weights_than_a_voice_of_the_sizes_has() -> None:
    contract = Contract(CONTRACT.inputs, CONTRACT.outputs)
    model = made([], arrays(w=np.zeros(1 << 24, F32)))
    with pytest.raises(VoiceError, match="weights, where a voice of its sizes has"):
        check_graph(read_graph(model.SerializeToString()), contract, SMALL, None)


@pytest.mark.parametrize("names", [(["x"], ["y"]), (["n", "x"], ["y"]), (["x", "n"], ["z"])])
def test_inputs_and_outputs_are_the_contracts(names: tuple[list[str], list[str]]) -> None:
    model = made([], [])
    for values, wanted in ((model.graph.input, names[0]), (model.graph.output, names[1])):
        while len(values) > len(wanted):
            values.pop()
        for value, name in zip(values, wanted, strict=True):
            value.name = name
    with pytest.raises(VoiceError, match="are due"):
        check_graph(read_graph(model.SerializeToString()), CONTRACT, SMALL, None)


def test_the_published_size_and_larger_ones_have_room(tmp_path: Path) -> None:
    """Of a voice five times the published size, of which no weight need be made."""
    size = Dimensions(1536, 24, 64, 4096, 16, 16, 16)
    assert graph_check._held_by(size) >= 2 * 24 * 2048 * 2304 + 2304 * 8 * 1536


def test_the_bundled_voice_was_looked_into_and_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    band = Voice.load("band")
    assert {band._held.digest()} == files.LOOKED_INTO, "say it in notewave.voice.files.LOOKED_INTO"
    monkeypatch.setattr(files, "LOOKED_INTO", frozenset())
    assert Voice.load("band") == band


def test_a_copy_of_it_with_other_sizes_is_looked_into(tmp_path: Path) -> None:
    band = Voice.load("band")
    content = json.loads((band.folder / DESCRIPTION).read_text())
    content["dimensions"]["decoder_layers"] = 6
    for name in band.files:
        (tmp_path / name).hardlink_to(band.folder / name)
    (tmp_path / DESCRIPTION).write_text(json.dumps(content))
    with pytest.raises(VoiceError, match=r"cross_attention\.onnx cannot be used: .* are due"):
        Voice.load(tmp_path)


def test_axes_that_depend_on_the_song_side_by_side() -> None:
    """An axis of x beside one of n's values, of a fixed size, and of another axis that nobody can tell."""
    nodes = [
        helper.make_node("Slice", ["x", "zero", "nine", "two"], ["part"]),  # V, or 9
        helper.make_node("Slice", ["x", "zero", "eight", "two"], ["other"]),  # V, or 8
        helper.make_node("Add", ["part", "part"], ["same"]),
        helper.make_node("Add", ["part", "other"], ["either"]),
        helper.make_node("Add", ["part", "fixed"], ["known"]),
    ]
    values = {"zero": [0], "nine": [9], "eight": [8], "two": [2]}
    weights = arrays(**{name: np.array(value, I64) for name, value in values.items()}, fixed=np.ones((1, 4, 7), F32))
    assert_sizes_hold(made(nodes, weights), CONTRACT, given(CONTRACT))


def test_an_output_that_nothing_makes() -> None:
    model = made([], [])
    model.graph.node[-1].output[0] = "else"
    with pytest.raises(VoiceError, match="nothing makes y"):
        check_graph(read_graph(model.SerializeToString()), CONTRACT, SMALL, None)


def test_sizes_as_polynomials() -> None:
    b, n = Polynomial({("B",): 1}), Polynomial({("N",): 1})
    whole = times(plus(b, 3), minus(n, 1), 4)
    assert quotient(whole, plus(b, 3)) == plus(times(4, n), -4)
    assert quotient(whole, times(2, minus(n, 1))) == plus(times(2, b), 6)
    assert quotient(plus(whole, 1), plus(b, 3)) is None
    assert quotient(0, b) is None and quotient(b, 0) is None
    assert minus(whole, whole) == 0 and quotient(12, 5) is None and quotient(12, 0) is None
    ranges = Ranges({"B": (1, 16), "N": (2, 10)})
    assert (ranges.least(minus(b, n)), ranges.most(minus(b, n))) == (-9, 14)
    assert ranges.most_each(times(b, b, n), "B") == 160
    for big in (times(1 << 40, b), times(b, b, b, b)):
        with pytest.raises(ValueError):
            times(big, big, b)
