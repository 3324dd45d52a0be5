"""The benchmarks: figures come from repeats, results survive the disk, operations are those counted by hand."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from notewave.benchmarks import bench, clock, peer, quality, roofline
from notewave.benchmarks.bench import Settings, benchmark, launch, save_stage_plot, synthetic_song
from notewave.benchmarks.ceilings import FLOAT_CEILING, INT8_CEILING, MEMORY_CEILING, Ceilings
from notewave.benchmarks.peer import PEER, Timing
from notewave.benchmarks.quality import Way, ways
from notewave.benchmarks.report import Case, Result, Spread, compare
from notewave.benchmarks.roofline import CARDS, Product, operations, predict, products, trace, windows
from notewave.errors import NotewaveError, OutputError, SamplingError
from notewave.export.checkpoints.seeded import RANDOM_SIZES
from notewave.export.material.fluidsynth import SOUNDFONT
from notewave.song.codec import EOS
from notewave.song.midi import read_midi, tokenize
from notewave.sound.mel import FRAMES, HOP
from notewave.sound.stream import VocoderTraits
from notewave.synthesizer import Synthesizer
from notewave.voice.contracts import NETWORKS, contracts
from notewave.voice.folder import FileRecord, Voice

DATA = Path(__file__).parent / "data"
BASE = RANDOM_SIZES["base"]
GIGA = 1e-9


@pytest.fixture(scope="module")
def measured(reference_voice: Path) -> Result:
    """Two cases of two repeats: a song by itself, and two guided songs side by side."""
    alone = Settings(str(reference_voice), "cpu", threads=1, steps=3, tokens=20)
    cases = [alone, dataclasses.replace(alone, guidance=2.0, batch=2)]
    return benchmark(cases, segments=2, repeat=2)


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return parser.parse_args(arguments)


def result(**figures: float) -> Result:
    spreads = {name: Spread(value, 0.9 * value, 1.1 * value, 3) for name, value in figures.items()}
    return Result("bench", {"processor": "a", "torch": "1"}, {"v fp32": "0f"}, [Case({"steps": 4}, spreads)])


def test_every_stage_is_timed_in_every_repeat(measured: Result) -> None:
    repeats, with_context, steps = 2, 1, 3
    expected = {
        "load_s": 1,
        "real_time_factor": repeats,
        "first_audio_s": repeats,
        "time_embedding_s": repeats,
        "note_encoder_s": repeats * with_context,
        "cross_attention_s": repeats * with_context,
        "context_encoder_s": repeats * with_context,
        "decoder_s": repeats * with_context * steps,
        "step_s": repeats * with_context * (steps - 1),
        "overhead_s": repeats * with_context * (steps - 1),
        "overhead_share": repeats * with_context * (steps - 1),
    }
    alone, guided = measured.cases
    assert {name: figure.repeats for name, figure in alone.figures.items()} == expected
    assert guided.figures["unconditional_decoder_s"].repeats == repeats * with_context * steps
    for case in measured.cases:
        for name, figure in case.figures.items():
            assert figure.median > 0 and figure.low <= figure.median <= figure.high, name
        assert case.figures["first_audio_s"].median < case.figures["real_time_factor"].high * 4 * 5.12
    assert (alone.settings["sampler"], alone.settings["guidance"], alone.settings["tokens"]) == ("dpmpp-2m", 1.0, 20)
    assert (guided.settings["batch"], guided.settings["guidance"]) == (2, 2.0)


def test_watching_leaves_the_networks_as_they_were(reference_voice: Path) -> None:
    trial = bench.Trial(Settings(str(reference_voice), "cpu", threads=1, steps=2), synthetic_song(5, 1))
    before = trial.synthesizer.spectrogram(trial.song, steps=2)
    session = trial.backend.graphs["decoder"].session
    trial.play()
    assert trial.backend.graphs["decoder"].session is session
    np.testing.assert_array_equal(trial.synthesizer.spectrogram(trial.song, steps=2), before)


def test_backends_without_graphs_are_measured_by_their_slope(reference_voice: Path) -> None:
    trial = bench.Trial(Settings(str(reference_voice), "cpu", threads=1, steps=4), synthetic_song(20, 2))
    trial._note_slope()
    (step_s,), (encoders_s,) = trial.values["step_s"], trial.values["encoders_s"]
    segment_s = trial._segment_s(trial.job)
    assert 0 < encoders_s + 4 * step_s < 100 * segment_s


def test_batches_sing_what_each_song_alone_would(reference_voice: Path) -> None:
    settings = Settings(str(reference_voice), "cpu", threads=1, sampler="ancestral", steps=2, batch=2)
    trial = bench.Trial(settings, synthetic_song(9, 1))
    with trial.backend.start(trial.job) as run:
        together = run.denoise([trial.song[0]] * 2).copy()
    for seed, mel in enumerate(together):
        with trial.backend.start(dataclasses.replace(trial.job, seeds=(seed,))) as run:
            np.testing.assert_allclose(run.denoise(trial.song)[0], mel, atol=1e-4)


def test_a_process_reports_first_audio_and_memory(reference_voice: Path) -> None:
    settings = Settings(str(reference_voice), "cpu", threads=1, steps=1)
    first_s, peak_mib = launch(settings, str(DATA / "midi" / "piano_scale.mid"))
    assert first_s > 0
    assert 10 < peak_mib < 1000


def test_a_process_that_fails_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotewaveError, match="exit code 1"):
        launch(Settings(str(tmp_path)), synthetic_song(3, 1))


def test_songs_have_the_density_asked_for() -> None:
    song = synthetic_song(300, 3)
    assert [len(tokens) for tokens in song] == [300] * 3
    assert all(tokens[-1] == EOS and (tokens[:-1] > EOS).all() for tokens in song)
    assert not np.array_equal(song[0], song[1])
    for tokens, segments in ((0, 1), (2049, 1), (5, 0)):
        with pytest.raises(SamplingError):
            synthetic_song(tokens, segments)


def test_results_survive_the_disk(measured: Result, tmp_path: Path) -> None:
    measured.save(tmp_path / "a.json")
    assert Result.load(tmp_path / "a.json") == measured
    assert measured.machine["processor"]
    assert [*measured.voices] == ["reference fp32"]
    save_stage_plot(measured, str(tmp_path / "a.png"))
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(OutputError):
        save_stage_plot(measured, str(tmp_path / "a.unknown"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.png"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "cases": 3}', "[" * 100_000])
def test_other_files_are_no_results(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(NotewaveError, match="no result of a benchmark"):
        Result.load(tmp_path / "a.json")


def test_tables_tell_cases_apart_and_show_units(measured: Result) -> None:
    lines = measured.table().splitlines()
    assert lines[0].split() == ["guidance", "1.0", "2.0"]
    assert next(line for line in lines if line.startswith("batch")).split() == ["batch", "1", "2"]
    assert "unconditional decoder" in measured.table()
    assert result(step_s=0.25, peak_memory_mib=80.0, of_ceiling=0.5).table().splitlines()[2:] == [
        "step         250 ±25 ms",
        "peak memory   80 ±8 MiB",
        "of ceiling    0.5 ±0.05",
    ]


def test_compare_prints_ratios_and_what_else_changed() -> None:
    before, after = result(step_s=0.4, load_s=1.0), result(step_s=0.2, load_s=1.05)
    after = dataclasses.replace(after, machine={"processor": "a", "torch": "2"})
    text = compare(before, after).splitlines()
    assert next(line for line in text if " step " in line).split()[-1] == "0.500"
    assert next(line for line in text if " load " in line).split()[-2:] == ["1.050", "~"]
    assert text[-1] == "torch: 1 -> 2"
    other = dataclasses.replace(after, cases=[*after.cases, Case({"steps": 9}, after.cases[0].figures)])
    assert compare(before, other).count("0.500") == 1
    with pytest.raises(NotewaveError, match="No case"):
        compare(dataclasses.replace(before, cases=[]), after)


def test_the_command_compares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, seconds in (("a.json", 2.0), ("b.json", 1.0)):
        result(step_s=seconds).save(tmp_path / name)
    options = parse("--compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"))
    options.run(options)
    assert "0.500" in capsys.readouterr().out


def test_the_command_measures_every_combination(reference_voice: Path, tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    song = str(DATA / "midi" / "piano_scale.mid")
    arguments = ["--voice", str(reference_voice), "--song", song, "--segments", "1", "--steps", "1", "2"]
    options = parse(*arguments, "--guidance", "1", "2", "--launches", "0", "--repeat", "1", "--json", str(out))
    options.run(options)
    cases = Result.load(out).cases
    assert {(case.settings["steps"], case.settings["guidance"]) for case in cases} == {(1, 1), (1, 2), (2, 1), (2, 2)}
    assert all("tokenise_s" in case.figures for case in cases)
    assert "step_s" not in cases[0].figures  # a single step has no next one to end before


def test_options_of_the_backend_are_handed_on(reference_voice: Path) -> None:
    given = parse("--option", "precision=bf16", "graphs=false", "device_id=1").option
    assert given == [("precision", "bf16"), ("graphs", False), ("device_id", 1)]
    with pytest.raises(SystemExit):
        parse("--option", "precision")
    case = Settings(str(reference_voice), "cpu", threads=1, options=(("arena_extend_strategy", "kSameAsRequested"),))
    trial = bench.Trial(case, synthetic_song(5, 1))
    assert trial.case().settings["options"] == "arena_extend_strategy=kSameAsRequested"


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
    sizes = {"B": batch, "N": tokens, "C": frames, "J": keys, "S": steps}
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
    bounds = [predict(card, found) for card in CARDS]
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

    trial = bench.Trial(Settings(str(vocoded_voice), "cpu", threads=1, steps=2), synthetic_song(20, 2))
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


def test_speedups_are_taken_round_by_round() -> None:
    timings = {
        PEER: [Timing(10.0, [1.0, 1.0]), Timing(20.0, [2.0, 2.0])],
        "ours": [Timing(1.0, [0.5, 0.5]), Timing(2.0, [1.0, 1.0])],
    }
    cases = peer.cases(timings, {PEER: 2, "ours": 8}, {PEER: 100, "ours": 8})
    figures = cases[1].figures
    assert (figures["step_speedup"], figures["encoders_speedup"]) == (Spread(2, 2, 2, 2), Spread(10, 10, 10, 2))
    assert figures["segment_speedup"].median == pytest.approx(110 / 5)
    assert [case.settings["segment"] for case in cases] == ["extrapolated from 2 steps", "measured"]


def test_our_modules_and_engine_take_turns(reference_voice: Path) -> None:
    pytest.importorskip("torch")
    from notewave.export.checkpoints.diffusers import load_diffusers

    song = synthetic_song(20, 2)
    engine = peer.Engine(Voice.load(reference_voice), 1, song, 3)
    modules = peer.Modules(load_diffusers(DATA / "reference" / "checkpoint"), 1, compiled=False)
    timings = peer.take_turns([engine, modules], song[-1], {engine.name: 3, modules.name: 3}, repeat=2)
    assert {name: len(rounds) for name, rounds in timings.items()} == {"notewave fp32": 2, "our modules, eager": 2}
    assert len(timings[modules.name][0].steps_s) == 3
    assert all(timing.encoders_s > 0 for rounds in timings.values() for timing in rounds)


def test_voices_are_exported_once_for_each_checkpoint(tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(DATA / "reference" / "checkpoint", tmp_path / "checkpoint"))
    first = peer.exported(checkpoint, "fp16")
    written = (first.folder / "voice.json").stat().st_mtime_ns
    again = peer.exported(checkpoint, "fp16")
    assert (again.folder, (again.folder / "voice.json").stat().st_mtime_ns) == (first.folder, written)
    weights = next(checkpoint.glob("decoder/*.bin"), None) or next(checkpoint.glob("decoder/*.safetensors"))
    os.utime(weights, ns=(0, 0))
    assert peer.exported(checkpoint, "fp16").folder != first.folder
    assert not first.folder.exists()


class Tokeniser:
    """In the peer's stead: our own tokens, slower, and wrong on demand."""

    def __init__(self, wrong: bool = False) -> None:
        self.versions = {"diffusers": "0"}
        self._wrong = wrong

    def ask(self, do: str, song: str) -> dict[str, Any]:
        assert do == "tokens"
        return {"tokenise_s": 1e3, "tokens": [x.tolist() for x in tokenize(song, strict=True)[self._wrong :]]}


