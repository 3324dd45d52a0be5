"""diffusers' SpectrogramDiffusionPipeline on this engine: its results, its manners, and what it makes of checkpoints.

``data/reference/reference.npz`` and ``pipeline.npz`` hold what diffusers 0.26.3's own pipeline gave for the checkpoint
beside them, on the CPU with PyTorch 2.13.0 and a ``torch.Generator``: in the first with seed 1234 and 4 steps, in the
second, by names of sampler_steps_seed, every eighth frame.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from small_hub import Hub, serving_hub

import notewave
from notewave import ArgumentError, BackendError, Dialect, MidiError, SamplingError, Synthesizer, Voice, VoiceError
from notewave.pipeline import (
    AudioPipelineOutput,
    DDIMScheduler,
    DDPMScheduler,
    MidiProcessor,
    PipelineError,
    SpectrogramDiffusionPipeline,
)
from notewave.pipeline.schedulers import scheduler_from
from notewave.sound.mel import FRAMES, HOP, MELS

DATA = Path(__file__).parent / "data"
CHECKPOINT = DATA / "reference" / "checkpoint"
REFERENCE = dict(np.load(DATA / "reference" / "reference.npz"))
RECORDED = dict(np.load(DATA / "reference" / "pipeline.npz"))
TOKENS = REFERENCE["tokens"].tolist()  # two segments, padded with 0
KINDS = {"ddpm": DDPMScheduler, "ddim": DDIMScheduler}
NEW, OLD = "b" * 40, "a" * 40  # commits on a hub
QUICK = {"num_inference_steps": 2, "output_type": "mel"}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where exported checkpoints are kept."""
    folder = tmp_path_factory.mktemp("cache") / "exported"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NOTEWAVE_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def exported() -> SpectrogramDiffusionPipeline:
    """The reference checkpoint, as code for diffusers loads it."""
    return SpectrogramDiffusionPipeline.from_pretrained(CHECKPOINT)


@pytest.fixture
def pipe(exported: SpectrogramDiffusionPipeline) -> SpectrogramDiffusionPipeline:
    """A pipeline that may be changed, but for its networks."""
    return SpectrogramDiffusionPipeline(**exported.components)


@pytest.fixture
def sounding(vocoded_voice: Path) -> SpectrogramDiffusionPipeline:
    """A pipeline of a voice with a vocoder."""
    return SpectrogramDiffusionPipeline.from_pretrained(vocoded_voice)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def kept(cache: Path) -> list[str]:
    """Names of all that is kept, what is left of failures too."""
    return sorted(path.name for path in cache.iterdir()) if cache.exists() else []


def save_melgan(folder: Path) -> np.ndarray:
    """Write a vocoder as published checkpoints have it: a frame's samples are tanh(mel @ weights), which it returns."""
    weights = np.random.default_rng(0).normal(0.0, 0.01, (MELS, HOP)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["input_features", "weights"], ["frames"]),
            helper.make_node("Tanh", ["frames"], ["samples"]),
            helper.make_node("Flatten", ["samples"], ["audio"], axis=1),
        ],
        "melgan",
        [helper.make_tensor_value_info("input_features", TensorProto.FLOAT, [1, "T", MELS])],
        [helper.make_tensor_value_info("audio", TensorProto.FLOAT, [1, "n"])],
        [numpy_helper.from_array(weights, "weights")],
    )
    folder.mkdir()
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "model.onnx"
    )
    return weights


@pytest.mark.parametrize("sampler", list(KINDS))
def test_results_are_those_of_diffusers(pipe: SpectrogramDiffusionPipeline, sampler: str) -> None:
    pipe.scheduler = KINDS[sampler].from_config(pipe.scheduler.config)
    mel = pipe(TOKENS, seeded(1234), num_inference_steps=4, output_type="mel").audios
    assert mel.dtype == np.float32
    np.testing.assert_allclose(mel, REFERENCE[f"{sampler}_mel"], rtol=0, atol=2e-3)


