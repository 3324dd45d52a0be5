"""Graphs in float16 and bfloat16."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from default_voice import default_voice
from onnx import TensorProto
from random_voices import random_voice
from simulated_device import SimulatedDevice
from simulated_tensorrt import SimulatedTensorRTRTX, simulated_plan
from typed_on_cpu import runnable_on_cpu

import notewave
from notewave.backends.device.contracts import gpu_contracts
from notewave.backends.graphs.make import gpu_graph
from notewave.backends.graphs.typed import NARROWING_NORM, PRODUCTS
from notewave.backends.ort.backend import OrtBackend
from notewave.backends.trt.backend import open_tensorrt
from notewave.errors import VoiceError
from notewave.export.graphs.precision import store_half, store_int8
from notewave.export.networks import port_family
from notewave.export.plans.build import build_plans
from notewave.inputs import FileRecord
from notewave.sampling.job import Job
from notewave.sampling.options import Sampling
from notewave.sampling.samplers import sampler_table
from notewave.song.dialect import Tokens
from notewave.voice.folder import Voice

LOW = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
NETWORKS = ("note_encoder", "context_encoder", "cross_attention", "time_embedding", "decoder")
SEGMENT_RMS = {"fp32": 1e-5, "fp16": 2e-3, "bf16": 2e-2}  # of a denoised segment against float32; its range is [-1, 1]


@pytest.fixture(scope="module")
def voice(reference_voice: Path) -> Voice:
    return Voice.load(reference_voice)


@pytest.mark.parametrize("precision", LOW)
@pytest.mark.parametrize("network", NETWORKS)
def test_products_are_low_and_the_residual_stream_is_float32(voice: Voice, network: str, precision: str) -> None:
    model = gpu_graph(voice, network, precision)
    onnx.checker.check_model(model, full_check=True)
    types = _types(model)
    floating = {TensorProto.FLOAT, LOW[precision]}
    residual = 0
    for node in model.graph.node:
        given = {types[name] for name in node.input if types.get(name) in floating}
        if node.op_type in (*PRODUCTS, "Gelu"):
            assert given == {LOW[precision]}, node.name
        elif node.op_type in ("RMSNormalization", "Sigmoid", "Sin", "Cos"):
            assert given <= {TensorProto.FLOAT}, node.name
        elif node.op_type == "Add" and not any(name.startswith("film_") for name in node.input):
            assert given <= {TensorProto.FLOAT}, node.name
            residual += bool(given)
    size = voice.dimensions
    layers = {
        "note_encoder": 2 * size.note_encoder_layers,
        "context_encoder": 2 * size.context_encoder_layers,
        "decoder": 3 * size.decoder_layers,
    }.get(network, 0)
    assert residual >= layers, "each attention and each feed-forward is added to it"


@pytest.mark.parametrize("precision", LOW)
def test_biases_are_added_in_the_low_precision_but_to_the_residual_stream(
    precision: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """So that gates are low, too; and the frame that a decoder reads out of its stream is float32."""
    folder = tmp_path_factory.mktemp("voices")
    for frames in (False, True):
        made = random_voice(folder / str(frames), port_family(1e-5), frames=frames)
        model = gpu_graph(made, "decoder", precision)
        onnx.checker.check_model(model, full_check=True)
        types, nodes = _types(model), model.graph.node
        added = {
            name.split(".")[-2] if "." in name else name: types[node.output[0]]
            for node in nodes
            for name in node.input
            if node.op_type == "Add" and ".bias" in name
        }
        float32, low = TensorProto.FLOAT, LOW[precision]
        assert added == {"input": float32, "gate_up": low, "out": float32, "output": float32}
        assert all(types[node.output[0]] == low for node in nodes if node.op_type in (*PRODUCTS, "Gelu", "Concat"))


@pytest.mark.parametrize("precision", (*LOW, "fp32"))
@pytest.mark.parametrize("network", NETWORKS)
def test_a_graph_takes_and_gives_what_its_contract_says(voice: Voice, network: str, precision: str) -> None:
    _check_declared(voice, network, precision)


@pytest.mark.parametrize("network", ["note_encoder", "cross_attention", "decoder"])
def test_so_does_a_graph_of_a_voice_that_writes_frames(network: str, frames_voice: Path) -> None:
    _check_declared(Voice.load(frames_voice), network, "fp16")


def _check_declared(voice: Voice, network: str, precision: str) -> None:
    contract, graph = gpu_contracts(voice, precision)[network], gpu_graph(voice, network, precision).graph
    for tensors, values in ((contract.inputs, graph.input), (contract.outputs, graph.output)):
        found = [
            (value.name, tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim))
            for value in values
        ]
        assert found == [(tensor.name, tensor.shape) for tensor in tensors]


@pytest.mark.parametrize("network", NETWORKS)
def test_norms_before_products_narrow_where_the_engine_can(voice: Voice, network: str) -> None:
    plain, narrow = (gpu_graph(voice, network, "fp16", narrow_norms=narrow).graph.node for narrow in (False, True))
    norms = sum(node.op_type == NARROWING_NORM for node in narrow)
    casts = [sum(node.op_type == "Cast" for node in nodes) for nodes in (plain, narrow)]
    weights = 2 * voice.dimensions.decoder_layers if network == "decoder" else 0  # that come with FiLM, in float16
    assert casts[0] - casts[1] == norms + weights and not any(node.op_type == NARROWING_NORM for node in plain)
    size = voice.dimensions
    per_layer = {
        "note_encoder": 2 * size.note_encoder_layers,
        "context_encoder": 2 * size.context_encoder_layers,
        "decoder": 3 * size.decoder_layers + 1,
    }
    assert norms == per_layer.get(network, 0), "all but those that give an encoder's output"


@pytest.mark.parametrize("network", NETWORKS)
def test_weights_are_inside_and_none_is_left_over(voice: Voice, network: str) -> None:
    model = gpu_graph(voice, network, "fp16")
    used = {name for node in model.graph.node for name in node.input}
    assert {tensor.name for tensor in model.graph.initializer} <= used
    assert not any(tensor.external_data for tensor in model.graph.initializer)


def test_weights_stored_in_float16_give_the_same_graph_and_int8_is_refused(voice: Voice, tmp_path: Path) -> None:
    graphs = {}
    for name, store in (("half", store_half), ("int8", store_int8)):
        folder = tmp_path / name
        shutil.copytree(voice.folder, folder)
        graph = ir.load(voice.graph("decoder"))
        store(graph.graph)
        ir.save(graph, folder / "decoder.onnx")
        files = voice.files | {"decoder.onnx": FileRecord.of(folder / "decoder.onnx")}
        graphs[name] = dataclasses.replace(voice, folder=folder, files=files)
    exact, half = (gpu_graph(one, "decoder", "fp16").graph for one in (voice, graphs["half"]))
    assert [node.op_type for node in half.node] == [node.op_type for node in exact.node]
    weights = [
        sorted(tensor.raw_data for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT16)
        for graph in (exact, half)
    ]
    assert weights[0] == weights[1] != []
    with pytest.raises(VoiceError, match=r"8-bit weights .*--precision fp32 or fp16"):
        gpu_graph(graphs["int8"], "decoder", "fp16")


def test_masked_keys_stay_finite(voice: Voice) -> None:
    for network in ("note_encoder", "cross_attention"):
        model = gpu_graph(voice, network, "fp16")
        (bound,) = (tensor for tensor in model.graph.initializer if tensor.name == "masked")
        assert np.isfinite(np.float16(onnx.numpy_helper.to_array(bound))), network


def test_the_cpu_s_version_computes_products_in_float32_between_roundings(voice: Voice) -> None:
    model = runnable_on_cpu(gpu_graph(voice, "decoder", "bf16"))
    types = _types(model)
    products = [node for node in model.graph.node if node.op_type in PRODUCTS]
    assert products and all(types[name] == TensorProto.FLOAT for node in products for name in node.input)


@pytest.mark.parametrize("precision", SEGMENT_RMS)
def test_whole_denoised_segments_stay_near_float32(
    voice: Voice, precision: str, tmp_path: Path, midi_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTEWAVE_PLANS", str(tmp_path))
    errors = segment_errors(
        voice, precision, Sampling("ddpm", 10, 1.0), notewave.tokenize(midi_folder / "ensemble.mid")[:2]
    )
    assert max(errors) < SEGMENT_RMS[precision]
    assert precision == "fp32" or min(errors) > 1e-5  # it did compute in low precision


@pytest.mark.parametrize("precision", LOW)
def test_a_whole_segment_of_the_bundled_voice_stays_near_float32(
    voice: Voice, precision: str, tmp_path: Path, midi_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is rendered: with its own sampler, step count and guidance."""
    monkeypatch.setenv("NOTEWAVE_PLANS", str(tmp_path))
    bundled = default_voice(voice)
    tokens = notewave.tokenize(midi_folder / "piano_scale.mid")[:1]
    (error,) = segment_errors(bundled, precision, bundled.sampling, tokens)
    assert 1e-6 < error < SEGMENT_RMS[precision]


def segment_errors(voice: Voice, precision: str, how: Sampling, tokens: list[Tokens]) -> list[float]:
    """Root-mean-square difference of each denoised segment from float32, by plans run on a simulated GPU."""
    device = SimulatedDevice()
    trt = SimulatedTensorRTRTX(device)
    build_plans(voice, precision, (8, 9), trt=trt, compile_plan=simulated_plan)
    table = sampler_table(how.sampler, how.steps, voice.schedule, voice.prediction)
    job = Job(table, how.guidance, (3,), None)
    low = open_tensorrt(voice, {"precision": precision}, device=device, trt=trt)
    exact = OrtBackend(voice, 1)
    with low.start(job) as run, exact.start(job) as reference:
        errors = [run.denoise([segment]) - reference.denoise([segment]) for segment in tokens]
    return [float(np.sqrt(np.mean(error**2))) for error in errors]


def _types(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = (*graph.value_info, *graph.input, *graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}
