"""Graphs of fewer launches, in float32: what a voice's networks compute, as a GPU runs it best.

- Attention takes and gives [B, T, H K] as products give and take it, without transposes; so do keys and values.
- FiLM's scale is folded into the weight of the norm before it, once a schedule, by the time embedding: w (1 + scale).
- Segments are whole.
- The bias that masks keys is made once a segment, by the cross-attention.
- A frame that is written by itself attends to those before it by the same operator as to the notes.

Letters as in ``notewave.voice.contracts``. Each function rewires a graph in place; what it then takes and gives is
declared by ``contracts``. All raise VoiceError for a graph that is not as notewave exports it.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper
from onnx.reference import ReferenceEvaluator

from notewave.backends.device.contracts import KEPT_FRAMES, film_row
from notewave.backends.device.shapes import film_stride
from notewave.backends.graphs.nodes import Nodes
from notewave.errors import VoiceError
from notewave.sound.mel import FRAMES
from notewave.voice.contracts import Dimensions

FLOAT = onnx.TensorProto.FLOAT
TO_HEADS = [0, 2, 1, 3]  # [B, T, H, K] to [B, H, T, K], and back
NORMS = ("RMSNormalization", "LayerNormalization")
MASKED = -3e4  # attention bias of a masked key: finite in every precision, its exponential zero
VIEWS = ("Gather", "Slice", "Squeeze", "Unsqueeze", "Reshape", "Split", "Identity")


def merge_heads(graph: onnx.GraphProto, heads: int) -> None:
    """Let attention take and give [B, T, H K]; so are then keys and values that are the graph's inputs."""
    nodes = Nodes(graph)
    inputs = {value.name for value in graph.input}
    for node in [node for node in graph.node if node.op_type == "Attention"]:
        node.input[:3] = [name if name in inputs else _merged_before(nodes, name) for name in node.input[:3]]
        transpose = nodes.only_taker(node.output[0], "Transpose")
        reshape = transpose and nodes.only_taker(transpose.output[0], "Reshape")
        if transpose is None or reshape is None or _permutation(transpose) != TO_HEADS:
            raise _strange(f"what attention {node.name} gives is not merged over its heads")
        node.output[0] = reshape.output[0]
        graph.node.remove(reshape)
        node.attribute.extend(helper.make_attribute(f"{kind}_num_heads", heads) for kind in ("q", "kv"))


def take_whole(decoder: onnx.GraphProto) -> None:
    """Let the decoder take whole segments only, where it would take their first frames alone: all its positions."""
    nodes = Nodes(decoder)
    for node in [node for node in decoder.node if node.op_type == "Slice"]:
        weight, end = nodes.constant(node.input[0]), nodes.giver(node.input[2], "Shape")
        if weight is not None and len(weight) == FRAMES and end is not None and end.input[0] == "x":
            decoder.node.remove(node)
            _rename(nodes, node.output[0], node.input[0])


def merge_keys_values(cross_attention: onnx.GraphProto) -> None:
    """Let the cross-attention give keys and values [B, J, H K]."""
    nodes = Nodes(cross_attention)
    for value in cross_attention.output:
        merged = _merged_before(nodes, value.name)
        cross_attention.node.remove(nodes.giver(value.name))
        _rename(nodes, merged, value.name)


def take_bias(decoder: onnx.GraphProto) -> None:
    """Let the decoder take, in the place of ``mask`` [B, 1, 1, J], the ``bias`` [B, 1, T, J] of its attention."""
    nodes = Nodes(decoder)
    for node in decoder.node:
        if node.op_type == "Attention" and len(node.input) > 3:
            expand = nodes.giver(node.input[3], "Expand")
            if node.input[3] != "mask" and (expand is None or expand.input[0] != "mask"):
                raise _strange("its decoder's attention is not masked by its input of that name")
            node.input[3] = "bias"


def give_bias(cross_attention: onnx.GraphProto, frames: int) -> None:
    """Let the cross-attention make the decoder's ``bias`` of a ``mask``, for so many frames decoded at once."""
    nodes = Nodes(cross_attention)
    nodes.add_weight("bias_shape", np.array([1, 1, frames, 1], np.int64))
    nodes.add_weight("masked", np.array(MASKED, np.float32))
    nodes.add("Max", ["mask", "masked"], "bounded")
    nodes.add("Expand", ["bounded", "bias_shape"], "bias")