@pytest.mark.parametrize("run", list(RECORDED))
def test_results_are_those_of_diffusers_at_other_steps_and_seeds(pipe: SpectrogramDiffusionPipeline, run: str) -> None:
    sampler, steps, seed = run.split("_")
    pipe.scheduler = KINDS[sampler].from_config(pipe.scheduler.config)
    mel = pipe(TOKENS, seeded(int(seed)), num_inference_steps=int(steps), output_type="mel").audios
    np.testing.assert_allclose(mel[0, ::8], RECORDED[run], rtol=0, atol=2e-3)


def test_tokens_are_those_of_diffusers(midi_folder: Path) -> None:
    processor, known = MidiProcessor(), np.load(midi_folder / "tokens.npz")
    for name in ("ensemble", "drums_only", "sustain_pedal"):
        path = midi_folder / f"{name}.mid"
        tokens = processor(path)
        np.testing.assert_array_equal(tokens, known[name])
        assert processor(str(path)) == processor(path.read_bytes()) == tokens
        assert all(type(token) is int for segment in tokens for token in segment)
    with pytest.raises(MidiError, match="nowhere"):
        processor(midi_folder / "nowhere.mid")


def test_tokens_are_taken_in_any_form(pipe: SpectrogramDiffusionPipeline, midi_folder: Path) -> None:
    song = midi_folder / "piano_scale.mid"
    expected = pipe(MidiProcessor()(song), 5, **QUICK).audios
    padded = np.array(MidiProcessor()(song))
    for tokens in (notewave.tokenize(song), padded, tuple(padded), song, song.read_bytes(), notewave.read(song)):
        np.testing.assert_array_equal(pipe(tokens, 5, **QUICK).audios, expected)


@pytest.mark.parametrize("tokens", [[], [[]], [[0, 0]], [["x"]], [[1, 2], [3]], [5], [[1536, 1]], [[4, 0, 1]]], ids=str)
def test_what_are_no_tokens(pipe: SpectrogramDiffusionPipeline, tokens: Any) -> None:
    with pytest.raises(MidiError, match="segment"):
        pipe(tokens, **QUICK)


def test_audio_is_the_whole_mel_s_by_the_vocoder(sounding: SpectrogramDiffusionPipeline, vocoded_voice: Path) -> None:
    mel = sounding(TOKENS, seeded(3), **QUICK).audios
    out = sounding(TOKENS, seeded(3), num_inference_steps=2)
    (audio,) = out.audios
    assert audio.dtype == np.float32 and audio.shape == (1, 2 * FRAMES * HOP)
    expected = Synthesizer(vocoded_voice, backend="cpu").vocode(mel[0]).samples
    np.testing.assert_array_equal(audio[0], expected)
    (as_tuple,) = sounding(TOKENS, seeded(3), num_inference_steps=2, return_dict=False)
    np.testing.assert_array_equal(as_tuple[0], audio)


def test_an_output_is_told_by_name_and_by_place() -> None:
    out = AudioPipelineOutput(audios="sound")
    assert out.audios == out["audios"] == out[0] == out.to_tuple()[0] == "sound"
    assert out[:1] == out.to_tuple() == ("sound",)
    with pytest.raises(KeyError):
        out["images"]
    with pytest.raises(IndexError):
        out[1]


def test_a_batch_is_each_song_by_itself(pipe: SpectrogramDiffusionPipeline, midi_folder: Path) -> None:
    songs = [MidiProcessor()(midi_folder / "ensemble.mid")[:count] for count in (2, 1)]
    options = {"num_inference_steps": 2, "output_type": "mel"}
    alone = [pipe(song, seed, **options).audios for song, seed in zip(songs, (5, 6), strict=True)]
    for made in (pipe.batch(songs, [5, 6], **options).audios, pipe.batch(tuple(songs), (5, 6), **options).audios):
        assert [mel.shape for mel in made] == [(1, 512, 128), (1, 256, 128)]
        for mel, one in zip(made, alone, strict=True):
            np.testing.assert_array_equal(mel, one)
    assert pipe.batch([], **options).audios == []
    with pytest.raises(PipelineError, match="1 generators were given for 2 songs"):
        pipe.batch(songs, [5], **options)
    with pytest.raises(PipelineError, match="must be a list"):
        pipe.batch(midi_folder / "ensemble.mid")  # type: ignore[arg-type]


