"""Mel decoders from elsewhere, as ``notewave export --vocoder`` takes them."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

import notewave
from fuzz_targets import Target
from fuzz_targets.graph import hostile, words
from fuzz_targets.tiny import foreign_vocoder
from notewave.export.graphs.vocoder import adopt_onnx_vocoder


def huge_constant() -> bytes:
    """A vocoder with 2 GiB of zeros that are computed before it is first run."""
    node, vocoder = helper.make_node, onnx.ModelProto.FromString(foreign_vocoder())
    graph = vocoder.graph
    nodes = [node("ConstantOfShape", ["size"], ["zeros"]), node("ReduceSum", ["zeros"], ["nothing"], keepdims=0)]
    graph.initializer.append(numpy_helper.from_array(np.array([1 << 29]), "size"))
    _add(graph, nodes)
    return vocoder.SerializeToString()


def endless_loop() -> bytes:
    """A vocoder that adds zeros 2^62 times."""
    node, vocoder = helper.make_node, onnx.ModelProto.FromString(foreign_vocoder())
    graph = vocoder.graph
    flag, total = helper.make_tensor_value_info("go", TensorProto.BOOL, []), _scalar("total")
    body = [node("Identity", ["go"], ["on"]), node("Add", ["total", "total"], ["sum"])]
    inputs = [helper.make_tensor_value_info("turn", TensorProto.INT64, []), flag, total]
    outputs = [helper.make_tensor_value_info("on", TensorProto.BOOL, []), _scalar("sum")]
    loop = node("Loop", ["turns", "", "zero"], ["nothing"], body=helper.make_graph(body, "body", inputs, outputs))
    graph.initializer.append(numpy_helper.from_array(np.array(1 << 62), "turns"))
    graph.initializer.append(numpy_helper.from_array(np.float32(0), "zero"))
    _add(graph, [loop])
    return vocoder.SerializeToString()


def _scalar(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [])


def _add(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    """Let a vocoder's signal hang on what these nodes make of nothing."""
    last = graph.node[-1].output
    graph.node.extend([*nodes, helper.make_node("Add", [last[0], "nothing"], ["whole"])])
    graph.output[0].name = "whole"


class Fuzzed(Target):
    """ONNX files."""

    expected = notewave.VoiceError
    words = words()

    def corpus(self) -> list[bytes]:
        onnxruntime.set_default_logger_severity(4)
        return [foreign_vocoder(), huge_constant(), endless_loop(), *hostile(), *super().corpus()]

    def run(self, content: bytes) -> Hashable:
        source = self.scratch / "foreign.onnx"
        source.write_bytes(content)
        return adopt_onnx_vocoder(source, self.scratch / "adopted.onnx")