def fold_film(decoder: onnx.GraphProto, size: Dimensions) -> NDArray[np.float32]:
    """Let norms take their weights, and what is added to them, from inputs [D]: the rows of FiLM.

    Returns the norms' own weights and biases, [L, 2, 2, D], for ``fold_norms``.
    """
    nodes, rows = Nodes(decoder), _film_rows(decoder, size)
    own = np.zeros((4 * size.decoder_layers, size.width), np.float32)
    used = set()
    for name, row in rows.items():
        for node in nodes.takers(name):
            if row % 2:  # a shift, added to what the scale multiplied
                node.input[:] = [film_row(row) if given == name else given for given in node.input]
                used.add(row)
                continue
            multiply = nodes.only_taker(node.output[0], "Mul") if node.op_type == "Add" else None
            others = [given for given in multiply.input if given != node.output[0]] if multiply else []
            norm = nodes.giver(others[0]) if others and len(nodes.takers(others[0])) == 1 else None
            norm = norm if norm is not None and norm.op_type in NORMS else None
            weight = nodes.constant(norm.input[1]) if norm else None
            one = [nodes.constant(given) for given in node.input if given != name]
            if multiply is None or norm is None or weight is None or one[0] is None or np.any(one[0] != 1):
                raise _strange("its decoder scales by FiLM what is no norm")
            own[row] = weight
            if len(norm.input) > 2:
                bias = nodes.constant(norm.input.pop())
                if bias is None:
                    raise _strange("its decoder has a norm whose bias is no weight")
                own[row + 1] = bias
            norm.input[1] = film_row(row)
            _rename(nodes, multiply.output[0], norm.output[0])
            decoder.node.remove(multiply)
            used.add(row)
    if used != set(range(4 * size.decoder_layers)):
        raise _strange("its decoder leaves FiLM out of some layers")
    return own.reshape(size.decoder_layers, 2, 2, size.width)


def fold_norms(time_embedding: onnx.GraphProto, own: NDArray[np.float32]) -> None:
    """Let the time embedding give norms' weights w (1 + scale), and shifts, as rows of FiLM at ``film_stride``.

    own: the norms' weights and biases as ``fold_film`` returned them; a bias b adds b (1 + scale) to its shift.
    """
    nodes, width = Nodes(time_embedding), own.shape[-1]
    _rename(nodes, "film", "scales")
    weights, biases = own[:, :, 0], own[:, :, 1]
    for name, other in (("factor", 1), ("term", 0)):  # of shifts, which stay as they are
        nodes.add_weight(name, np.stack([weights, np.full_like(weights, other)], 2))
    nodes.add_weight("padding", np.array([0] * 9 + [film_stride(width) - width], np.int64))
    nodes.add("Mul", ["scales", "factor"], "scaled")
    nodes.add("Add", ["scaled", "term"], "folded")
    folded = "folded"
    if biases.any():
        nodes.add_weight("scale_of_two", np.array([0, 0], np.int64))  # whose place a shift's has, too
        nodes.add_weight("biases", np.stack([np.zeros_like(biases), biases], 2))
        nodes.add("Gather", ["scales", "scale_of_two"], "scales_twice", axis=3)
        nodes.add("Mul", ["scales_twice", "biases"], "scaled_biases")
        nodes.add("Add", ["scaled_biases", "biases"], "shifts")
        nodes.add("Add", ["folded", "shifts"], folded := "shifted")
    nodes.add("Pad", [folded, "padding"], "film")


def attend_to_kept(decoder: onnx.GraphProto, size: Dimensions) -> None:
    """Let an autoregressive decoder attend to its own frames by Attention, the new one behind those kept.

    Of the frames kept [B, H, T - 1, K], those from ``frame`` on are masked.
    """
    nodes = Nodes(decoder)
    before = np.array([*range(KEPT_FRAMES), -1], np.int64)  # what is less than ``frame`` is seen; the last is itself
    nodes.add_weight("before", before.reshape(1, 1, 1, -1))
    nodes.add_weight("seen", np.array(0.0, np.float32))
    nodes.add_weight("masked", np.array(MASKED, np.float32))
    order = [
        helper.make_node("Less", ["before", "frame"], ["is_seen"], "is_seen"),
        helper.make_node("Where", ["is_seen", "seen", "masked"], ["own_bias"], "own_bias"),
    ]
    attentions = {}  # of layers, by what gives them in their old form
    for layer in range(size.decoder_layers):
        queries, mixed = _own_attention(nodes, layer)
        names = [f"all_{kind}_{layer}" for kind in ("keys", "values")]
        pairs = [(f"own_{kind}_{layer}", f"new_{kind}_{layer}") for kind in ("keys", "values")]
        attentions[mixed] = [
            *(helper.make_node("Concat", pair, [name], name, axis=2) for pair, name in zip(pairs, names, strict=True)),
            helper.make_node("Attention", [queries, *names, "own_bias"], [mixed], mixed, scale=1.0),
        ]
    for node in decoder.node:
        order += attentions.get(node.output[0], [node])
    del decoder.node[:]
    decoder.node.extend(order)