def test_voices_of_other_families(frames_voice: Path, tmp_path: Path, midi_folder: Path) -> None:
    """One that writes frame by frame, which has no scheduler, and one that is told of no segment before."""
    from notewave.export.checkpoints.seeded import RANDOM_SIZES
    from notewave.export.convert import export_voice
    from notewave.export.networks import SpectrogramDiffusion
    from notewave.sampling.options import Sampling
    from notewave.sampling.schedule import NoiseSchedule

    frames = SpectrogramDiffusionPipeline.from_pretrained(frames_voice)
    assert frames.scheduler is None
    (audio,) = frames.batch([midi_folder / "dense.mid"]).audios
    song = Synthesizer(frames_voice, backend="cpu")
    np.testing.assert_allclose(audio[0], song.render(midi_folder / "dense.mid").samples, rtol=0, atol=1e-2)
    size = dataclasses.replace(RANDOM_SIZES["tiny"], context_encoder_layers=0)
    told = {"name": "alone", "licence": "l", "provenance": "p", "prediction": "x0", "sampling": Sampling("ddim", 2)}
    voice = export_voice(SpectrogramDiffusion(size), tmp_path / "voice", schedule=NoiseSchedule(), **told)
    alone = SpectrogramDiffusionPipeline.from_pretrained(voice.folder)
    mel = alone(midi_folder / "ensemble.mid", 3, num_inference_steps=1, output_type="mel").audios
    expected = Synthesizer(voice.folder, backend="cpu").spectrogram(
        midi_folder / "ensemble.mid", sampler="ddpm", steps=1, guidance=1.0, seed=3
    )
    np.testing.assert_allclose(mel[0, :256], expected[:256], rtol=0, atol=1e-4)


def test_the_callback_hears_of_every_nth_segment(pipe: SpectrogramDiffusionPipeline) -> None:
    heard: list[tuple[int, np.ndarray]] = []
    mel = pipe(TOKENS[:1] * 3, seeded(3), **QUICK, callback=lambda *what: heard.append(what), callback_steps=2).audios
    assert [index for index, _ in heard] == [0, 2]
    for index, so_far in heard:
        np.testing.assert_array_equal(so_far, mel[:, : (index + 1) * FRAMES])


@pytest.mark.parametrize(("kind", "draws"), [(DDPMScheduler, 2), (DDIMScheduler, 1)])
def test_noise_is_drawn_no_sooner_than_its_segment_needs_it(
    pipe: SpectrogramDiffusionPipeline, kind: type, draws: int
) -> None:
    pipe.scheduler = kind.from_config(pipe.scheduler.config)
    generator, other = seeded(3), seeded(3)

    def compare(*_: object) -> None:
        for _draw in range(draws):
            torch.randn((1, FRAMES, MELS), generator=other)
        assert torch.equal(generator.get_state(), other.get_state())

    pipe(TOKENS, generator, **QUICK, callback=compare)


def test_noise_is_from_any_generator(pipe: SpectrogramDiffusionPipeline) -> None:
    expected = pipe(TOKENS, seeded(3), **QUICK).audios
    np.testing.assert_array_equal(pipe(TOKENS, [seeded(3)], **QUICK).audios, expected)
    torch.manual_seed(3)
    np.testing.assert_array_equal(pipe(TOKENS, **QUICK).audios, expected)
    synthesizer = Synthesizer(pipe.voice.folder, backend="cpu")
    tokens = [[token for token in segment if token] for segment in TOKENS]
    known = synthesizer.spectrogram(list(map(np.array, tokens)), sampler="ddpm", steps=2, guidance=1.0, seed=7)
    np.testing.assert_allclose(pipe(TOKENS, 7, **QUICK).audios[0], known, rtol=0, atol=1e-3)
    ours = [pipe(TOKENS, np.random.default_rng(3), **QUICK).audios for _ in range(2)]
    np.testing.assert_array_equal(*ours)
    assert np.abs(ours[0] - expected).max() > 0.1


