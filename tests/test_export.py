"""Exported graphs: equal to diffusers on the reference, exactly by contract, for any size, at every precision."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from notewave.errors import OutputError, VoiceError
from notewave.export.checkpoints.diffusers import load_diffusers
from notewave.export.checkpoints.seeded import random_checkpoint
from notewave.export.convert import export_checkpoint, export_voice
from notewave.export.graphs.precision import store_half, store_int8
from notewave.export.graphs.translate import WeightFile, export_graph, relative_error
from notewave.export.networks import TimeEmbedding
from notewave.sampling.options import Sampling
from notewave.sampling.schedule import NoiseSchedule
from notewave.sound.mel import MELS
from notewave.synthesizer import Synthesizer
from notewave.voice.contracts import NETWORKS, Dimensions, contracts
from notewave.voice.folder import Voice

REFERENCE = Path(__file__).parent / "data" / "reference"
RECORDED = np.load(REFERENCE / "reference.npz")
TRANSFORMERS = [network for network in NETWORKS if network != "vocoder"]
RNG = np.random.default_rng(0)


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def noise(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, dtype=np.float32)


class Graphs:
    """Runs a voice's graphs in ONNX Runtime."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sessions: dict[str, onnxruntime.InferenceSession] = {}

    def session(self, network: str) -> onnxruntime.InferenceSession:
        if network not in self.sessions:
            self.sessions[network] = onnxruntime.InferenceSession(self.folder / f"{network}.onnx")
        return self.sessions[network]

    def __call__(self, network: str, *inputs: np.ndarray) -> list[np.ndarray]:
        session = self.session(network)
        names = [value.name for value in session.get_inputs()]
        return session.run(None, dict(zip(names, inputs, strict=True)))

    def decode(self, x: np.ndarray, time: float, notes: np.ndarray, context: np.ndarray) -> np.ndarray:
        keys_values = self("cross_attention", notes, context)
        (film,) = self("time_embedding", np.array([time], np.float32))
        mask = np.zeros((len(x), 1, 1, keys_values[0].shape[2]), np.float32)
        return self("decoder", x, film, mask, *keys_values)[0]


@pytest.fixture(scope="module")
def graphs(reference_voice: Path) -> Graphs:
    return Graphs(reference_voice)


def test_encodings_and_decoder_calls_equal_diffusers(graphs: Graphs) -> None:
    tokens = RECORDED["tokens"][:1, : RECORDED["notes_encoding"].shape[1]]
    (notes,) = graphs("note_encoder", tokens)
    (context,) = graphs("context_encoder", RECORDED["context_in"])
    assert relative(notes, RECORDED["notes_encoding"]) < 1e-5
    assert relative(context, RECORDED["context_encoding"]) < 1e-5
    assert relative(graphs.decode(RECORDED["x"], 0.42, notes, context), RECORDED["eps_t042"]) < 1e-5
    found = graphs.decode(RECORDED["x"], 0.97, notes, context[:, :0])
    assert relative(found, RECORDED["eps_t097_no_context"]) < 1e-5


@pytest.mark.parametrize("network", TRANSFORMERS)
def test_graphs_keep_their_contract(reference_voice: Path, network: str) -> None:
    contract = contracts(Voice.load(reference_voice).dimensions)[network]
    graph = ir.load(reference_voice / f"{network}.onnx").graph
    for values, tensors in ((graph.inputs, contract.inputs), (graph.outputs, contract.outputs)):
        assert [(value.name, value.dtype.numpy().name, value.shape) for value in values] == [
            (tensor.name, tensor.dtype, tensor.shape) for tensor in tensors
        ]


@pytest.mark.parametrize("network", TRANSFORMERS)
def test_graphs_are_standard_and_tell_nothing_of_their_maker(graphs: Graphs, network: str) -> None:
    path = graphs.folder / f"{network}.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path, load_external_data=False)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 23)]
    assert not model.functions
    assert str(Path.cwd()).encode() not in path.read_bytes()
    assert b"site-packages" not in path.read_bytes()


