"""Smaller weights for a graph, in standard operators: float16 storage, or int8 matrix products.

float16 weights are cast up when a runtime loads the graph, so that the arithmetic stays float32. In int8 the
activations are quantised too, as they come: by one scale for all after a norm, which makes rows alike, row by row
elsewhere. Patterns are those that ONNX Runtime fuses into one operator (DynamicQuantizeMatMul, MatMulIntegerToFloat);
benchmarks/NOTES.md has what each saves.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.tape import Tape

_FLOAT16_MAX = float(np.finfo(np.float16).max)
_STEPS = 127  # quantised values on either side of zero
_ZERO = 128  # of activations: x86 multiplies uint8 by int8 fastest (before VNNI, with a rare saturation)
_SMALLEST = 1e-30  # in place of a scale of 0


def store_half(graph: ir.Graph, keep: Collection[ir.Value] = ()) -> None:
    """Store float32 matrices as float16, each behind a Cast, but for ``keep`` and those that overflow float16.

    Vectors stay: they are small, and the frequencies of the time embedding bear no rounding.
    """
    for name, value in list(graph.initializers.items()):
        weight = weight_of(value)
        if weight.dtype == np.float32 and weight.ndim == 2 and value not in keep and _fits(weight):
            half = _initializer(graph, f"{name}.half", weight.astype(np.float16))
            cast = ir.node("Cast", [half], attributes={"to": ir.DataType.FLOAT})
            graph.insert_before(graph[0], cast)
            ir.convenience.replace_all_uses_with(value, cast.outputs[0])
            del graph.initializers[name]


def _fits(weight: NDArray[np.generic]) -> bool:
    return bool(np.abs(weight).max() <= _FLOAT16_MAX)


def store_int8(graph: ir.Graph) -> None:
    """Make the products of hidden activations with weights int8; store all other weights as float16."""
    divide_split_products(graph)
    attend_unsplit(graph)
    quantise(graph, [node for node in graph if _is_hidden_product(node)])


def quantise(graph: ir.Graph, products: Sequence[ir.Node]) -> None:
    """Make these products with weights int8; store all other weights as float16."""
    store_half(graph, keep=[_operands(node)[1] for node in products])
    activations: dict[ir.Value, _Activations] = {}
    for node in products:
        _quantise(graph, node, activations)
    _prune(graph)


def widen_halves(graph: ir.Graph) -> None:
    """The inverse of ``store_half``: float32 weights in the place of float16 ones behind Casts."""
    for node in [node for node in graph if node.op_type == "Cast"]:
        (value,) = node.inputs
        if value is not None and value.const_value is not None and value.dtype == ir.DataType.FLOAT16:
            whole = _initializer(graph, f"{value.name}.whole", weight_of(value).astype(np.float32))
            ir.convenience.replace_all_uses_with(node.outputs[0], whole)
    _prune(graph)


def divide_split_products(graph: ir.Graph) -> None:
    """Give each part of a split product a product of its own: on a CPU a large one is no faster, and the copy costs."""
    for split in [node for node in graph if node.op_type == "Split"]:
        (whole,) = split.inputs[:1]
        product = whole.producer() if whole is not None else None
        if product is None or product.op_type != "MatMul":
            continue
        x, weight = _operands(product)
        parts = np.split(weight_of(weight), len(split.outputs), axis=1)
        for index, (part, output) in enumerate(zip(parts, split.outputs, strict=True)):
            matrix = _initializer(graph, f"{weight.name}.{index}", np.ascontiguousarray(part))
            divided = ir.node("MatMul", [x, matrix])
            graph.insert_before(split, divided)
            ir.convenience.replace_all_uses_with(output, divided.outputs[0])
    _prune(graph)


def attend_unsplit(graph: ir.Graph) -> None:
    """Let Attention find the heads in [B, T, H K] by itself where all its inputs were split into heads just before."""
    for node in [node for node in graph if node.op_type == "Attention"]:
        joined = [_unsplit(value) for value in node.inputs[:3]]
        if None in joined:
            continue
        (transposed,) = (use.node for use in node.outputs[0].uses())
        (reshaped,) = (use.node for use in transposed.outputs[0].uses())
        queries = node.inputs[0]
        assert queries is not None and queries.shape is not None
        heads = queries.shape[1]
        assert isinstance(heads, int)
        attributes = [ir.AttrInt64(name, heads) for name in ("q_num_heads", "kv_num_heads")]
        unsplit = ir.Node("", "Attention", [*joined, *node.inputs[3:]], [*node.attributes.values(), *attributes])
        graph.insert_before(node, unsplit)
        ir.convenience.replace_all_uses_with(reshaped.outputs[0], unsplit.outputs[0])
    _prune(graph)


def _unsplit(value: ir.Value | None) -> ir.Value | None:
    """[B, T, H K], if this value [B, H, T, K] is made of it."""
    for operator in ("Transpose", "Reshape"):
        node = value.producer() if value is not None else None
        if node is None or node.op_type != operator:
            return None
        value = node.inputs[0]
    return value


def _prune(graph: ir.Graph) -> None:
    """Remove what nothing uses."""
    for node in reversed(list(graph)):
        if not any(output.uses() or output.is_graph_output() for output in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]


def weight_of(value: ir.Value) -> NDArray[np.generic]:
    """Content of an initializer."""
    assert value.const_value is not None
    return value.const_value.numpy()


def _is_hidden_product(node: ir.Node) -> bool:
    """The first and the last layer of a network, next to its inputs and outputs, are small and sensitive."""
    if node.op_type != "MatMul" or node.outputs[0].is_graph_output():
        return False
    x, weight = _operands(node)
    return weight.const_value is not None and not x.is_graph_input()


def _operands(node: ir.Node) -> tuple[ir.Value, ir.Value]:
    x, weight = node.inputs
    assert x is not None and weight is not None
    return x, weight


@dataclass(frozen=True)
class _Activations:
    """Quantised activations: x = scale rows (whole - zero)."""

    whole: ir.Value  # uint8 [..., D]
    zero: ir.Value  # uint8, for all
    scale: ir.Value  # for all
    rows: ir.Value | None  # of each row [..., 1]; None where 1


def _quantise(graph: ir.Graph, node: ir.Node, activations: dict[ir.Value, _Activations]) -> None:
    """Replace a product with weights by one of integers, with a scale for each column of the weights."""
    x, weight = _operands(node)
    matrix = weight_of(weight)  # [in, out]
    columns = np.maximum(np.abs(matrix).max(axis=0), _SMALLEST) / _STEPS
    whole = _initializer(graph, f"{weight.name}.int8", np.rint(matrix / columns).astype(np.int8))
    tape = Tape()
    if x not in activations:
        activations[x] = _by_tensor(tape, x) if _is_normed(x) else _by_row(graph, tape, x, len(matrix))
    found = activations[x]
    product = tape.op("MatMulInteger", [found.whole, whole, found.zero])
    scale = tape.op("Mul", [found.scale, _initializer(graph, f"{weight.name}.scale", columns.astype(np.float32))])
    result = tape.op("Mul", [tape.op("Cast", [product], {"to": ir.DataType.FLOAT}), scale])
    if found.rows is not None:
        result = tape.op("Mul", [result, found.rows])
    graph.insert_before(node, tape.nodes)
    ir.convenience.replace_all_uses_with(node.outputs[0], result)


def _is_normed(x: ir.Value) -> bool:
    """Whether x is the result of a norm, with FiLM or without."""
    node = x.producer()
    while node is not None and node.op_type in ("Add", "Mul") and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node is not None and node.op_type in ("RMSNormalization", "LayerNormalization")


def _by_tensor(tape: Tape, x: ir.Value) -> _Activations:
    whole, scale, zero = tape.op_multi_out("DynamicQuantizeLinear", [x], num_outputs=3)
    return _Activations(whole, zero, scale, None)


def _by_row(graph: ir.Graph, tape: Tape, x: ir.Value, width: int) -> _Activations:
    """Each row's scale is parted into the largest of all, as ONNX Runtime's fused product takes it, and the rest."""
    step = _initializer(graph, "activation_step", np.array(1 / _STEPS, np.float32))
    zero = _initializer(graph, "activation_zero", np.array(_ZERO, np.uint8))
    smallest = _initializer(graph, "activation_smallest", np.array(_SMALLEST, np.float32))
    last = _initializer(graph, "last_axis", np.array([-1], np.int64))
    highest, lowest = tape.op("ReduceMax", [x, last]), tape.op("ReduceMin", [x, last])
    rows = tape.op("Mul", [tape.op("Max", [highest, tape.op("Neg", [lowest]), smallest]), step])
    zeros = tape.op("Expand", [zero, tape.op("Shape", [rows])])
    whole = tape.op("QuantizeLinear", [x, rows, zeros], {"axis": -1, "block_size": width})
    largest = tape.op("ReduceMax", [rows], {"keepdims": 0})
    return _Activations(whole, zero, largest, tape.op("Div", [rows, largest]))


def _initializer(graph: ir.Graph, name: str, content: NDArray[np.generic]) -> ir.Value:
    """A graph's initializer of this name, made if need be."""
    if name not in graph.initializers:
        graph.register_initializer(ir.Value(name=name, const_value=ir.tensor(content, name=name)))
    return graph.initializers[name]