def test_noise_of_half_precision_is_another_as_in_diffusers(exported: SpectrogramDiffusionPipeline) -> None:
    half = SpectrogramDiffusionPipeline.from_pretrained(exported.voice.folder).to(torch.float16)
    generator = seeded(3)
    shape = (1, FRAMES, MELS)
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float16) for _ in range(2)]
    noise = np.concatenate([one.float().numpy() for one in drawn])
    tokens = [np.array([token for token in TOKENS[0] if token])]
    expected = Synthesizer(exported.voice.folder, backend="cpu").spectrogram(
        tokens, sampler="ddpm", steps=2, guidance=1.0, noise=noise
    )
    np.testing.assert_array_equal(half(TOKENS[:1], seeded(3), **QUICK).audios[0], expected)


@pytest.mark.parametrize("generator", ["seed", -1, 2**64, 1.5, True, [], object()], ids=repr)
def test_what_is_no_generator(pipe: SpectrogramDiffusionPipeline, generator: Any) -> None:
    with pytest.raises(PipelineError, match="generator is"):
        pipe(TOKENS, generator, **QUICK)


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        *[({"callback_steps": steps}, "callback_steps is") for steps in (0, -1, 1.0, None, "1")],
        ({"callback": 3}, "callback is 3"),
        ({"output_type": "np"}, "output_type is 'np'"),
        ({"output_type": None}, "output_type is None"),
        ({"output_type": "numpy"}, "no vocoder"),
    ],
)
def test_arguments_that_diffusers_refuses_with_a_valueerror(
    pipe: SpectrogramDiffusionPipeline, options: dict[str, Any], fact: str
) -> None:
    generator = seeded(3)
    with pytest.raises(ValueError, match=fact) as caught:
        pipe(TOKENS, generator, **{**QUICK, **options})
    assert isinstance(caught.value, ArgumentError)
    assert torch.equal(generator.get_state(), seeded(3).get_state()), "nothing was begun"


@pytest.mark.parametrize("steps", [0, 1001, 2.5, None, "4"])
def test_steps_that_no_schedule_has(pipe: SpectrogramDiffusionPipeline, steps: Any) -> None:
    with pytest.raises(SamplingError, match="steps"):
        pipe(TOKENS, output_type="mel", num_inference_steps=steps)


def test_progress_is_shown_only_where_it_is_asked_for(
    pipe: SpectrogramDiffusionPipeline, capfd: pytest.CaptureFixture[str]
) -> None:
    pipe(TOKENS, 3, **QUICK)
    pipe.set_progress_bar_config(desc="singing")
    pipe(TOKENS, 3, **QUICK)
    assert capfd.readouterr() == ("", "")
    pipe.set_progress_bar_config(desc="singing", disable=False)
    pipe(TOKENS, 3, **QUICK)
    out, err = capfd.readouterr()
    assert not out
    assert err.count("singing: 100%") == len(TOKENS), "a bar for each segment"
    assert "2/2" in err


@pytest.mark.parametrize("features", [np.float32([[-12.0, 0.0, 4.5]]), torch.tensor([[-12.0, 0.0, 4.5]])], ids=type)
def test_features_are_scaled_as_in_diffusers(pipe: SpectrogramDiffusionPipeline, features: Any) -> None:
    scaled = pipe.scale_features(features)
    np.testing.assert_allclose(scaled, [[-1.0628, 0.4843, 1.06446]], atol=1e-4)
    np.testing.assert_allclose(pipe.scale_to_features(scaled), features, atol=1e-5)
    np.testing.assert_allclose(pipe.scale_features(features, [0.0, 10.0], clip=True), [[0, 7.4215, 10]], atol=1e-3)
    np.testing.assert_allclose(pipe.scale_to_features(scaled, clip=True), [[np.log(1e-5), 0.0, 4.0]], atol=1e-5)