@pytest.mark.parametrize(("batch", "tokens", "context"), [(1, 1, 0), (1, 1, 256), (3, 2, 256), (1, 2048, 256)])
def test_any_size_runs_and_songs_of_a_batch_are_independent(
    graphs: Graphs, batch: int, tokens: int, context: int
) -> None:
    ids = RNG.integers(1, 1536, (batch, tokens), dtype=np.int32)
    (notes,) = graphs("note_encoder", ids)
    (encoded,) = graphs("context_encoder", noise(batch, 256, 128))
    x = noise(batch, 256, 128)
    whole = graphs.decode(x, 0.5, notes, encoded[:, :context])
    assert whole.shape == (batch, 256, 128)
    for row in range(batch):
        one = slice(row, row + 1)
        (alone,) = graphs("note_encoder", ids[one])
        found = graphs.decode(x[one], 0.5, alone, encoded[one, :context])
        assert relative(found, whole[one]) < 1e-5


def test_masked_keys_change_nothing(graphs: Graphs) -> None:
    x, notes = noise(1, 256, 128), noise(1, 5, 64)
    (film,) = graphs("time_embedding", np.array([0.5], np.float32))
    keys_values = graphs("cross_attention", notes, noise(1, 0, 64))
    expected = graphs("decoder", x, film, np.zeros((1, 1, 1, 5), np.float32), *keys_values)[0]
    padded = [np.concatenate([part, noise(1, 4, 3, 16)], axis=2) for part in keys_values]
    mask = np.where(np.arange(8) < 5, 0, np.finfo(np.float32).min).astype(np.float32)[None, None, None]
    assert relative(graphs("decoder", x, film, mask, *padded)[0], expected) < 1e-5


def test_a_schedule_is_embedded_at_once(graphs: Graphs) -> None:
    times = np.linspace(0, 0.999, 7, dtype=np.float32)
    (film,) = graphs("time_embedding", times)
    assert film.shape == (7, 2, 2, 2, 64)
    for i, time in enumerate(times):
        np.testing.assert_allclose(graphs("time_embedding", time[None])[0][0], film[i], atol=1e-5)


def test_weights_are_stored_once(graphs: Graphs) -> None:
    parameters = sum(value.numel() for value in load_diffusers(REFERENCE / "checkpoint").model.parameters())
    stored = (graphs.folder / "weights.bin").stat().st_size
    assert parameters * 4 * 0.98 < stored < parameters * 4 * 1.1
    model = onnx.load(graphs.folder / "unconditional_decoder.onnx", load_external_data=False)
    external = [tensor for tensor in model.graph.initializer if tensor.external_data]
    assert len(external) >= 8
    assert {tensor.external_data[0].value for tensor in external} == {"weights.bin"}


def test_voice_says_what_it_is(reference_voice: Path) -> None:
    voice = Voice.load(reference_voice)
    assert (voice.name, voice.prediction, voice.precision) == ("reference", "epsilon", "fp32")
    assert voice.schedule == NoiseSchedule("squaredcos_cap_v2", 1000)
    assert voice.vocoder is None
    assert set(voice.files) == {*(f"{network}.onnx" for network in TRANSFORMERS), "weights.bin"}
    assert set(voice.parity) == set(TRANSFORMERS)
    assert max(voice.parity.values()) < 1e-5


@pytest.fixture(scope="module")
def smaller(reference_voice: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Graphs]:
    """The reference voice again, at the smaller precisions."""
    result = {}
    for precision, store in (("fp16", store_half), ("int8", store_int8)):
        folder = tmp_path_factory.mktemp(precision)
        weights = WeightFile(folder / "weights.bin")
        for network in TRANSFORMERS:
            model = ir.load(reference_voice / f"{network}.onnx")
            (store if network.endswith(("encoder", "decoder")) else store_half)(model.graph)
            weights.take(model)
            ir.save(model, folder / f"{network}.onnx")
            onnx.checker.check_model(str(folder / f"{network}.onnx"), full_check=True)
        result[precision] = Graphs(folder)
    return result


def test_smaller_weights_stay_close(graphs: Graphs, smaller: dict[str, Graphs]) -> None:
    tokens = RNG.integers(1, 1536, (1, 90), dtype=np.int32)
    x, context = noise(1, 256, 128), noise(1, 256, 64)
    notes = {name: each("note_encoder", tokens)[0] for name, each in {**smaller, "fp32": graphs}.items()}
    expected = graphs.decode(x, 0.5, notes["fp32"], context)
    for precision, share, limit in (("fp16", 0.51, 3e-3), ("int8", 0.45, 0.1)):
        small = smaller[precision]
        assert relative(notes[precision], notes["fp32"]) < limit
        assert 0 < relative(small.decode(x, 0.5, notes["fp32"], context), expected) < limit
        size, whole = ((each.folder / "weights.bin").stat().st_size for each in (small, graphs))
        assert size < share * whole


