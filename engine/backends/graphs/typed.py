"""Strongly typed graphs: a voice's float32 networks with their matrix products in float16 or bfloat16.

TensorRT 11 and TensorRT-RTX compute what the graph says. Matrix products and attention take and give the low precision
(tensor cores and fused attention accumulate in float32 all the same), and so does what lies between one product and the
next, or between a norm and a product: biases, gates, and what FiLM adds. The residual stream and norms stay in float32,
because T5's residuals leave float16's range. What a graph takes and gives stays as it is declared.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from notewave.backends.device.contracts import FILM, PRECISIONS
from notewave.backends.graphs.lean import MASKED, drop_unused
from notewave.backends.graphs.nodes import Nodes
from notewave.errors import VoiceError
from notewave.voice.folder import Voice

ELEMENTS = {  # ONNX's data type, by its name in contracts
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
}
FLOAT = TensorProto.FLOAT
PRODUCTS = ("MatMul", "Gemm", "Conv", "ConvTranspose", "Attention")  # computed in the low precision
MOVES = ("Reshape", "Transpose", "Split", "Concat", "Slice", "Gather", "Unsqueeze", "Squeeze", "Expand", "Identity")
NARROWING_NORM = "SimplifiedLayerNormalization"  # ONNX Runtime's; its RMSNormalization gives what it reads
INTEGER_OPERATORS = ("DynamicQuantizeLinear", "MatMulInteger", "QuantizeLinear", "DequantizeLinear", "MatMulNBits")


def whole_model(voice: Voice, network: str) -> onnx.ModelProto:
    """Graph of a network as the voice has it, all weights inside."""
    model = onnx.load_model_from_string(voice.model(network))
    contents = {weight.name: content for weight, content in voice.weights(network)}
    for tensor in model.graph.initializer:
        if tensor.name in contents:
            del tensor.external_data[:]
            tensor.data_location, tensor.raw_data = TensorProto.DEFAULT, contents.pop(tensor.name)
    return model


def load_graph(voice: Voice, network: str) -> onnx.ModelProto:
    """Graph of a network in float32, its weights inside. Raises VoiceError for one that holds integer weights."""
    model = whole_model(voice, network)
    refused = sorted({node.op_type for node in model.graph.node} & set(INTEGER_OPERATORS))
    if refused:
        raise VoiceError(
            f"{voice.graph(network)} holds 8-bit weights ({', '.join(refused)}), which GPU plans are not made of. "
            "Export the voice with --precision fp32 or fp16."
        )
    _unpack_weights(model.graph)
    return model


def type_graph(graph: onnx.GraphProto, precision: str, narrow_norms: bool) -> None:
    """Give a graph a precision: "fp32", as it is, "fp16" or "bf16".

    narrow_norms: whether norms are to read float32 and give the low precision without a cast, by an operator of ONNX
    Runtime's own.
    """
    if (kind := ELEMENTS[PRECISIONS[precision]]) != FLOAT:
        _Typing(graph, kind, narrow_norms).apply()


def _unpack_weights(graph: onnx.GraphProto) -> None:
    """Turn weights stored in float16 behind a Cast into float32 weights."""
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for node in [node for node in graph.node if node.op_type == "Cast" and node.input[0] in stored]:
        target = helper.tensor_dtype_to_np_dtype(helper.get_node_attr_value(node, "to"))
        value = numpy_helper.to_array(stored[node.input[0]]).astype(target)
        graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
        graph.node.remove(node)
    drop_unused(graph)


class _Typing:
    """One pass over a graph in its order, casting each input to what its operator computes in."""

    def __init__(self, graph: onnx.GraphProto, low: int, narrow_norms: bool) -> None:
        self.graph, self.low, self.narrow_norms = graph, low, narrow_norms
        self.film = {value.name for value in graph.input if value.name.startswith(FILM)}
        self.index = Nodes(graph)
        self.types = {tensor.name: tensor.data_type for tensor in graph.initializer}
        self.types |= {value.name: value.type.tensor_type.elem_type for value in graph.input}
        self.nodes: list[onnx.NodeProto] = []
        self.gates: set[str] = set()  # what goes through a Gelu

    def apply(self) -> None:
        """Rewrite the graph in place."""
        for node in self.graph.node:
            self._type(node)
        for value in self.graph.output:
            self._finish(value.name, value.type.tensor_type.elem_type)
        del self.graph.node[:], self.graph.value_info[:]
        self.graph.node.extend(self.nodes)
        drop_unused(self.graph)

    def _type(self, node: onnx.NodeProto) -> None:
        """Cast a node's floating-point inputs to the type it runs in, and note the type of what it gives."""
        floats = [i for i, name in enumerate(node.input) if self.types.get(name) in (FLOAT, self.low)]
        given = [node.input[i] for i in floats]
        if node.op_type == "Attention" and len(node.input) > 3 and self.types[node.input[3]] == FLOAT:
            node.input[3] = self._bounded(node.input[3])
        narrow = self.narrow_norms and node.op_type == "RMSNormalization" and self._feeds_products(node.output[0])
        low = node.op_type in PRODUCTS or narrow or self._stays_low(node, given)
        for i in floats:
            wide = not low or (narrow and i == 0)
            node.input[i] = self._as(node.input[i], FLOAT if wide else self.low)
        if narrow:
            node.op_type = NARROWING_NORM
        self.nodes.append(node)
        if floats:
            self.types |= dict.fromkeys(node.output, self.low if low else FLOAT)
        if node.op_type == "Gelu":
            self.gates.update(node.output)

    def _stays_low(self, node: onnx.NodeProto, given: list[str]) -> bool:
        """Whether it is computed in the low precision, as what it takes is: moves, gates, biases, FiLM's shifts."""
        low = [name for name in given if self.types[name] == self.low]
        if node.op_type in MOVES or node.op_type == "Gelu":
            return bool(given) and len(low) == len(given)
        if node.op_type == "Mul":  # a gate; others scale what is in float32, or by weights
            return len(low) == 2 and any(name in self.gates for name in given)
        return node.op_type == "Add" and (any(name in self.film for name in given) or self._adds_bias(node))

    def _adds_bias(self, node: onnx.NodeProto) -> bool:
        """Whether it adds a weight [n] to a product for other products, or for gates before them."""
        added = [name for name in node.input if name in self.index.weights and len(self.index.weights[name].dims) == 1]
        products = [giver for name in node.input if (giver := self.index.giver(name)) and giver.op_type in PRODUCTS]
        takers = self.index.takers(node.output[0])
        going_on = (*PRODUCTS, *MOVES, "Gelu")
        return bool(added and products and takers) and all(taker.op_type in going_on for taker in takers)

    def _feeds_products(self, value: str) -> bool:
        """Whether nothing but products takes a value, also with FiLM's shift added."""
        takers = self.index.takers(value)
        return bool(takers) and all(
            node.op_type in PRODUCTS or any(name in self.film for name in node.input) for node in takers
        )

    def _as(self, name: str, target: int) -> str:
        """Name of a value in a type, cast at most once."""
        if self.types[name] == target:
            return name
        cast = f"{name}_{TensorProto.DataType.Name(target).lower()}"
        if cast not in self.types:
            self.types[cast] = target
            if (weight := self.index.constant(name)) is not None:
                self.index.add_weight(cast, weight.astype(helper.tensor_dtype_to_np_dtype(target)))
            else:
                self.nodes.append(helper.make_node("Cast", [name], [cast], cast, to=target))
        return cast

    def _bounded(self, mask: str) -> str:
        """An attention bias whose lowest value the low precision can hold."""
        bounded = f"{mask}_bounded"
        if bounded not in self.types:
            if "masked" not in self.index.weights:
                self.index.add_weight("masked", np.array(MASKED, np.float32))
            self.nodes.append(helper.make_node("Max", [mask, "masked"], [bounded], bounded))
            self.types[bounded] = FLOAT
        return bounded

    def _finish(self, output: str, promised: int) -> None:
        """Give an output in the type the graph promises."""
        if self.types[output] == promised:
            return
        inner = f"{output}_uncast"
        for node in self.nodes:
            node.output[:] = [inner if name == output else name for name in node.output]
            node.input[:] = [inner if name == output else name for name in node.input]
        self.nodes.append(helper.make_node("Cast", [inner], [output], f"{output}_cast", to=promised))