def test_a_checkpoint_is_exported_once(exported: SpectrogramDiffusionPipeline, cache: Path) -> None:
    """Then it is used without PyTorch, in any process."""
    before = kept(cache)
    program = (
        "import sys\nfrom notewave.pipeline import SpectrogramDiffusionPipeline\n"
        "pipe = SpectrogramDiffusionPipeline.from_pretrained(sys.argv[1])\n"
        "mel = pipe([[1134, 300, 1]], num_inference_steps=1, output_type='mel').audios\n"
        "print(pipe.voice.folder, mel.shape, 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", program, CHECKPOINT]
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100).stdout
    assert out == f"{exported.voice.folder} (1, {FRAMES}, {MELS}) False\n"
    assert kept(cache) == before, "and nothing beside it"


def test_a_checkpoint_that_changed_is_exported_anew(cache: Path, tmp_path: Path) -> None:
    """Its scheduler is what its settings say. One that cannot be exported leaves nothing."""
    copy = Path(shutil.copytree(CHECKPOINT, tmp_path / "copy"))
    config = copy / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("DDPM", "DDIM").replace('"steps_offset": 0', '"steps_offset": 1'))
    weights = save_melgan(copy / "melgan")
    pipe = SpectrogramDiffusionPipeline.from_pretrained(copy)
    mel = np.random.default_rng(0).normal(-4.0, 2.0, (1, 300, MELS)).astype(np.float32)
    (audio,) = pipe.melgan(input_features=mel)
    np.testing.assert_allclose(audio, np.tanh(mel @ weights).reshape(1, -1), rtol=0, atol=1e-5)
    assert type(pipe.scheduler) is DDIMScheduler and pipe.scheduler.config.steps_offset == 1
    assert SpectrogramDiffusionPipeline.from_pretrained(str(copy)).voice.folder == pipe.voice.folder
    before = kept(cache)
    (copy / "decoder" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(VoiceError, match="Download the whole checkpoint"):
        SpectrogramDiffusionPipeline.from_pretrained(copy)
    assert kept(cache) == before


def test_processes_that_export_at_once_get_a_whole_voice_each(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom notewave.pipeline import SpectrogramDiffusionPipeline\n"
        "print('ready', flush=True)\nsys.stdin.readline()\n"
        "pipe = SpectrogramDiffusionPipeline.from_pretrained(sys.argv[1])\n"
        "print(pipe.voice.folder, pipe([[1134, 300, 1]], 3, 1, output_type='mel').audios.sum())"
    )
    environment = {**os.environ, "NOTEWAVE_CACHE": str(tmp_path / "new")}
    command = [sys.executable, "-c", program, CHECKPOINT]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    processes = [subprocess.Popen(command, env=environment, text=True, **pipes) for _ in range(2)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate(timeout=100)[0] for process in processes]
    assert said[0] == said[1]
    (place,) = (tmp_path / "new").iterdir()
    assert Voice.load(place / "checkpoint").name == "checkpoint"


@pytest.mark.parametrize("source", ["nowhere", "no/such/thing", "zero\0byte", "a" * 300, b"bytes", 3], ids=repr)
def test_sources_that_lead_nowhere(source: Any) -> None:
    with pytest.raises(VoiceError, match="no voice or checkpoint"):
        SpectrogramDiffusionPipeline.from_pretrained(source)


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path) -> None:
    program = (
        "import sys\nsys.modules['torch'] = None\nfrom notewave import ToolError\n"
        "from notewave.pipeline import SpectrogramDiffusionPipeline\n"
        "try:\n    SpectrogramDiffusionPipeline.from_pretrained(sys.argv[1])\n"
        "except ToolError as error:\n    print(error)"
    )
    environment = {**os.environ, "NOTEWAVE_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", program, CHECKPOINT]
    out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=100).stdout
    assert "torch is not installed" in out and "Install notewave[export]." in out


