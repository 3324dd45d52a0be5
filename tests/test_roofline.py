"""The roofline: operations are those counted by hand, and the ceiling that binds is named."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from bench_command import parse

from notewave.benchmarks import roofline
from notewave.benchmarks.ceilings import FLOAT_CEILING, INT8_CEILING, MEMORY_CEILING, Ceilings
from notewave.benchmarks.report import Case, Result, Spread
from notewave.benchmarks.roofline import CARDS, Product, datasheet_times, operations, products, trace, windows
from notewave.benchmarks.speed import synthetic_song
from notewave.benchmarks.trial import Settings, Trial
from notewave.export.checkpoints.seeded import RANDOM_SIZES
from notewave.inputs import FileRecord
from notewave.sound.mel import FRAMES, HOP
from notewave.sound.stream import VocoderTraits
from notewave.voice.contracts import NETWORKS, contracts
from notewave.voice.folder import Voice

BASE = RANDOM_SIZES["base"]
GIGA = 1e-9


def operations_of(found: list[Product], weights: bool) -> int:
    """Of the products whose second factor is, or is not, weights."""
    return operations([product for product in found if product.weights == weights])


def test_operations_are_those_counted_by_hand() -> None:
    # Figures of the base decoder: 99.1 M weights of the layers over 256 frames; attention over 256 and over J keys.
    layers = [product for product in products(BASE, 2048) if product.layers == 12]
    weights = operations_of(layers, weights=True)
    assert weights == 2 * 256 * 12 * (6 * 768**2 + 3 * 768 * 2048)
    assert weights * GIGA == pytest.approx(50.7, abs=0.05)
    for tokens, attention in ((2048, 24.16), (300, 7.66)):
        assert operations_of(products(BASE, tokens), weights=False) * GIGA == pytest.approx(attention, abs=0.005)
    assert operations(products(BASE, 300, batch=2)) == 2 * operations(products(BASE, 300))
    assert operations(products(BASE, 300, context=False)) == operations(products(BASE, 44))


def test_graphs_are_counted_as_they_run(reference_voice: Path) -> None:
    torch = pytest.importorskip("torch")
    from notewave.export.networks import SpectrogramDiffusion

    voice = Voice.load(reference_voice)
    size, batch, tokens, steps = voice.dimensions, 2, 20, 3
    with torch.device("meta"):
        model = SpectrogramDiffusion(size)
    frames, keys, inner = size.frames, tokens + size.frames, size.heads * size.head_width
    sizes = {"B": batch, "N": tokens, "C": frames, "J": keys, "S": steps, "T": frames}
    expected = {  # rows of products with weights, and operations of attention
        "note_encoder": (batch * tokens, 4 * batch * tokens**2 * inner * size.note_encoder_layers),
        "context_encoder": (batch * frames, 4 * batch * frames**2 * inner * size.context_encoder_layers),
        "cross_attention": (batch * keys, 0),
        "time_embedding": (steps, 0),
        "decoder": (batch * frames, 4 * batch * frames * (frames + keys) * inner * size.decoder_layers),
    }
    for network, (rows, attention) in expected.items():
        linear = [module for module in getattr(model, network).modules() if isinstance(module, torch.nn.Linear)]
        weights = sum(module.weight.numel() for module in linear)
        found, moved = trace(voice, network, sizes)
        assert operations_of(found, weights=True) == 2 * rows * weights, network
        assert operations_of(found, weights=False) == attention, network
        tensors = [*contracts(size)[network].inputs, *contracts(size)[network].outputs]
        numbers = [math.prod(sizes.get(str(axis), axis) for axis in tensor.shape) for tensor in tensors]  # of 4 bytes
        assert moved == 4 * (weights + sum(numbers)), network
    assert operations(trace(voice, "decoder", sizes)[0]) == operations(products(size, tokens, batch=batch))


def test_every_operator_is_counted(reference_voice: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    make = onnx.helper.make_node
    weights = {
        "conv": np.ones((64, 32, 7), np.float16),  # of 4 groups
        "up": np.ones((128, 8, 10), np.float16),  # of 2 groups
        "gemm": np.ones((16, 128), np.float16),
        "vector": np.ones(128, np.float32),
        "whole": np.ones((128, 6), np.int8),
    }
    casts = [make("Cast", [name], [f"{name}.float"], to=1) for name in ("conv", "up", "gemm")]
    nodes = [
        make("Transpose", ["mel"], ["channels"], perm=[0, 2, 1]),
        make("Conv", ["channels", "conv.float"], ["a"], group=4, strides=[2]),
        make("ConvTranspose", ["channels", "up.float"], ["b"], group=2, strides=[5]),
        make("Flatten", ["mel"], ["flat"], axis=2),
        make("Gemm", ["flat", "gemm.float"], ["c"], transB=1),
        make("MatMul", ["mel", "vector"], ["d"]),
        make("MatMul", ["mel", "channels"], ["e"]),
        make("DynamicQuantizeLinear", ["mel"], ["quantised", "scale", "zero"]),
        make("MatMulInteger", ["quantised", "whole", "zero"], ["f"]),
    ]
    mel = onnx.helper.make_tensor_value_info("mel", 1, ("B", "V", 128))
    ends = [onnx.helper.make_tensor_value_info(name, 6 if name == "f" else 1, None) for name in "abcdef"]
    initial = [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = onnx.helper.make_graph([*casts, *nodes], "vocoder", [mel], ends, initial)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "vocoder.onnx")
    silent = Voice.load(reference_voice)
    files = silent.files | {"vocoder.onnx": FileRecord.of(tmp_path / "vocoder.onnx")}
    voice = dataclasses.replace(silent, folder=tmp_path, vocoder=VocoderTraits(0, 0), files=files)
    found, moved = trace(voice, "vocoder", {"B": 1, "V": 13})
    assert set(found) == {
        Product(4, 32 * 7, 16, count=4),
        Product(13, 64, 8 * 10, count=2),
        Product(13, 128, 16),
        Product(13, 128, 1),
        Product(13, 128, 13, weights=False),
        Product(13, 128, 6, number_bytes=1),
    }
    assert len(found) == 6
    outputs = 64 * 4 + 16 * 70 + 13 * 16 + 13 + 13 * 13 + 13 * 6
    assert moved == 4 * (64 * 32 * 7 + 128 * 8 * 10 + 16 * 128 + 128 + 13 * 128 + outputs) + 128 * 6


def test_vocoders_are_counted_window_by_window() -> None:
    assert windows(VocoderTraits(22, 21), 3) == [256, 299, 299]
    assert windows(VocoderTraits(10, 300), 3) == [512, 566]  # the first segment's sound waits for the second


def test_predictions_are_slower_than_their_bounds() -> None:
    found = products(BASE, 300)
    bounds = [datasheet_times(card, found) for card in CARDS]
    assert all(bound < predicted for bound, predicted in bounds)
    assert bounds[0][0] == pytest.approx(operations(found) / 65e12)  # T4


def test_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx")
    monkeypatch.setattr("notewave.benchmarks.ceilings.STREAM", (1, 1, 64, 32))
    ceilings = Ceilings([(4, 8, 16), (4, 16, 8)], [(2, 4, 8, 4)], threads=1)
    for _ in range(2):
        ceilings.play()
    found = {str(case.settings["ceiling"]): case.figures for case in ceilings.cases()}
    assert {FLOAT_CEILING, INT8_CEILING} <= found.keys()
    memory = found.pop(MEMORY_CEILING)
    read = 4e-9 * 64 * 32 / np.array(ceilings.seconds[MEMORY_CEILING][1, 1, 64, 32])
    assert memory == {"memory_gbps": Spread.of(read)}
    for engine, figures in found.items():
        attention = ["attention_gflops", "2x4x8x4_gflops"] if "float32" in engine else []
        assert {*figures} == {"weights_gflops", "4x8x16_gflops", "4x16x8_gflops", *attention}
        assert all(figure.repeats == 2 for figure in figures.values())
    weights, attention = roofline.rates(ceilings.cases(), INT8_CEILING)
    assert weights == found[INT8_CEILING]["weights_gflops"].median * 1e9
    assert attention == found[FLOAT_CEILING]["attention_gflops"].median * 1e9


def ceiling_cases(memory_gbps: float) -> list[Case]:
    """As if measured: 100 GFLOP/s, in attention 50; 400 in integers."""
    figures = {
        FLOAT_CEILING: {"weights_gflops": 100.0, "attention_gflops": 50.0},
        INT8_CEILING: {"weights_gflops": 400.0},
        MEMORY_CEILING: {"memory_gbps": memory_gbps},
    }
    return [
        Case({"ceiling": name}, {figure: Spread.of([value]) for figure, value in values.items()})
        for name, values in figures.items()
    ]


def test_the_ceiling_that_binds_is_the_one_of_more_time(vocoded_voice: Path) -> None:
    from notewave.export.vocoders import Tonewheel

    trial = Trial(Settings(str(vocoded_voice), "cpu", threads=1, steps=2), synthetic_song(20, 2))
    trial.play()
    computing, reading = (roofline.stage_cases(trial, ceiling_cases(gbps)) for gbps in (1e6, 1e-6))
    for cases, binding, other in ((computing, "compute", "memory"), (reading, "memory", "compute")):
        assert {case.settings["stage"] for case in cases} == {*NETWORKS} - {"unconditional_decoder"}
        for case in cases:
            times = np.array(trial.values[f"{case.settings['stage']}_s"])
            assert case.figures[f"of_{binding}_ceiling"] == Spread.of(case.figures["bound_s"].median / times)
            assert f"of_{other}_ceiling" not in case.figures
    for case in reading:
        assert case.figures["bound_s"].median == pytest.approx(case.figures["memory_mib"].median * 2**20 / 1e3)
    found = {str(case.settings["stage"]): case.figures for case in computing}
    size = trial.voice.dimensions
    weights, attention = (operations_of(products(size, 20), kind) * GIGA for kind in (True, False))
    assert found["decoder"]["bound_s"].median == pytest.approx(weights / 100 + attention / 50)

    vocoder = Tonewheel(width=32, blocks=1)  # as in the voice
    layers = [getattr(module, "weight", None) for name, module in vocoder.named_modules() if "norm" not in name]
    weights = sum(weight.numel() for weight in layers if weight is not None)
    waves = 2 * len(vocoder.turns) * 2 * HOP + vocoder.noise_rate * (2 * vocoder.noise_hop) ** 2
    frames = FRAMES + (vocoder.traits.left_frames + vocoder.traits.right_frames) / 2  # a segment of two, in the mean
    assert found["vocoder"]["gflop"].median == pytest.approx(2 * GIGA * frames * (weights + waves))
    audio = 4 * FRAMES * HOP / 2**20
    assert found["vocoder"]["memory_mib"].median > 4 * (weights + waves / 2) / 2**20 + audio


def test_integers_have_a_ceiling_of_their_own() -> None:
    found = [Product(4, 8, 16), Product(4, 8, 16, number_bytes=1), Product(4, 8, 16, weights=False)]
    assert roofline.compute_s(found, 1.0, 4.0, 0.5) == 2 * 4 * 8 * 16 * (1 + 1 / 4 + 2)


def test_the_roofline_command(
    vocoded_voice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("notewave.benchmarks.ceilings.STREAM", (1, 1, 64, 32))
    arguments = ["--voice", str(vocoded_voice), "--tokens", "20", "--steps", "2", "--repeat", "1", "--threads", "1"]
    options = parse("roofline", *arguments, "--json", str(tmp_path / "r.json"), "--plot", str(tmp_path / "r.png"))
    options.run(options)
    cases = Result.load(tmp_path / "r.json").cases
    assert [case.settings["card"] for case in cases if "card" in case.settings] == [card.name for card in CARDS]
    assert [case.settings["stage"] for case in cases if "stage" in case.settings][-1] == "vocoder"
    printed = capsys.readouterr().out
    assert "Predictions, not measured" in printed
    assert "of compute ceiling" in printed or "of memory ceiling" in printed
