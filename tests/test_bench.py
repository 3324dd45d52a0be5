"""The benchmarks of speed and quality: figures come from repeats, results survive the disk."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import shutil
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_command import parse
from simulated_device import SimulatedDevice
from simulated_onnxruntime import SimulatedOnnxRuntime

from notewave.backends.device.shapes import MAX_BATCH
from notewave.backends.gpu.backend import GpuBackend
from notewave.backends.ort import providers
from notewave.backends.ort.executors import open_cuda
from notewave.benchmarks import clock, quality, speed
from notewave.benchmarks.clock import CLOCK
from notewave.benchmarks.quality import Way, ways
from notewave.benchmarks.report import Case, Result, Spread, compare
from notewave.benchmarks.speed import benchmark, launch, save_stage_plot, synthetic_song
from notewave.benchmarks.trial import Settings, StageTimer, Trial
from notewave.errors import ArgumentError, BackendError, NotewaveError, OutputError
from notewave.export.material.fluidsynth import SOUNDFONT
from notewave.session import Session
from notewave.song.dialect import EOS
from notewave.sound.mel import SEGMENT_SECONDS
from notewave.synthesizer import Synthesizer
from notewave.voice.folder import Voice

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def measured(reference_voice: Path) -> Result:
    """Two cases of two repeats: a song by itself, and two guided songs side by side."""
    alone = Settings(str(reference_voice), "cpu", threads=1, steps=3, tokens=20)
    cases = [alone, dataclasses.replace(alone, guidance=2.0, batch=2)]
    return benchmark(cases, segments=2, repeat=2)


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


def test_watching_leaves_the_song_as_it_was(reference_voice: Path) -> None:
    trial = Trial(Settings(str(reference_voice), "cpu", threads=1, steps=2, guidance=2.0), synthetic_song(5, 2))
    before = trial.synthesizer.spectrogram(trial.song, steps=2, guidance=2.0)
    timer = StageTimer()
    watched = trial.synthesizer.spectrogram(trial.song, steps=2, guidance=2.0, **timer.watch)
    np.testing.assert_array_equal(watched, before)
    runs = {"note_encoder": 2, "context_encoder": 1, "cross_attention": 2, "decoder": 4, "unconditional_decoder": 4}
    assert {name: len(seconds) for name, seconds in timer.seconds.items()} == runs
    assert len(timer.step_ends) == 4 and timer.step_ends == sorted(timer.step_ends)
    trial.play()
    np.testing.assert_array_equal(trial.synthesizer.spectrogram(trial.song, steps=2, guidance=2.0), before)


def test_the_overhead_of_a_step_is_what_its_networks_leave(
    reference_voice: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(CLOCK, "now", lambda: float(next(ticks)))  # a second passes whenever it is read
    trial = Trial(Settings(str(reference_voice), "cpu", threads=1, steps=3, guidance=2.0), synthetic_song(5, 2))
    trial.play()
    # From the end of a step to the next: its own reading, and two of each decoder's run, which lasts a second.
    assert trial.values["step_s"] == [5.0, 5.0]
    assert trial.values["decoder_s"] == trial.values["unconditional_decoder_s"] == [1.0, 1.0, 1.0]
    assert trial.values["overhead_s"] == [3.0, 3.0]
    assert trial.values["overhead_share"] == [0.6, 0.6]


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_the_time_embedding_is_timed_though_its_schedule_is_known(steps: int, reference_voice: Path) -> None:
    trial = Trial(Settings(str(reference_voice), "cpu", threads=1, steps=steps), synthetic_song(5, 1))
    known = StageTimer()
    trial.synthesizer.spectrogram(trial.song, steps=steps, **known.watch)
    assert "time_embedding" not in known.seconds
    for plays in (1, 2):
        trial.play()
        assert len(trial.values["time_embedding_s"]) == plays


def test_backends_that_launch_by_themselves_are_measured_by_their_slope(
    vocoded_voice: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Synthesizer.session

    def unwatched(synthesizer: Synthesizer, **options: Any) -> AbstractContextManager[Session]:
        return session(synthesizer, **options | {"on_network": None})

    monkeypatch.setattr(Synthesizer, "session", unwatched)
    trial = Trial(Settings(str(vocoded_voice), "cpu", threads=1, steps=4), synthetic_song(20, 2))
    trial.play()
    figures = {"load_s", "first_audio_s", "real_time_factor", "step_s", "encoders_s", "vocoder_s"}
    assert {name for name, values in trial.values.items() if values} == figures
    (step_s,), (encoders_s,), (vocoder_s,) = (trial.values[name] for name in ("step_s", "encoders_s", "vocoder_s"))
    segment_s = trial._segment_s(trial.synthesizer, steps=4)
    assert 0 < encoders_s + 4 * step_s < 100 * segment_s
    assert vocoder_s > 0


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimulatedDevice:
    """A simulated GPU with ONNX Runtime, where synthesizers open that are asked for the backend "cuda"."""
    device = SimulatedDevice()
    monkeypatch.setenv("NOTEWAVE_PLANS", str(tmp_path / "plans"))
    monkeypatch.setattr(providers, "_installed", lambda: {"onnxruntime-gpu": "1.31.1"})

    def open_backend(name: str, voice: Voice, threads: int | None, options: dict[str, Any]) -> GpuBackend:
        assert name == "cuda"
        return open_cuda(voice, options, device=device, runtime=SimulatedOnnxRuntime(device))

    monkeypatch.setattr("notewave.synthesizer.open_backend", open_backend)
    return device


def on_gpu(voice: Path, **given: Any) -> Settings:
    return Settings(str(voice), "cuda", steps=3, tokens=9, **{"options": (("precision", "fp32"),), **given})


def test_a_gpu_s_case_has_launches_memory_and_steps_without_graphs(gpu: SimulatedDevice, reference_voice: Path) -> None:
    case = on_gpu(reference_voice)
    (found,) = benchmark([case], segments=1, repeat=2).cases
    assert found.figures["launches_a_step"] == Spread(3, 3, 3, 1), "FiLM, the decoder and the sampler"
    for name in ("step_s", "eager_step_s"):
        assert found.figures[name].repeats == 2, name
    trial = Trial(case, synthetic_song(9, 1))
    trial.play()
    held = sum(memory.bytes.size for memory in gpu.memories)
    launched = len(gpu.graphs)
    trial.note_device(1, alone=True)
    assert trial.values["gpu_memory_mib"] == [held / (1 << 20)]
    assert len(gpu.graphs) == launched, "none more for what runs without them"
    assert sum(memory.bytes.size for memory in gpu.memories) == held, "the second synthesizer was let go of"
    table = Result("bench", {}, {}, [trial.case()]).table(speed.COLUMNS)
    assert {"eager step", "launches a step", "gpu memory"} <= {line.split("  ")[0] for line in table.splitlines()}


@pytest.mark.usefixtures("gpu")
def test_without_graphs_there_is_nothing_to_compare_a_gpu_s_steps_with(reference_voice: Path) -> None:
    case = on_gpu(reference_voice, guidance=2.0)
    eager = dataclasses.replace(case, options=(*case.options, ("graphs", False)))
    figures = [found.figures for found in benchmark([case, eager], segments=1, repeat=1).cases]
    assert figures[0]["launches_a_step"].median == 4, "and a copy of the mel for the pass without notes"
    assert not {"launches_a_step", "eager_step_s"} & figures[1].keys() and "step_s" in figures[1]
    assert not any("gpu_memory_mib" in found for found in figures), "two cases share the GPU's memory"


@pytest.mark.usefixtures("gpu")
def test_the_largest_batch_sings_on_a_gpu(reference_voice: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("notewave.benchmarks.trial.WARM_SEGMENTS", 0)  # they take long here
    trial = Trial(on_gpu(reference_voice, batch=MAX_BATCH, guidance=2.0), synthetic_song(9, 1))
    trial.play()
    assert {"first_audio_s", "real_time_factor", "step_s"} <= {name for name, values in trial.values.items() if values}
    assert trial.case().settings["batch"] == 16
    with pytest.raises(NotewaveError, match="17 songs were given at once"):
        Trial(on_gpu(reference_voice, batch=MAX_BATCH + 1), synthetic_song(9, 1))


@pytest.mark.usefixtures("gpu")
def test_a_voice_of_one_step_has_its_step_timed_all_the_same(
    reference_voice: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = Trial(on_gpu(reference_voice), synthetic_song(9, 1))
    trial.steps = 1
    monkeypatch.setattr(trial, "_segment_s", lambda synthesizer, steps: 10.0 + 3.0 * steps)
    trial._note_slope()
    assert (trial.values["step_s"], trial.values["encoders_s"]) == ([3.0], [10.0])


def test_batches_sing_what_each_song_alone_would(reference_voice: Path) -> None:
    settings = Settings(str(reference_voice), "cpu", threads=1, sampler="ancestral", steps=2, batch=2)
    trial = Trial(settings, synthetic_song(9, 1))
    with trial.synthesizer.session(seeds=range(2), sound=False, **settings.sampling) as session:
        (together,) = session.sing([trial.song * 2])
    assert together.mel is not None
    for seed, mel in enumerate(together.mel):
        alone = trial.synthesizer.spectrogram(trial.song, seed=seed, **settings.sampling)
        np.testing.assert_allclose(alone, mel, atol=1e-4)


def test_songs_side_by_side_are_heard_to_their_end(vocoded_voice: Path) -> None:
    settings = Settings(str(vocoded_voice), "cpu", threads=1, steps=2, batch=2)
    trial = Trial(settings, synthetic_song(9, 3))
    trial.play()
    assert len(trial.values["vocoder_s"]) == len(trial.values["real_time_factor"]) == 1
    assert trial.values["first_audio_s"][0] < trial.values["real_time_factor"][0] * 3 * 2 * SEGMENT_SECONDS


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
        with pytest.raises(ArgumentError):
            synthetic_song(tokens, segments)


def test_counts_that_measure_nothing_are_refused(reference_voice: Path) -> None:
    settings = Settings(str(reference_voice), "cpu", threads=1)
    for repeat, segments in ((0, 1), (1, 0)):
        with pytest.raises(ArgumentError, match=r"0 (repeats|segments) measure nothing"):
            benchmark([settings], segments=segments, repeat=repeat)
    with pytest.raises(ArgumentError, match="0 songs side by side"):
        benchmark([dataclasses.replace(settings, batch=0)], repeat=1)
    for command in ("roofline", "peer"):
        with pytest.raises(ArgumentError, match="0 repeats"):
            (options := parse(command, "--repeat", "0")).run(options)
    with pytest.raises(ArgumentError, match="0 songs"):
        quality.measure([str(reference_voice)], most_songs=0)


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


@pytest.mark.parametrize(
    "changes",
    [
        {"machine": 3},
        {"machine": {"torch": []}},
        {"voices": None},
        {"cases": [{"settings": [], "figures": {}}]},
        {"cases": [{"settings": {"steps": {}}, "figures": {}}]},
        {"cases": [{"settings": {}, "figures": {"step_s": 3}}]},
        {"cases": [{"settings": {}, "figures": {"step_s": {"median": "1", "low": 1, "high": 1, "repeats": 1}}}]},
        {"cases": [{"settings": {}, "figures": {"step_s": {"median": math.inf, "low": 1, "high": 1, "repeats": 1}}}]},
        {"cases": [{"settings": {}, "figures": {"step_s": {"median": 1}}}]},
        {"more": 1},
    ],
    ids=str,
)
def test_results_with_other_contents_are_refused_before_they_are_compared(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    result(step_s=1.0).save(tmp_path / "a.json")
    content = json.loads((tmp_path / "a.json").read_text())
    (tmp_path / "a.json").write_text(json.dumps(content | changes))
    with pytest.raises(ArgumentError, match="no result of a benchmark"):
        Result.load(tmp_path / "a.json")


def test_tables_tell_cases_apart_and_show_units(measured: Result) -> None:
    lines = measured.table().splitlines()
    assert lines[0].split() == ["guidance", "1.0", "2.0"]
    assert next(line for line in lines if line.startswith("batch")).split() == ["batch", "1", "2"]
    assert "unconditional decoder" in measured.table()
    assert result(step_s=0.25, launch_s=2e-6, peak_memory_mib=80.0, of_ceiling=0.5).table().splitlines()[2:] == [
        "step         250 ±25 ms",
        "launch        2 ±0.2 µs",
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
    case = Settings(str(reference_voice), "cpu", threads=1, options=(("precision", "bf16"), ("graphs", False)))
    with pytest.raises(BackendError, match="backend 'cpu' has no options, and was given 'precision', 'graphs'"):
        Trial(case, synthetic_song(5, 1))
    anywhere = dataclasses.replace(case, backend="auto", options=(("device_id", 99),))  # a GPU that no machine has
    trial = Trial(anywhere, synthetic_song(5, 1))
    assert trial.case().settings["options"] == "device_id=99"


def test_every_subcommand_parses() -> None:
    for command in ("roofline", "peer", "quality"):
        assert parse(command, "--threads", "2").run.__module__.endswith(command)
    assert parse().run is speed.run


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
        with pytest.raises(ArgumentError, match="--threads 1"):
            clock.set_clock(parse(*command, "--cpu-time"))
        clock.set_clock(parse(*command, "--cpu-time", "--threads", "1"))
    assert clock.CLOCK.name == "CPU"
    assert clock.CLOCK.seconds(lambda: time.sleep(0.05)) < 0.04
