"""The engine end to end on the reference checkpoint: diffusers' results, streams equal to wholes, seeds that hold."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import multiprocessing
import pickle
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pretty_midi
import pytest
import torch

import notewave
from notewave import MidiError, Notes, SamplingError, Synthesizer, VoiceError
from notewave.backends.ort import sessions
from notewave.backends.ort.backend import KEPT_BUFFERS
from notewave.checks import quoted
from notewave.sampling.samplers import SAMPLERS
from notewave.song.dialect import EOS
from notewave.sound.mel import FRAMES, HOP, MELS

REFERENCE = np.load(Path(__file__).parent / "data" / "reference" / "reference.npz")
TOKENS = [row[row != 0] for row in REFERENCE["tokens"]]
QUICK = {"sampler": "dpmpp-2m", "steps": 3}
SAMPLING = ["sampler", "steps", "guidance", "seed", "noise", "on_step"]
CONSTRUCTION = ["voice", "backend", "threads", "vocoder", "provider_options"]
ODD = [
    None,
    True,
    5,
    -1,
    10**400,
    10**5000,
    1e300,
    float("nan"),
    "",
    "a" * 300,
    "a\0b",
    b"bytes",
    ["ddpm"],
    [[1, 2], [3]],
    {"a": []},
    object(),
    np.zeros((2, 2)),
]


@pytest.fixture(scope="module")
def synthesizer(reference_voice: Path) -> Synthesizer:
    return Synthesizer(reference_voice, backend="cpu", threads=1)


@pytest.fixture(scope="module")
def singer(vocoded_voice: Path) -> Synthesizer:
    """The reference voice with a small random vocoder."""
    return Synthesizer(vocoded_voice, backend="cpu", threads=1)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_spectrogram_is_the_pipelines(synthesizer: Synthesizer, sampler: str) -> None:
    steps = len(REFERENCE[f"{sampler}_timesteps"])
    generator, draws = torch.Generator().manual_seed(1234), {"ddpm": steps, "ddim": 1}[sampler] * len(TOKENS)
    noise = torch.stack([torch.randn((256, 128), generator=generator) for _ in range(draws)]).numpy()
    mel = synthesizer.spectrogram(TOKENS, sampler=sampler, steps=steps, guidance=1.0, noise=noise)
    assert mel.dtype == np.float32
    np.testing.assert_allclose(mel, REFERENCE[f"{sampler}_mel"][0], atol=2e-3)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_stream_joins_to_render(singer: Synthesizer, guidance: float) -> None:
    options = {**QUICK, "guidance": guidance, "seed": 5}
    whole = singer.render(TOKENS, **options)
    chunks = list(singer.stream(TOKENS, **options))
    assert len(chunks) == len(TOKENS)
    np.testing.assert_array_equal(np.concatenate([chunk.samples for chunk in chunks]), whole.samples)
    assert whole.samples.dtype == np.float32
    assert len(whole.samples) == len(TOKENS) * FRAMES * HOP
    assert np.abs(whole.samples).max() <= 1
    mel = singer.spectrogram(TOKENS, **options)
    at_once = singer._backend.vocode(mel[None], 0)[0]
    np.testing.assert_allclose(whole.samples, np.clip(at_once, -1, 1), atol=1e-5)
    np.testing.assert_array_equal(singer.vocode(mel).samples, whole.samples)


def test_seeds_hold_whatever_else_is_under_way(synthesizer: Synthesizer) -> None:
    alone = synthesizer.spectrogram(TOKENS, seed=7, sampler="ancestral", steps=4)
    results: dict[int, np.ndarray] = {}

    def sing(seed: int) -> None:
        results[seed] = synthesizer.spectrogram(TOKENS, seed=seed, sampler="ancestral", steps=4)

    threads = [threading.Thread(target=sing, args=(seed,)) for seed in (7, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(results[7], alone)
    assert np.abs(results[8] - alone).max() > 0.1


def test_interleaved_streams_do_not_mix(singer: Synthesizer) -> None:
    alone = [chunk.samples for chunk in singer.stream(TOKENS, seed=1, **QUICK)]
    first, second = singer.stream(TOKENS, seed=1, **QUICK), singer.stream(TOKENS, seed=2, **QUICK)
    for expected, one, _ in zip(alone, first, second, strict=True):
        np.testing.assert_array_equal(one.samples, expected)


def test_guidance_one_is_no_guidance_and_other_weights_differ(synthesizer: Synthesizer) -> None:
    plain, half, two = (synthesizer.spectrogram(TOKENS[:1], guidance=w, **QUICK) for w in (1, 0.5, 2.0))
    assert np.abs(half - plain).max() > 1e-3
    assert np.abs(two - plain).max() > 1e-3


def test_midi_and_its_tokens_render_alike(synthesizer: Synthesizer, midi_folder: Path) -> None:
    song = midi_folder / "piano_scale.mid"
    from_file = synthesizer.spectrogram(song, **QUICK)
    np.testing.assert_array_equal(synthesizer.spectrogram(notewave.tokenize(song), **QUICK), from_file)
    np.testing.assert_array_equal(synthesizer.spectrogram(song.read_bytes(), **QUICK), from_file)
    assert from_file.shape == (FRAMES * len(notewave.tokenize(song)), MELS)


def test_notes_are_sung_as_the_file_they_were_read_from(singer: Synthesizer, midi_folder: Path) -> None:
    path = midi_folder / "sustain_pedal.mid"
    expected = singer.render(path, **QUICK).samples
    for song in (notewave.read(path), notewave.Notes(**vars(notewave.read(path))), pretty_midi.PrettyMIDI(str(path))):
        np.testing.assert_array_equal(singer.render(song, **QUICK).samples, expected)
    notes = notewave.read(path)
    lower = dataclasses.replace(notes, pitch=notes.pitch - 1)
    assert not np.array_equal(singer.render(lower, **QUICK).samples, expected)
    with pytest.raises(MidiError, match="no notes"):
        singer.stream(notewave.Notes(*([] for _ in vars(notes))))


def test_synthesizers_over_one_voice_share_it(reference_voice: Path) -> None:
    one, two = (Synthesizer(reference_voice, backend="cpu") for _ in range(2))
    assert one._backend.networks is two._backend.networks


@pytest.mark.parametrize("how", ["pickle", "copy"])
def test_a_synthesizer_is_pickled_as_its_arguments(
    how: str, vocoded_voice: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(vocoded_voice.parent)
    singer = Synthesizer(vocoded_voice.name, backend="cpu", threads=1, vocoder="griffin-lim")
    expected = singer.render(TOKENS[:1], **QUICK).samples
    data = pickle.dumps(singer)
    assert len(data) < 1000
    monkeypatch.chdir("/")
    again = pickle.loads(data) if how == "pickle" else copy.deepcopy(singer)
    assert again._backend.networks is singer._backend.networks
    np.testing.assert_array_equal(again.render(TOKENS[:1], **QUICK).samples, expected)
    assert pickle.loads(pickle.dumps(Synthesizer("band", backend="cpu", threads=1))).voice.name == "band"
    assert b"/" not in pickle.dumps(Synthesizer("band", backend="cpu", threads=1)), "a name is a name elsewhere too"


def test_other_processes_sing_what_they_are_sent(singer: Synthesizer) -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        sung = pool.submit(functools.partial(Synthesizer.render, **QUICK), singer, TOKENS[:1]).result()
    np.testing.assert_array_equal(sung.samples, singer.render(TOKENS[:1], **QUICK).samples)


def test_idle_buffers_are_few_however_many_streams_there_were(singer: Synthesizer) -> None:
    streams = [singer.stream(TOKENS, **QUICK, seed=seed) for seed in range(12)]
    first = [next(stream).samples for stream in streams]
    with singer.session(seeds=(1, 2), **QUICK) as pair:
        pair.feed([TOKENS[0]] * 2, last=True)
        pair.take()
    for seed, stream in enumerate(streams):
        sung = np.concatenate([first[seed], *(chunk.samples for chunk in stream)])
        np.testing.assert_array_equal(sung, singer.render(TOKENS, **QUICK, seed=seed).samples)
    assert len(singer._backend._idle) <= KEPT_BUFFERS


def test_steps_are_reported(synthesizer: Synthesizer) -> None:
    calls = []
    synthesizer.spectrogram(TOKENS, on_step=lambda: calls.append(1), **QUICK)
    assert len(calls) == 3 * len(TOKENS)


def test_no_vocoder_is_explained_and_griffin_lim_helps(reference_voice: Path, synthesizer: Synthesizer) -> None:
    with pytest.raises(VoiceError, match="griffin-lim"):
        synthesizer.render(TOKENS)
    audio = Synthesizer(reference_voice, backend="cpu", vocoder="griffin-lim").render(TOKENS[:1], **QUICK)
    assert audio.duration == pytest.approx(5.12)


@pytest.mark.parametrize(
    "options",
    [
        {"sampler": "nonsense"},
        {"steps": 0},
        {"steps": 10**9},
        {"steps": True},
        {"steps": 10**5000},
        {"sampler": ["ddpm"]},
        {"sampler": ""},
        {"guidance": float("nan")},
        {"guidance": "2"},
        {"guidance": True},
        {"guidance": 10**400},
        {"guidance": 1e300},
        {"guidance": np.array([2.0])},
        {"seed": -1},
        {"seed": 1 << 64},
        {"seed": 0.5},
        {"seed": False},
        {"noise": [[1.0], [1.0, 2.0]]},
        {"noise": "loud"},
        {"on_step": 5},
        {"noise": np.zeros((1, FRAMES, MELS), np.float32)},
        {"noise": np.zeros((2, FRAMES, MELS))},
        {"noise": np.full((2, FRAMES, MELS), np.nan, np.float32)},
        {"speed": 2},
    ],
    ids=lambda options: "-".join(options),
)
def test_bad_options_are_refused_before_work(synthesizer: Synthesizer, options: dict[str, object]) -> None:
    with pytest.raises(SamplingError):
        synthesizer.spectrogram(TOKENS, **{"sampler": "ddim", "steps": 4, **options})


@pytest.mark.parametrize(
    "song",
    [
        [],
        [np.zeros((2, 2), np.int32)],
        [np.array([0.5, 1.0])],
        [np.array([5, 4])],
        [np.array([1, 5, 1])],
        [np.array([1400, 1])],
        [np.array([-1, 1])],
        [np.full(2049, 1)],
        [[1, 2], [3]],
        [[[1, 2], [3]]],
        [None],
        [10**400],
        np.zeros((2, 2), np.int32),
        "no such file.mid",
        b"not MIDI",
        None,
    ],
    ids=repr,
)
def test_bad_songs_are_refused(synthesizer: Synthesizer, song: object) -> None:
    with pytest.raises(MidiError):
        synthesizer.spectrogram(song, **QUICK)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "mel",
    [
        None,
        [[0.0] * MELS],
        np.zeros((4, MELS), np.int32),
        np.zeros((4, MELS), complex),
        np.zeros((4, MELS - 1), np.float32),
        np.zeros(MELS, np.float32),
        np.zeros((0, MELS), np.float32),
        np.full((4, MELS), np.nan, np.float32),
        np.full((4, MELS), 1e30),
    ],
    ids=quoted,
)
def test_bad_mels_are_refused(singer: Synthesizer, mel: object) -> None:
    with pytest.raises(SamplingError, match="the mel"):
        singer.vocode(mel)  # type: ignore[arg-type]


def test_mels_of_any_length_and_float_are_sung(singer: Synthesizer) -> None:
    for frames in (1, FRAMES + 1):
        assert len(singer.vocode(np.zeros((frames, MELS), np.float64)).samples) == frames * HOP


@pytest.mark.parametrize(
    "arguments",
    [
        {"threads": 0},
        {"threads": 10**12},
        {"threads": True},
        {"threads": 1.0},
        {"threads": "2"},
        {"backend": None},
        {"backend": ["cpu"]},
        {"vocoder": 5},
        {"vocoder": ["griffin-lim"]},
        {"provider_options": 5},
        {"provider_options": "device_id"},
        {"provider_options": {5: 1}},
        {"provider_options": {"device_id": [1]}},
        {"provider_options": {"device_id": 0}},
        {"provider_options": {"threads": 2}},
    ],
    ids=str,
)
def test_bad_arguments_are_refused(reference_voice: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(notewave.NotewaveError):
        Synthesizer(reference_voice, **{"backend": "cpu", **arguments})


def test_options_of_a_gpu_leave_the_cpu_to_auto(reference_voice: Path, caplog: pytest.LogCaptureFixture) -> None:
    singer = Synthesizer(reference_voice, provider_options={"precision": "bf16", "made_up": 1})
    assert singer.backend == "cpu"
    assert "the options precision, made_up are of no use to backend cpu" in caplog.text


@pytest.mark.parametrize(
    "arguments",
    [{"threads": 0}, {"provider_options": 5}, {"provider_options": {"a": []}}, {"vocoder": "none"}, {"backend": "gpu"}],
    ids=repr,
)
def test_an_argument_that_cannot_be_is_an_argument_error(reference_voice: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(notewave.ArgumentError):
        Synthesizer(reference_voice, **arguments)
    assert issubclass(SamplingError, notewave.ArgumentError) and issubclass(notewave.ToolError, notewave.NotewaveError)


def test_numbers_of_numpy_are_taken(reference_voice: Path, synthesizer: Synthesizer) -> None:
    numbers = {"steps": np.int64(3), "guidance": np.float32(2), "seed": np.uint64(5)}
    mel = Synthesizer(reference_voice, backend="cpu", threads=np.int64(1)).spectrogram(
        TOKENS[:1], sampler="dpmpp-2m", **numbers
    )
    expected = synthesizer.spectrogram(TOKENS[:1], sampler="dpmpp-2m", steps=3, guidance=2.0, seed=5)
    np.testing.assert_array_equal(mel, expected)


@pytest.mark.parametrize("value", ODD, ids=quoted)
@pytest.mark.parametrize("argument", ["song", "mel", "path", "max_seconds", *SAMPLING, *CONSTRUCTION])
def test_only_errors_of_notewave_escape(
    singer: Synthesizer, vocoded_voice: Path, tmp_path: Path, argument: str, value: Any
) -> None:
    """Whatever is given in the place of whichever argument: it works, or the error is one to catch."""
    with contextlib.suppress(notewave.NotewaveError):
        if argument == "song":
            singer.stream(value)
        elif argument == "mel":
            singer.vocode(value)
        elif argument == "path":
            notewave.Audio(np.zeros(10, np.float32)).save(tmp_path / value if isinstance(value, str) else value)
        elif argument == "max_seconds":
            notewave.tokenize(b"", max_seconds=value)
        elif argument in SAMPLING:
            singer.stream(TOKENS, **{**QUICK, argument: value})
        else:
            Synthesizer(**{"voice": vocoded_voice, "backend": "cpu", argument: value})


def test_synthesizers_made_side_by_side_load_a_voice_once(
    reference_voice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    voice = shutil.copytree(reference_voice, tmp_path / "voice")
    made = []

    class SlowNetworks(sessions.Networks):
        def __init__(self, *arguments: Any) -> None:
            made.append(1)
            time.sleep(0.1)
            super().__init__(*arguments)

    monkeypatch.setattr(sessions, "Networks", SlowNetworks)
    with ThreadPoolExecutor(3) as pool:
        singers = list(pool.map(lambda _: Synthesizer(voice, backend="cpu", threads=1), range(3)))
    assert len(made) == 1
    assert len({id(singer._backend.networks) for singer in singers}) == 1


def test_errors_come_before_the_first_chunk(synthesizer: Synthesizer, singer: Synthesizer) -> None:
    with pytest.raises(MidiError):
        singer.stream("no such file.mid")
    with pytest.raises(VoiceError):
        synthesizer.stream(TOKENS)


def test_memory_does_not_grow_with_the_song(vocoded_voice: Path) -> None:
    """Peak resident memory of streaming 1 minute and 30 minutes, each in a process of its own."""
    program = (
        "import resource, sys, numpy as np, notewave\n"
        "voice, segments = sys.argv[1], int(sys.argv[2])\n"
        "song = [np.array([1134, 300, 1], np.int32)] * segments\n"
        "synth = notewave.Synthesizer(voice, backend='cpu', threads=1)\n"
        "for audio in synth.stream(song, sampler='dpmpp-2m', steps=1): pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )

    def peak_mib(segments: int) -> float:
        command = [sys.executable, "-c", program, str(vocoded_voice), str(segments)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) / 1024

    assert peak_mib(352) - peak_mib(12) < 10


FORKED = """
import gc, os, signal, sys
import numpy as np
from notewave import Synthesizer
synth = Synthesizer(sys.argv[1], backend="cpu", threads=3)
synth.spectrogram([np.array([1134, 300, 1], np.int32)], steps=1)
child = os.fork()
if child == 0:
    del synth
    gc.collect()
    os._exit(0)
signal.alarm(60)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_process_can_let_go_of_what_it_inherits(reference_voice: Path) -> None:
    """A session that is destroyed waits for its threads, which a forked process has not."""
    assert subprocess.run([sys.executable, "-c", FORKED, reference_voice]).returncode == 0


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_bundled_voice_is_silent_where_nothing_sounds(sampler: str) -> None:
    """By each sampler, whose noise times differ, and after music too: some ask when all noise is gone."""
    note = Notes(*(np.array([value]) for value in (0.0, 2.0, 60, 90, 0, False)))
    silence = np.array([EOS], np.int32)
    tokens = [*notewave.tokenize(note), silence, silence]
    mel = Synthesizer(backend="cpu", threads=1).spectrogram(tokens, sampler=sampler, steps=4)
    assert mel[:60].mean() > -5.0
    assert mel[FRAMES + 50 :].mean() < -11.0, "nats; the floor is 11.5 below"