def test_int8_songs_of_a_batch_keep_their_precision(graphs: Graphs, smaller: dict[str, Graphs]) -> None:
    """Also beside one that is far louder: scales are of rows, or of values that a norm has made alike."""
    x, film = noise(2, 256, 128), graphs("time_embedding", np.array([0.5], np.float32))[0]
    keys_values = graphs("cross_attention", noise(2, 9, 64), noise(2, 0, 64))
    mask = np.zeros((2, 1, 1, 9), np.float32)
    x[1] *= 50

    def decode(each: Graphs, batch: int) -> np.ndarray:
        return each("decoder", x[:batch], film, mask[:batch], *(part[:batch] for part in keys_values))[0][:1]

    exact = decode(graphs, 1)
    np.testing.assert_allclose(decode(graphs, 2), exact, atol=1e-5)
    alone, beside = (relative(decode(smaller["int8"], batch), exact) for batch in (1, 2))
    assert 0 < beside < 1.5 * alone


def test_int8_graphs_have_the_patterns_that_onnx_runtime_fuses(smaller: dict[str, Graphs], tmp_path: Path) -> None:
    settings = onnxruntime.SessionOptions()
    settings.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    settings.log_severity_level = 3  # it warns that the file fits this machine only
    path = smaller["int8"].folder / "decoder.onnx"
    onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    optimized = onnx.load(tmp_path / "optimized.onnx", load_external_data=False)
    found = Counter(node.op_type for node in optimized.graph.node)
    written = Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)
    assert found["DynamicQuantizeMatMul"] + found["MatMulIntegerToFloat"] == written["MatMulInteger"] > 0
    assert not {"MatMulInteger", "Cast", "ConstantOfShape"} & found.keys()


def test_time_embedding_keeps_its_precision_in_float16(tmp_path: Path) -> None:
    """Its frequencies are multiplied by times up to 20000, so they must stay float32 at any width."""
    size = Dimensions(512, 1, 8, 8, 1, 1, 1)
    module = TimeEmbedding(size)
    model = export_graph(module, contracts(size)["time_embedding"])
    store_half(model.graph)
    ir.save(model, tmp_path / "time_embedding.onnx")
    assert (tmp_path / "time_embedding.onnx").stat().st_size < 0.51 * 4 * sum(p.numel() for p in module.parameters())
    assert relative_error(tmp_path / "time_embedding.onnx", module, (torch.linspace(0, 0.999, 9),)) < 5e-3


def product(weight: np.ndarray) -> ir.Model:
    """The graph y = x weight."""
    kind = ir.TensorType(ir.DataType.FLOAT)
    x = ir.Value(name="x", type=kind, shape=ir.Shape(["B", len(weight)]))
    matrix = ir.Value(name="weight", const_value=ir.tensor(weight, name="weight"))
    node = ir.node("MatMul", [x, matrix])
    y = node.outputs[0]
    y.name, y.type, y.shape = "y", kind, ir.Shape(["B", weight.shape[1]])
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[matrix], opset_imports={"": 23}, name="product")
    return ir.Model(graph, ir_version=10)


def test_weights_beyond_float16_stay_float32() -> None:
    graph = product(np.full((32, 32), 1e6, np.float32)).graph
    store_half(graph)
    assert [node.op_type for node in graph] == ["MatMul"]


def test_weights_beyond_two_gigabytes(tmp_path: Path) -> None:
    x, weight = noise(3, 32), noise(32, 32)
    model = product(weight)
    weights = WeightFile(tmp_path / "weights.bin")
    os.truncate(tmp_path / "weights.bin", (3 << 30) + 5)  # a hole, which takes no room on the disk
    weights.take(model)
    ir.save(model, tmp_path / "product.onnx")
    onnx.checker.check_model(str(tmp_path / "product.onnx"), full_check=True)
    (y,) = onnxruntime.InferenceSession(tmp_path / "product.onnx").run(None, {"x": x})
    np.testing.assert_allclose(y, x @ weight, rtol=1e-4, atol=1e-4)


