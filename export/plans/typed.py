"""Strongly typed graphs: a voice's float32 networks with their matrix products in float16 or bfloat16.

TensorRT 11 and TensorRT-RTX compute what the graph says. Matrix products and attention take and give the low precision
(tensor cores and fused attention accumulate in float32 all the same); the residual stream, norms, FiLM and gates stay
in float32, because T5's residuals leave float16's range. Keys and values of the cross-attention pass from graph to
graph in the low precision, and so does the prediction to the sampler's kernel; all else is as the contracts say.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from notewave.errors import VoiceError

FLOAT = TensorProto.FLOAT
LOW = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}  # by precision; "fp32" leaves a graph as it is
PRODUCTS = ("MatMul", "Gemm", "Conv", "ConvTranspose", "Attention")  # computed in the low precision
MOVES = ("Reshape", "Transpose", "Split", "Concat", "Slice", "Gather", "Unsqueeze", "Squeeze", "Expand", "Identity")
MASKED = -3e4  # attention bias of a masked key: finite in every precision, its exponential zero
INTEGER_OPERATORS = ("DynamicQuantizeLinear", "MatMulInteger", "QuantizeLinear", "DequantizeLinear", "MatMulNBits")

_LOW_VALUES = re.compile(r"(keys|values)_\d+|prediction")
_NUMPY: dict[int, Any] = {TensorProto.FLOAT16: np.float16, TensorProto.BFLOAT16: ml_dtypes.bfloat16}


def typed_graph(path: Path, precision: str) -> onnx.ModelProto:
    """Graph of a network with its weights inside, at a precision: "fp32", "fp16" or "bf16".

    Raises VoiceError for a graph that holds integer weights.
    """
    model = onnx.load(path)
    refused = sorted({node.op_type for node in model.graph.node} & set(INTEGER_OPERATORS))
    if refused:
        raise VoiceError(
            f"{path} holds 8-bit weights ({', '.join(refused)}), which GPU plans are not made of. "
            "Export the voice with --precision fp32 or fp16."
        )
    _unpack_weights(model.graph)
    if precision in LOW:
        _Typing(model.graph, LOW[precision]).apply()
    return model


def _unpack_weights(graph: onnx.GraphProto) -> None:
    """Turn weights stored in float16 behind a Cast into float32 weights."""
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for node in [node for node in graph.node if node.op_type == "Cast" and node.input[0] in stored]:
        target = helper.tensor_dtype_to_np_dtype(helper.get_node_attr_value(node, "to"))
        value = numpy_helper.to_array(stored[node.input[0]]).astype(target)
        graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
        graph.node.remove(node)
    _drop_unused(graph)


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)


class _Typing:
    """One pass over a graph in its order, casting each input to what its operator computes in."""

    def __init__(self, graph: onnx.GraphProto, low: int) -> None:
        self.graph, self.low = graph, low
        self.weights = {tensor.name: tensor for tensor in graph.initializer}
        for value in (*graph.input, *graph.output):
            if _LOW_VALUES.fullmatch(value.name):
                value.type.tensor_type.elem_type = low
        self.types = {tensor.name: tensor.data_type for tensor in graph.initializer}
        self.types |= {value.name: value.type.tensor_type.elem_type for value in graph.input}
        self.nodes: list[onnx.NodeProto] = []

    def apply(self) -> None:
        """Rewrite the graph in place."""
        for node in self.graph.node:
            self._type(node)
        for value in self.graph.output:
            self._finish(value.name, value.type.tensor_type.elem_type)
        del self.graph.node[:], self.graph.value_info[:]
        self.graph.node.extend(self.nodes)
        _drop_unused(self.graph)

    def _type(self, node: onnx.NodeProto) -> None:
        """Cast a node's floating-point inputs to the type it runs in, and note the type of what it gives."""
        floats = [i for i, name in enumerate(node.input) if self.types.get(name) in (FLOAT, self.low)]
        low = node.op_type in PRODUCTS
        if node.op_type in MOVES:
            low = bool(floats) and all(self.types[node.input[i]] == self.low for i in floats)
        if node.op_type == "Attention" and len(node.input) > 3:
            node.input[3] = self._bounded(node.input[3])
        for i in floats:
            node.input[i] = self._as(node.input[i], self.low if low else FLOAT)
        self.nodes.append(node)
        if floats:
            self.types |= dict.fromkeys(node.output, self.low if low else FLOAT)

    def _as(self, name: str, target: int) -> str:
        """Name of a value in a type, cast at most once."""
        if self.types[name] == target:
            return name
        cast = f"{name}_{TensorProto.DataType.Name(target).lower()}"
        if cast not in self.types:
            self.types[cast] = target
            if name in self.weights:
                weight = numpy_helper.to_array(self.weights[name]).astype(_NUMPY[target])
                self._add_weight(numpy_helper.from_array(weight, cast))
            else:
                self.nodes.append(helper.make_node("Cast", [name], [cast], cast, to=target))
        return cast

    def _bounded(self, mask: str) -> str:
        """An attention bias whose lowest value the low precision can hold."""
        bounded = f"{mask}_bounded"
        if bounded not in self.types:
            if "masked" not in self.weights:
                self._add_weight(numpy_helper.from_array(np.float32(MASKED), "masked"))
            self.nodes.append(helper.make_node("Max", [mask, "masked"], [bounded], bounded))
            self.types[bounded] = FLOAT
        return bounded

    def _add_weight(self, tensor: onnx.TensorProto) -> None:
        self.weights[tensor.name] = tensor
        self.graph.initializer.append(tensor)

    def _finish(self, output: str, promised: int) -> None:
        """Give an output in the type the graph promises."""
        if self.types[output] == promised:
            return
        inner = f"{output}_uncast"
        for node in self.nodes:
            node.output[:] = [inner if name == output else name for name in node.output]
            node.input[:] = [inner if name == output else name for name in node.input]
        self.nodes.append(helper.make_node("Cast", [inner], [output], f"{output}_cast", to=promised))
