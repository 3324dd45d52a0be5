"""Typed graphs for ONNX Runtime's CPU provider, which has few operators in low precision."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from notewave.backends.graphs.typed import NARROWING_NORM

LOW = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def runnable_on_cpu(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same arithmetic: products compute in float32 between roundings of what they take and give."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _widen_norms(copy.graph)
    copy = onnx.shape_inference.infer_shapes(copy)
    graph = copy.graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        before, after = [], []
        low_inputs = [i for i, name in enumerate(node.input) if types.get(name) in LOW and node.op_type != "Cast"]
        low_outputs = [i for i, name in enumerate(node.output) if types.get(name) in LOW and node.op_type != "Cast"]
        for i in low_inputs:
            widened = f"{node.output[0]}_input_{i}"
            before.append(helper.make_node("Cast", [node.input[i]], [widened], to=TensorProto.FLOAT))
            node.input[i] = before[-1].output[0]
        for i in low_outputs:
            name, node.output[i] = node.output[i], f"{node.output[i]}_unrounded"
            after.append(helper.make_node("Cast", [node.output[i]], [name], to=types[name]))
        nodes += [*before, node, *after]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    return copy


def _widen_norms(graph: onnx.GraphProto) -> None:
    """Norms that read float32 and give a low precision, as norms of float32 and a cast: ONNX has no others."""
    types = {value.name: value.type.tensor_type.elem_type for value in graph.input}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        nodes.append(node)
        if node.op_type == NARROWING_NORM:
            weight, output = node.input[1], node.output[0]
            node.op_type, node.input[1], node.output[0] = "RMSNormalization", f"{output}_weight", f"{output}_wide"
            nodes.insert(-1, helper.make_node("Cast", [weight], [node.input[1]], to=TensorProto.FLOAT))
            nodes.append(helper.make_node("Cast", [node.output[0]], [output], to=types[weight]))
    del graph.node[:]
    graph.node.extend(nodes)