def test_voices_are_taken_by_name_and_folder(
    reference_voice: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = kept(cache)
    monkeypatch.setenv("NOTEWAVE_VOICES", str(tmp_path))
    (tmp_path / "mine").symlink_to(reference_voice)
    for source in ("mine", reference_voice, str(reference_voice)):
        pipe = SpectrogramDiffusionPipeline.from_pretrained(source)
        mel = pipe(TOKENS, seeded(1234), num_inference_steps=4, output_type="mel").audios
        np.testing.assert_allclose(mel, REFERENCE["ddpm_mel"], rtol=0, atol=2e-3)
    assert kept(cache) == before


def test_a_voice_of_another_dialect_sings_songs_and_tokens_in_it(
    reference_voice: Path, midi_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(reference_voice, tmp_path / "voice"))
    voice = dataclasses.replace(Voice.load(folder), dialect=Dialect(velocities=8, programs="gm"))
    voice.save_description()
    pipe = SpectrogramDiffusionPipeline.from_pretrained(folder)
    song = midi_folder / "piano_scale.mid"
    with pytest.raises(MidiError, match=r"dialect=voice\.dialect"):
        pipe(MidiProcessor()(song), **QUICK)
    tokens = notewave.tokenize(song, dialect=pipe.voice.dialect)
    mel = pipe(song, 5, **QUICK).audios
    np.testing.assert_array_equal(pipe(tokens, 5, **QUICK).audios, mel)


def test_dtypes_say_how_weights_are_stored(exported: SpectrogramDiffusionPipeline) -> None:
    for dtype in (None, "auto", "float32", torch.float32):
        same = SpectrogramDiffusionPipeline.from_pretrained(CHECKPOINT, torch_dtype=dtype)
        assert same.voice.folder == exported.voice.folder and same.voice.precision == "fp32"
    halves = [
        SpectrogramDiffusionPipeline.from_pretrained(CHECKPOINT, torch_dtype=dtype)
        for dtype in (torch.float16, torch.half, torch.bfloat16)
    ]
    assert {pipe.voice.precision for pipe in halves} == {"fp16"} and len({pipe.voice.folder for pipe in halves}) == 1
    for dtype in (torch.float64, torch.int8, "fp16", 16):
        with pytest.raises(PipelineError, match="the dtype is"):
            SpectrogramDiffusionPipeline.from_pretrained(CHECKPOINT, torch_dtype=dtype)


def test_keywords_that_would_change_the_result_are_refused(exported: SpectrogramDiffusionPipeline) -> None:
    harmless = {"low_cpu_mem_usage": True, "use_safetensors": False, "device_map": "auto", "variant": None}
    pipe = SpectrogramDiffusionPipeline.from_pretrained(CHECKPOINT, **harmless)
    assert pipe.voice.folder == exported.voice.folder
    for refused in ({"variant": "fp16"}, {"custom_pipeline": "x"}, {"from_flax": True}, {"unheard_of": 1}):
        with pytest.raises(PipelineError, match=next(iter(refused))):
            SpectrogramDiffusionPipeline.from_pretrained(CHECKPOINT, **refused)


def test_components_may_be_given_in_the_place_of_the_checkpoint_s(vocoded_voice: Path) -> None:
    scheduler = DDIMScheduler(beta_schedule="squaredcos_cap_v2")
    pipe = SpectrogramDiffusionPipeline.from_pretrained(vocoded_voice, melgan=None, scheduler=scheduler)
    assert pipe.melgan is None and pipe.scheduler is scheduler
    with pytest.raises(PipelineError, match="no vocoder"):
        pipe(TOKENS)
    pipe.melgan = lambda input_features: [input_features.sum(axis=2)]
    assert pipe(TOKENS, 3, 1).audios[0].shape == (1, 2 * FRAMES)


def test_pipelines_share_networks(
    exported: SpectrogramDiffusionPipeline, sounding: SpectrogramDiffusionPipeline
) -> None:
    other = SpectrogramDiffusionPipeline(**sounding.components)
    assert other.components == sounding.components and other.device == sounding.device == "cpu"
    other.scheduler = DDIMScheduler.from_config(other.scheduler.config)
    assert sounding.config.scheduler == ("diffusers", "DDPMScheduler")
    assert other.config["scheduler"] == ("diffusers", "DDIMScheduler")
    assert exported.config.melgan == (None, None)
    for name, part in (("decoder", torch.nn.Identity()), ("decoder", None), ("notes_encoder", sounding.decoder)):
        with pytest.raises(PipelineError, match=f"{name} is "):
            SpectrogramDiffusionPipeline(**{**sounding.components, name: part})
    with pytest.raises(PipelineError, match="several pipelines"):
        SpectrogramDiffusionPipeline(**{**sounding.components, "decoder": exported.decoder})


def test_a_pipeline_is_moved_as_in_diffusers(pipe: SpectrogramDiffusionPipeline) -> None:
    for words in (("cpu",), (torch.device("cpu"),), ("cpu", torch.float32), (torch.float32,), (None,)):
        assert pipe.to(*words) is pipe
    assert pipe.to(device="cpu", dtype=torch.float32).device == "cpu"
    assert (pipe.device.type, pipe.device.index, torch.Generator(device=pipe.device).device.type) == (
        "cpu",
        None,
        "cpu",
    )
    for words in (("tpu",), ("cuda:x",), ("mps",), ("cpu", "cpu"), (torch.float64,), (1.5,)):
        with pytest.raises(PipelineError):
            pipe.to(*words)


@pytest.mark.parametrize("device", ["cuda", "cuda:999", torch.device("cuda", 99), 999], ids=repr)
def test_a_gpu_that_is_not_there(pipe: SpectrogramDiffusionPipeline, device: Any) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("it is there")
    with pytest.raises(BackendError, match=r"cannot run on cuda:\d+ in float32 \(tensorrt: .* cuda: "):
        pipe.to(device)
    assert pipe.device == "cpu" and pipe(TOKENS[:1], 3, **QUICK).audios.shape == (1, FRAMES, MELS)


def test_schedulers_are_made_of_one_another_as_in_diffusers(pipe: SpectrogramDiffusionPipeline) -> None:
    ddpm = pipe.scheduler
    assert type(ddpm) is DDPMScheduler and ddpm.config.variance_type == "fixed_large"
    ddim = DDIMScheduler.from_config(ddpm.config, clip_sample_range=2.0)
    assert ddim.config["_class_name"] == "DDIMScheduler" and ddim.config.clip_sample_range == 2.0
    assert ddim.config.set_alpha_to_one is True
    assert DDPMScheduler.from_config(ddim.config).config.variance_type == "fixed_large", "it is kept for the other"
    assert DDPMScheduler().config.variance_type == "fixed_small"
    for make in (lambda: DDPMScheduler(eta=1.0), lambda: DDIMScheduler.from_config(ddpm.config, eta=1.0)):
        with pytest.raises(PipelineError, match="no setting eta"):
            make()
    with pytest.raises(PipelineError, match="configuration is None"):
        DDIMScheduler.from_config(None)
    with pytest.raises(AttributeError, match="eta"):
        _ = ddpm.config.eta


def test_schedulers_of_others_are_read_by_their_settings(pipe: SpectrogramDiffusionPipeline) -> None:
    """As diffusers' are, whose objects have much else; settings that are left out are at diffusers' defaults."""
    expected = pipe(TOKENS, 3, **QUICK).audios
    config = {"beta_schedule": "squaredcos_cap_v2", "variance_type": "fixed_large", "skip_prk_steps": True}
    pipe.scheduler = type("DDPMScheduler", (), {"config": config})()
    np.testing.assert_array_equal(pipe(TOKENS, 3, **QUICK).audios, expected)
    for other in (SimpleNamespace(config=config), None, type("DDPMScheduler", (), {})(), DDPMScheduler):
        pipe.scheduler = other
        with pytest.raises(PipelineError, match="the scheduler is"):
            pipe(TOKENS, 3, **QUICK)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (DDPMScheduler, {"variance_type": "fixed_small"}),
        (DDPMScheduler, {"beta_schedule": "linear"}),
        (DDPMScheduler, {"num_train_timesteps": 500}),
        (DDPMScheduler, {"prediction_type": "v_prediction"}),
        (DDPMScheduler, {"timestep_spacing": "trailing"}),
        (DDPMScheduler, {"trained_betas": np.array([0.1, 0.2])}),
        (DDIMScheduler, {"clip_sample": False}),
        (DDIMScheduler, {"clip_sample_range": 2.0}),
        (DDIMScheduler, {"thresholding": True}),
        (DDIMScheduler, {"steps_offset": 1}),
        (DDIMScheduler, {"set_alpha_to_one": False}),
        (DDIMScheduler, {"rescale_betas_zero_snr": True}),
    ],
    ids=str,
)
def test_settings_with_which_the_result_would_be_another_are_refused(
    pipe: SpectrogramDiffusionPipeline, kind: type, change: dict[str, Any]
) -> None:
    pipe.scheduler = kind.from_config(pipe.scheduler.config, **change)
    with pytest.raises(PipelineError, match=f"the scheduler says {next(iter(change))} = "):
        pipe(TOKENS, 3, **QUICK)


