"""A graph's nodes by what they give and take: what a rewrite finds its way by."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper


class Nodes:
    """An index of a graph that is being rewritten; nodes that nothing uses any more go with ``drop_unused``."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.weights = {tensor.name: tensor for tensor in graph.initializer}
        self._givers = {name: node for node in graph.node for name in node.output}
        self._takers: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in graph.node:
            for name in set(node.input):
                self._takers[name].append(node)

    def giver(self, value: str, operator: str | None = None) -> onnx.NodeProto | None:
        """The node that gives a value, if it is of that operator."""
        node = self._givers.get(value)
        return node if node is not None and operator in (None, node.op_type) else None

    def takers(self, value: str) -> list[onnx.NodeProto]:
        """The nodes that take a value."""
        return self._takers[value]

    def only_taker(self, value: str, operator: str) -> onnx.NodeProto | None:
        """The node that takes a value, if there is just one and it is of that operator."""
        takers = self._takers[value]
        return takers[0] if len(takers) == 1 and takers[0].op_type == operator else None

    def constant(self, name: str) -> NDArray[Any] | None:
        """A weight's value, or None for what is none."""
        return numpy_helper.to_array(self.weights[name]) if name in self.weights else None

    def add_weight(self, name: str, value: NDArray[Any]) -> None:
        """Add a weight."""
        self.weights[name] = numpy_helper.from_array(value, name)
        self.graph.initializer.append(self.weights[name])

    def add(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> None:
        """Add a node behind all others, named as what it gives."""
        self.graph.node.append(helper.make_node(operator, inputs, [output], output, **attributes))
