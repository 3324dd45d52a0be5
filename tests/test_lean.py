"""Graphs of fewer launches give what the voice's own give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from default_voice import default_voice
from onnx import helper
from random_voices import random_voice

from notewave.backends.device.contracts import KEPT_FRAMES, film_row
from notewave.backends.graphs.lean import (
    MASKED,
    NORMS,
    attend_to_kept,
    fold_film,
    merge_heads,
    part_one_frame,
    take_bias,
)
from notewave.backends.graphs.make import gpu_graph
from notewave.backends.graphs.typed import load_graph
from notewave.errors import VoiceError
from notewave.export.networks import port_family
from notewave.sound.mel import FRAMES, MELS
from notewave.voice.folder import Voice

TOLERANCE = 1e-4  # of the largest value
BATCH, TOKENS, CHOSEN = 2, 256, 1  # songs, their tokens, and which of two noise times
# Nodes of a decoder in float16, each of which an engine launches, or two: of a layer, and of what is around layers. The
# port's norms have casts behind them, and before them one of their weights; its products add biases.
LAUNCHED = {"reference": (23, 6), "bundled": (23, 6), "port": (30, 11)}

FRAME_LAUNCHED = (22, 10)  # the same of one that writes a frame, in float32


@pytest.fixture(scope="module", params=LAUNCHED)
def made(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def voice(made: str, reference_voice: Path, tmp_path_factory: pytest.TempPathFactory) -> Voice:
    if made == "port":
        return random_voice(tmp_path_factory.mktemp("voices") / "port", port_family(1e-5))
    reference = Voice.load(reference_voice)
    return reference if made == "reference" else default_voice(reference)


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Voice:
    """A voice that writes frame by frame."""
    return random_voice(tmp_path_factory.mktemp("voices") / "writer", port_family(1e-5), frames=True)


def run(model: onnx.ModelProto | Path, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    graph = str(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"]).run(None, inputs)


def assert_alike(mine: np.ndarray, theirs: np.ndarray) -> None:
    assert mine.shape == theirs.shape
    assert np.abs(mine - theirs).max() < TOLERANCE * np.abs(theirs).max()


def merged(values: np.ndarray) -> np.ndarray:
    """[B, H, J, K] as [B, J, H K]."""
    return values.transpose(0, 2, 1, 3).reshape(*values.shape[::2][:2], -1)


@pytest.fixture(scope="module")
def given(voice: Voice) -> dict[str, np.ndarray]:
    """Inputs of every network, as its present graphs pass them on."""
    random = np.random.default_rng(0)
    tokens = random.integers(1, voice.dimensions.vocabulary, (BATCH, TOKENS), np.int32)
    tokens[0, TOKENS // 2 :] = 0
    mel, x = (random.standard_normal((BATCH, FRAMES, MELS), np.float32) for _ in range(2))
    mask = np.zeros((BATCH, 1, 1, TOKENS + FRAMES), np.float32)
    mask[0, ..., TOKENS // 2 : TOKENS] = np.finfo(np.float32).min
    return {"tokens": tokens, "mel": mel, "x": x, "mask": mask, "time": np.array([0.9, 0.2], np.float32)}


@pytest.mark.parametrize(("network", "taken"), [("note_encoder", "tokens"), ("context_encoder", "mel")])
def test_encoders_give_what_they_gave(network: str, taken: str, voice: Voice, given: dict[str, np.ndarray]) -> None:
    inputs = {taken: given[taken]}
    assert_alike(run(gpu_graph(voice, network, "fp32"), inputs)[0], run(voice.graph(network), inputs)[0])


def test_a_step_gives_what_it_gave_with_notes_and_without(voice: Voice, given: dict[str, np.ndarray]) -> None:
    """From cross-attention and time embedding to the prediction, as a whole; songs attending to zeros have no notes."""
    size = voice.dimensions
    (notes,) = run(voice.graph("note_encoder"), {"tokens": given["tokens"]})
    (context,) = run(voice.graph("context_encoder"), {"mel": given["mel"]})
    keys_values = run(voice.graph("cross_attention"), {"notes": notes, "context": context})
    inputs = {"notes": notes, "context": context, "mask": given["mask"]}
    *lean_keys_values, bias = run(gpu_graph(voice, "cross_attention", "fp32"), inputs)
    for mine, theirs in zip(lean_keys_values, keys_values, strict=True):
        assert_alike(mine, merged(theirs))

    (film,), (rows,) = (run(graph, {"time": given["time"]}) for graph in graphs(voice, "time_embedding"))
    assert np.array_equal(rows[..., size.width :], np.zeros_like(rows[..., size.width :])), "rows are padded"
    names = [f"{kind}_{layer}" for layer in range(size.decoder_layers) for kind in ("keys", "values")]
    taken = {"x": given["x"], "film": film[CHOSEN:]}
    expected = run(
        voice.graph("decoder"), {**taken, "mask": given["mask"], **dict(zip(names, keys_values, strict=True))}
    )
    row = rows[CHOSEN].reshape(-1, rows.shape[-1])[:, : size.width]
    lean = {film_row(index): values for index, values in enumerate(row)} | dict(
        zip(names, lean_keys_values, strict=True)
    )
    decoder = gpu_graph(voice, "decoder", "fp32")
    assert_alike(run(decoder, {"x": given["x"], "bias": bias, **lean})[0], expected[0])

    lean |= {name: np.zeros_like(lean[name]) for name in names}
    without = run(decoder, {"x": given["x"], "bias": np.zeros_like(bias), **lean})
    assert_alike(without[0], run(voice.graph("unconditional_decoder"), taken)[0])


def graphs(voice: Voice, network: str) -> tuple[Path, onnx.ModelProto]:
    return voice.graph(network), gpu_graph(voice, network, "fp32")


def test_a_decoder_launches_little_a_layer(voice: Voice, made: str) -> None:
    nodes = gpu_graph(voice, "decoder", "fp16", narrow_norms=True).graph.node
    layer, around = LAUNCHED[made]
    assert len(nodes) == layer * voice.dimensions.decoder_layers + around
    assert not {node.op_type for node in nodes} & {"Transpose", "Reshape", "Expand", "Gather", "Unsqueeze", "Max"}


def test_a_decoder_of_another_make_is_refused_by_what_is_strange(voice: Voice) -> None:
    def decoder() -> onnx.GraphProto:
        return load_graph(voice, "decoder").graph

    graph = decoder()
    first = next(node for node in graph.node if node.op_type == "Transpose")
    first.ClearField("attribute")
    first.attribute.append(helper.make_attribute("perm", [0, 1, 2, 3]))
    with pytest.raises(VoiceError, match=r"not as notewave exports them: .* heads as is usual\. Export"):
        merge_heads(graph, voice.dimensions.heads)

    graph = decoder()
    given = next(node.output[0] for node in graph.node if node.op_type == "Attention")
    after = next(node for node in graph.node if given in node.input)
    after.ClearField("attribute")
    after.attribute.append(helper.make_attribute("perm", [0, 1, 2, 3]))
    with pytest.raises(VoiceError, match=r"what attention .* gives is not merged over its heads"):
        merge_heads(graph, voice.dimensions.heads)

    graph = decoder()
    for node in graph.node:
        if node.op_type == "Expand":
            node.input[0] = "x"
    with pytest.raises(VoiceError, match=r"not masked by its input of that name"):
        take_bias(graph)

    graph = decoder()
    views = {node.output[0] for node in graph.node if node.op_type == "Unsqueeze"}
    part = next(node for node in graph.node if node.op_type == "Gather" and node.input[0] in views)
    part.ClearField("attribute")
    part.attribute.append(helper.make_attribute("axis", -1))
    with pytest.raises(VoiceError, match=r"takes FiLM in parts that are no rows"):
        fold_film(graph, voice.dimensions)

    graph = decoder()
    norm = next(node for node in graph.node if node.op_type in NORMS)
    norm.op_type = "Relu"
    with pytest.raises(VoiceError, match=r"scales by FiLM what is no norm"):
        fold_film(graph, voice.dimensions)

    graph = decoder()
    shift = next(
        node for node in graph.node if node.op_type == "Add" and any(name.startswith("mul") for name in node.input)
    )
    shift.input[1] = shift.input[0]
    with pytest.raises(VoiceError, match=r"leaves FiLM out of some layers"):
        fold_film(graph, voice.dimensions)


@pytest.mark.parametrize("frame", [0, 1, 100, FRAMES - 1])
def test_a_frame_is_written_as_it_was(frame: int, writer: Voice) -> None:
    """Whatever lies in the cache from the frame on; and of the frames before it, each is seen."""
    random, contract = np.random.default_rng(0), writer.contracts()["decoder"]
    sizes = {"B": BATCH, "J": TOKENS}
    given = {one.name: random.standard_normal(one.shape_at(sizes), np.float32) for one in contract.inputs}
    mask = np.where(given.pop("mask") > 1, np.finfo(np.float32).min, np.float32(0))
    given["frame"] = np.array([frame])
    prediction, *new = run(writer.graph("decoder"), {**given, "mask": mask})
    kept = {
        name: np.ascontiguousarray(values[:, :, :KEPT_FRAMES]) if name.startswith("own_") else values
        for name, values in given.items()
    }
    decoder, bias = gpu_graph(writer, "decoder", "fp32"), np.maximum(mask, np.float32(MASKED))
    mine, *rows = run(decoder, {**kept, "bias": bias})
    assert_alike(mine, prediction)
    for row, theirs in zip(rows, new, strict=True):
        assert_alike(row, merged(theirs))
    for each in kept:
        if each.startswith("own_"):
            kept[each][:, :, frame:] = 9.0
    np.testing.assert_array_equal(run(decoder, {**kept, "bias": bias})[0], mine)
    if frame:
        kept["own_values_0"][:, :, frame - 1] = 9.0
        assert np.abs(run(decoder, {**kept, "bias": bias})[0] - mine).max() > TOLERANCE


def test_a_frame_launches_little_a_layer(writer: Voice) -> None:
    nodes = gpu_graph(writer, "decoder", "fp32").graph.node
    views = sum(node.op_type == "Reshape" for node in nodes)  # which launch nothing
    layer, around = FRAME_LAUNCHED
    assert len(nodes) - views == layer * writer.dimensions.decoder_layers + around
    assert not {node.op_type for node in nodes} & {"Transpose", "Slice", "Softmax", "ReduceSum", "Expand"}


def test_a_frame_decoder_of_another_make_is_refused_by_what_is_strange(writer: Voice) -> None:
    size = writer.dimensions

    def decoder() -> onnx.GraphProto:
        return load_graph(writer, "decoder").graph

    for operator, strange in (
        ("Softmax", r"attend to own_keys_\d as is usual"),
        ("Less", r"the frames before as is usual"),
    ):
        graph = decoder()
        next(node for node in graph.node if node.op_type == operator).op_type = "Relu"
        with pytest.raises(VoiceError, match=strange):
            attend_to_kept(graph, size)

    graph = decoder()
    next(node for node in graph.node if node.op_type == "Reshape").op_type = "Relu"
    with pytest.raises(VoiceError, match=r"not divided over its heads, nor merged"):
        part_one_frame(graph, size)