def test_tokens_are_compared_on_one_song_of_the_stated_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.mid", "b.mid"):
        peer.write_song(tmp_path / name)
    assert (tmp_path / "a.mid").read_bytes() == (tmp_path / "b.mid").read_bytes()
    notes = read_midi(tmp_path / "a.mid")
    assert len(notes) == peer.SONG_NOTES and 0.99 < notes.seconds / peer.SONG_SECONDS <= 1
    with pytest.raises(NotewaveError, match="are not those of diffusers"):
        peer.token_cases(Tokeniser(wrong=True), tmp_path / "a.mid", repeat=1)

    opened = []
    monkeypatch.setattr(peer, "open_peer", lambda *given: opened.append(given) or contextlib.nullcontext(Tokeniser()))
    outputs = ["--json", str(tmp_path / "p.json"), "--plot", str(tmp_path / "p.png")]
    options = parse("peer", "--only", "tokens", "--repeat", "1", *outputs)
    options.run(options)
    assert opened == [(options.venv, None, None)]  # without a checkpoint
    theirs, ours = Result.load(tmp_path / "p.json").cases
    assert (theirs.settings["side"], ours.settings["side"]) == (PEER, "notewave")
    assert theirs.figures["tokenise_speedup"] == Spread(1, 1, 1, 1)
    assert ours.figures["tokenise_speedup"].median == pytest.approx(1e3 / ours.figures["tokenise_s"].median)
    assert "tokenise speedup" in capsys.readouterr().out
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_an_environment_that_cannot_be_made_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(NotewaveError, match="was not made"):
        peer.peer_python(tmp_path / "venv")