def part_one_frame(decoder: onnx.GraphProto, size: Dimensions) -> None:
    """Let an autoregressive decoder tell heads apart without transposes: one frame's lie alike either way."""
    nodes, outputs = Nodes(decoder), {value.name for value in decoder.output}
    nodes.add_weight("heads_of_one", np.array([0, size.heads, 1, size.head_width], np.int64))
    for node in [node for node in decoder.node if node.op_type == "Transpose" and _permutation(node) == TO_HEADS]:
        if reshape := nodes.giver(node.input[0], "Reshape"):
            merged, name = reshape.input[0], node.output[0]
            node.CopyFrom(helper.make_node("Reshape", [merged, "heads_of_one"], node.output, node.name))
            if name in outputs:  # which is given as the product gives it
                _rename(nodes, name, f"{name}_in_heads")
                _rename(nodes, merged, name)
        elif merge := nodes.only_taker(node.output[0], "Reshape"):
            merge.input[0] = node.input[0]
        else:
            raise _strange(f"{node.output[0]} is not divided over its heads, nor merged, as is usual")


def drop_unused(graph: onnx.GraphProto) -> None:
    """Leave out what no output needs."""
    needed, kept = {value.name for value in graph.output}, []
    for node in reversed(graph.node):
        if needed & set(node.output):
            needed |= set(node.input)
            kept.append(node)
    weights = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(reversed(kept))
    graph.initializer.extend(weights)


def _film_rows(decoder: onnx.GraphProto, size: Dimensions) -> dict[str, int]:
    """Which row of FiLM [4 L, D] each value is that is one, by name: found by taking views of a table of numbers."""
    weights = {tensor.name for tensor in decoder.initializer}
    views, nodes = {"film"}, []
    for node in decoder.node:
        if node.op_type in VIEWS and node.input[0] in views and set(node.input[1:]) <= weights:
            views |= set(node.output)
            nodes.append(node)
    ends = [name for node in decoder.node if node not in nodes for name in node.input if name in views]
    shape = (1, size.decoder_layers, 2, 2, size.width)
    view = helper.make_graph(
        nodes,
        "views",
        [helper.make_tensor_value_info("film", FLOAT, shape)],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in dict.fromkeys(ends)],
        [tensor for tensor in decoder.initializer if any(tensor.name in node.input for node in nodes)],
    )
    table = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    given = ReferenceEvaluator(helper.make_model(view, opset_imports=[helper.make_opsetid("", 23)])).run(
        None, {"film": table}
    )
    rows = {}
    for name, value in zip(dict.fromkeys(ends), given, strict=True):
        row = int(value.flat[0]) // size.width
        if not np.array_equal(value.ravel(), table.reshape(-1, size.width)[row]):
            raise _strange("its decoder takes FiLM in parts that are no rows")
        rows[name] = row
    return rows


def _own_attention(nodes: Nodes, layer: int) -> tuple[str, str]:
    """The queries of a layer's attention to its own frames, and what that comes to, both [B, H, 1, K]."""
    path, value = [], f"own_keys_{layer}"
    for operator in ("Transpose", "MatMul", "Add", "Concat", "Softmax"):
        if (node := nodes.only_taker(value, operator)) is None:
            raise _strange(f"its decoder does not attend to own_keys_{layer} as is usual")
        path.append(node)
        value = node.output[0]
    products, past = path[1], [nodes.giver(name, "Where") for name in path[2].input]
    weighed = nodes.only_taker(f"own_values_{layer}", "MatMul")
    mixed = weighed and nodes.only_taker(weighed.output[0], "Add")
    compared = [nodes.giver(where.input[0], "Less") for where in past if where]
    if mixed is None or not any(less and "frame" in less.input for less in compared):
        raise _strange(f"its decoder's layer {layer} does not attend to the frames before as is usual")
    return products.input[0], mixed.output[0]


def _merged_before(nodes: Nodes, name: str) -> str:
    """The value [B, T, H K] that was reshaped and transposed to this one [B, H, T, K]."""
    transpose = nodes.giver(name, "Transpose")
    reshape = transpose and nodes.giver(transpose.input[0], "Reshape")
    if transpose is None or reshape is None or _permutation(transpose) != TO_HEADS:
        raise _strange(f"{name} is not divided over its heads as is usual")
    return reshape.input[0]


def _permutation(transpose: onnx.NodeProto) -> list[int]:
    return list(helper.get_node_attr_value(transpose, "perm"))


def _rename(nodes: Nodes, old: str, new: str) -> None:
    """Give a value another name, wherever it is given or taken."""
    for node in nodes.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]


def _strange(what: str) -> VoiceError:
    return VoiceError(f"the voice's graphs are not as notewave exports them: {what}. Export the voice again.")