def test_a_checkpoint_s_scheduler_that_there_is_not_here() -> None:
    assert type(scheduler_from({"_class_name": "DDIMScheduler"})) is DDIMScheduler
    for config in ({"_class_name": "PNDMScheduler"}, {"_class_name": ["DDIMScheduler"]}, {}):
        with pytest.raises(PipelineError, match="which this engine has not"):
            scheduler_from(config)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A hub with two commits of a checkpoint, the older of which lacks weights; the environment of its clients."""
    repository = tmp_path / "hub" / "owner" / "name"
    for commit in (NEW, OLD):
        shutil.copytree(CHECKPOINT, repository / commit)
    (repository / OLD / "decoder" / "diffusion_pytorch_model.safetensors").unlink()
    with serving_hub(tmp_path / "hub", {"main": NEW, "old": OLD}) as environment:
        yield {**environment, "NOTEWAVE_CACHE": str(tmp_path / "exported")}


def load_from(hub: dict[str, str], *loads: dict[str, Any], **settings: str) -> list[list[str]]:
    """What came of loading owner/name with each keywords, in a process of its own, whose hub is ours."""
    program = (
        "import json, sys\nfrom notewave import NotewaveError\n"
        "from notewave.pipeline import SpectrogramDiffusionPipeline\n"
        "for keywords in json.loads(sys.argv[1]):\n"
        "    try:\n"
        "        voice = SpectrogramDiffusionPipeline.from_pretrained('owner/name', **keywords).voice\n"
        "        print(json.dumps([str(voice.folder), voice.provenance]))\n"
        "    except NotewaveError as error:\n"
        "        print(json.dumps([type(error).__name__, str(error)]))"
    )
    command = [sys.executable, "-c", program, json.dumps(loads)]
    out = subprocess.run(command, env=hub | settings, capture_output=True, text=True, check=True, timeout=100)
    return list(map(json.loads, out.stdout.splitlines()))


def test_a_revision_of_the_hub_is_exported_once(hub: dict[str, str]) -> None:
    (new, old) = load_from(hub, {}, {"revision": "old"})
    folder = Path(new[0])
    assert new[1] == f"Exported from the checkpoint owner/name of the Hugging Face hub, at {NEW}."
    assert folder.name == "name" and Voice.load(folder).name == "name"
    assert old[0] == "VoiceError" and "Download the whole checkpoint" in old[1]
    assert kept(Hub.root.parent / "exported") == [folder.parent.name]
    Hub.asked.clear()
    assert load_from(hub, {}) == [new]
    assert not Hub.asked, "what is kept is not fetched again"
    Hub.heard.clear()
    assert load_from(hub, {"local_files_only": True}) == [new]
    assert not Hub.heard
    gone = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    assert load_from(hub, {}, **gone) == [new], "what was fetched will do"
    shutil.rmtree(Hub.root.parent / "hub-cache")
    pinned, (kind, error) = load_from(hub, {"revision": NEW}, {}, **gone)
    assert pinned == new, "a commit needs no hub to be known"
    assert kind == "VoiceError" and "could not be fetched" in error
    Hub.revisions["main"] = OLD  # the branch moved on
    ((kind, _),) = load_from(hub, {})
    assert kind == "VoiceError"


def test_a_voice_on_the_hub_is_to_be_added(hub: dict[str, str]) -> None:
    (Hub.root / "owner" / "name" / NEW / "voice.json").write_text("{}")
    ((kind, error),) = load_from(hub, {})
    assert kind == "VoiceError" and "`notewave voices add owner/name`" in error