def test_random_int8_voice_with_a_published_vocoder(vocoded_voice: Path, tmp_path: Path) -> None:
    """The whole way that the command goes, replacing an older voice."""
    from notewave.export.graphs.vocoder import export_vocoder_onnx
    from notewave.export.vocoders import MelGAN

    decoder = tmp_path / "decoder.onnx"
    export_vocoder_onnx(MelGAN(width=32), decoder)
    out = Path(shutil.copytree(vocoded_voice, tmp_path / "voice"))
    voice = export_checkpoint(None, out, random="tiny", precision="int8", vocoder=decoder)
    assert (voice.folder, voice.name, voice.precision) == (out, "voice", "int8")
    assert voice.vocoder is not None and not voice.vocoder.positional
    assert 1e-4 < voice.parity["decoder"] < 0.1
    operators = {node.op_type for node in onnx.load(out / "decoder.onnx", load_external_data=False).graph.node}
    assert "MatMulInteger" in operators
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_voice_in_another_precision(vocoded_voice: Path, tmp_path: Path) -> None:
    original = Voice.load(vocoded_voice)
    same = export_checkpoint(vocoded_voice, tmp_path / "same", precision=original.precision)
    tokens = [np.array([5, 1200, 1134, 1065, 1], np.int32)] * 2
    expected, got = (
        Synthesizer(folder, backend="cpu", threads=1).spectrogram(tokens, steps=3)
        for folder in (vocoded_voice, same.folder)
    )
    np.testing.assert_allclose(got, expected, atol=1e-4)
    small = export_checkpoint(vocoded_voice, tmp_path / "small", precision="int8")
    assert (small.precision, small.vocoder, small.sampling) == ("int8", original.vocoder, original.sampling)
    operators = [node.op_type for node in onnx.load(small.graph("vocoder")).graph.node]
    assert operators.count("MatMulInteger") == 3  # of its one block, and the loudness
    mel = np.random.default_rng(0).normal(-4, 2, (80, MELS)).astype(np.float32)
    whole, ours = (Synthesizer(voice.folder, backend="cpu").vocode(mel).samples for voice in (original, small))
    error = np.square(ours - whole).mean() / np.square(whole).mean()
    assert 0 < error < 0.01 and 0 < small.parity["vocoder"] < 0.2
    with pytest.raises(VoiceError, match="int8 voice"):
        export_checkpoint(small.folder, tmp_path / "back", precision="fp32")


def test_not_finite_weights_leave_nothing_behind(tmp_path: Path) -> None:
    model = random_checkpoint("tiny").model
    model.note_encoder.norm.weight[3] = torch.nan
    with pytest.raises(VoiceError, match="note_encoder in ONNX differs"):
        export_voice(
            model,
            tmp_path / "voice",
            name="broken",
            licence="none",
            provenance="a test",
            prediction="epsilon",
            schedule=NoiseSchedule(),
            sampling=Sampling(),
        )
    assert list(tmp_path.iterdir()) == []


def test_only_voices_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("kept")
    with pytest.raises(OutputError, match="is no voice"):
        export_checkpoint(None, tmp_path, random="tiny")
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_unknown_precision_and_source(tmp_path: Path) -> None:
    with pytest.raises(VoiceError, match="fp32, fp16, int8"):
        export_checkpoint(None, tmp_path / "voice", random="tiny", precision="fp8")
    with pytest.raises(VoiceError, match="no hub id"):
        export_checkpoint(tmp_path / "nowhere", tmp_path / "voice")


def test_dimensions_come_back_from_disk(reference_voice: Path) -> None:
    size = load_diffusers(REFERENCE / "checkpoint").model.size
    assert dataclasses.asdict(Voice.load(reference_voice).dimensions) == dataclasses.asdict(size)


@pytest.mark.parametrize(
    "source", ["a" * 300, "zero\0byte", "half\ud800", b"bytes"], ids=["long", "zero", "half", "bytes"]
)
def test_sources_that_are_no_paths(source: Any, tmp_path: Path) -> None:
    with pytest.raises(VoiceError, match=r"no voice or checkpoint|no checkpoint"):
        export_checkpoint(source, tmp_path / "out")


def test_a_checkpoint_whose_folder_has_a_name_that_is_no_text(tmp_path: Path) -> None:
    source = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    shutil.copytree(Path(__file__).parent / "data" / "reference" / "checkpoint", source)
    voice = export_checkpoint(source, tmp_path / "out")
    assert voice.provenance == r"Exported from the checkpoint \xff."
