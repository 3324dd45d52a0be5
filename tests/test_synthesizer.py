"""The engine end to end on the reference checkpoint: diffusers' results, streams equal to wholes, seeds that hold."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import notewave
from notewave import MidiError, SamplingError, Synthesizer, VoiceError
from notewave.mel import FRAMES, HOP, MELS

REFERENCE = np.load(Path(__file__).parent / "data" / "reference" / "reference.npz")
TOKENS = [row[row != 0] for row in REFERENCE["tokens"]]
QUICK = {"sampler": "dpmpp-2m", "steps": 3}


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
    noise = REFERENCE[f"{sampler}_noise"][:, 0]
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


def test_synthesizers_over_one_voice_share_it(reference_voice: Path) -> None:
    one, two = (Synthesizer(reference_voice, backend="cpu") for _ in range(2))
    assert one._backend.graphs is two._backend.graphs


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
        {"guidance": float("nan")},
        {"guidance": "2"},
        {"seed": -1},
        {"seed": 1 << 64},
        {"seed": 0.5},
        {"noise": np.zeros((1, FRAMES, MELS), np.float32)},
        {"noise": np.zeros((2, FRAMES, MELS))},
        {"noise": np.full((2, FRAMES, MELS), np.nan, np.float32)},
        {"speed": 2},
    ],
    ids=str,
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
        "no such file.mid",
        b"not MIDI",
        None,
    ],
    ids=repr,
)
def test_bad_songs_are_refused(synthesizer: Synthesizer, song: object) -> None:
    with pytest.raises(MidiError):
        synthesizer.spectrogram(song, **QUICK)  # type: ignore[arg-type]


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