def test_every_subcommand_parses() -> None:
    for command in ("roofline", "peer", "quality"):
        assert parse(command, "--threads", "2").run.__module__.endswith(command)
    assert parse().run is bench.run


def test_only_one_thing_at_a_time_departs_from_the_recommended(reference_voice: Path) -> None:
    singers = [Synthesizer(reference_voice, backend="cpu")] * 2
    usual = Way(0, singers[0].voice.sampling.sampler, singers[0].voice.sampling.steps, 1.0)
    assert ways(singers, ["ddim", usual.sampler], [8, usual.steps], [1.0, 2.0]) == [
        Way(0, "ddim", 8, 1.0),
        Way(0, "ddim", usual.steps, 1.0),
        Way(0, usual.sampler, 8, 1.0),
        usual,
        dataclasses.replace(usual, guidance=2.0),
        dataclasses.replace(usual, voice=1),
    ]


@pytest.mark.skipif(
    shutil.which("fluidsynth") is None or not SOUNDFONT.is_file(), reason="FluidSynth or its soundfont is not installed"
)
def test_quality_judges_every_way_of_sampling(
    vocoded_voice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("basic_pitch", "mir_eval"):
        pytest.importorskip(package)
    song = str(DATA / "midi" / "piano_scale.mid")
    arguments = [str(vocoded_voice), "--song", song, "--segments", "1", "--sampler", "ddim", "ancestral"]
    arguments += ["--steps", "3", "--reference-steps", "3", "--reference-segments", "1", "--threads", "1"]
    options = parse("quality", *arguments, "--json", str(tmp_path / "q.json"), "--plot", str(tmp_path / "q.png"))
    monkeypatch.setattr(quality, "ways", lambda *given: ways(*given)[:2])  # the recommended has 100 steps
    options.run(options)
    ddim, reference = Result.load(tmp_path / "q.json").cases
    assert (ddim.settings["sampler"], reference.settings["sampler"]) == ("ddim", "ancestral")
    assert {"note_f1", "mel_error", "mel_difference", "real_time_factor"} <= ddim.figures.keys()
    assert reference.figures["mel_difference"].median == 0.0 < ddim.figures["mel_difference"].median
    assert (tmp_path / "q.png").read_bytes().startswith(b"\x89PNG")


def test_cpu_time_is_that_of_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "CLOCK", clock.Clock())
    for command in ([], ["roofline"], ["peer"]):
        with pytest.raises(SamplingError, match="--threads 1"):
            clock.set_clock(parse(*command, "--cpu-time"))
        clock.set_clock(parse(*command, "--cpu-time", "--threads", "1"))
    assert clock.CLOCK.name == "CPU"
    assert clock.CLOCK.seconds(lambda: time.sleep(0.05)) < 0.04
