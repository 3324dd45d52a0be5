"""Smaller weights for a graph, in standard operators: float16 storage, or int8 matrix products.

float16 weights are cast up when a runtime loads the graph, so that the arithmetic stays float32. In int8 the
activations are quantised too, each row by its own largest value: finer than one scale for all, as fast, and no song of
a batch depends on its neighbours.
"""

from __future__ import annotations

from collections.abc import Collection

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
    products = [node for node in graph if _is_hidden_product(node)]
    store_half(graph, keep=[_operands(node)[1] for node in products])
    for node in products:
        _quantise(graph, node)


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


def _quantise(graph: ir.Graph, node: ir.Node) -> None:
    """Replace x W by (x / r -> uint8) (W / c -> int8) r c, for scales r of the rows of x and c of the columns of W."""
    x, weight = _operands(node)
    matrix = weight_of(weight)  # [in, out]
    columns = np.maximum(np.abs(matrix).max(axis=0), _SMALLEST) / _STEPS
    whole = _initializer(graph, f"{weight.name}.int8", np.rint(matrix / columns).astype(np.int8))
    scale = _initializer(graph, f"{weight.name}.scale", (columns / _STEPS).astype(np.float32))
    step = _initializer(graph, "activation_step", np.array(1 / _STEPS, np.float32))
    zero = _initializer(graph, "activation_zero", np.array(_ZERO, np.uint8))
    smallest = _initializer(graph, "activation_smallest", np.array(_SMALLEST, np.float32))
    last = _initializer(graph, "last_axis", np.array([-1], np.int64))
    tape = Tape()
    largest = tape.op("ReduceMax", [tape.op("Abs", [x]), last], {"keepdims": 1})
    rows = tape.op("Max", [largest, smallest])
    activations = tape.op("QuantizeLinear", [tape.op("Div", [x, rows]), step, zero])
    product = tape.op("MatMulInteger", [activations, whole, zero])
    unscaled = tape.op("Cast", [product], {"to": ir.DataType.FLOAT})
    result = tape.op("Mul", [tape.op("Mul", [unscaled, scale]), rows])
    graph.insert_before(node, tape.nodes)
    ir.convenience.replace_all_uses_with(node.outputs[0], result)
    graph.remove(node, safe=True)
    if not weight.uses():
        del graph.initializers[str(weight.name)]


def _initializer(graph: ir.Graph, name: str, content: NDArray[np.generic]) -> ir.Value:
    """A graph's initializer of this name, made if need be."""
    if name not in graph.initializers:
        graph.register_initializer(ir.Value(name=name, const_value=ir.tensor(content, name=name)))
    return graph.initializers[name]
