"""Sessions: songs under way, segment by segment, on which everything that sings stands."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from notewave import ArgumentError, BackendError, MidiError, SamplingError, Synthesizer, VoiceError
from notewave.session import Made
from notewave.song.dialect import EOS
from notewave.sound.mel import FRAMES, HOP, MELS, from_network

SONG = [np.array([1134, 300 + index, EOS], np.int32) for index in range(3)]
OTHER = [np.array([1134, 400, 500 + index, EOS], np.int32) for index in range(3)]
STEPS = {"sampler": "ddpm", "steps": 2}


@pytest.fixture(scope="module")
def singer(vocoded_voice: Path) -> Synthesizer:
    return Synthesizer(vocoded_voice, backend="cpu", threads=1)


def joined(made: list[Made]) -> tuple[np.ndarray, np.ndarray]:
    """Mels [B, all frames, M] and audio [B, n] of segments."""
    mels = [one.mel for one in made if one.mel is not None]
    return np.concatenate(mels, axis=1), np.concatenate([one.samples for one in made], axis=1)


def test_a_session_gives_what_renders_give(singer: Synthesizer) -> None:
    with singer.session(seed=4, **STEPS) as session:
        mel, samples = joined(list(session.sing([[tokens] for tokens in SONG])))
    np.testing.assert_array_equal(mel[0], singer.spectrogram(SONG, seed=4, **STEPS))
    np.testing.assert_array_equal(samples[0], singer.render(SONG, seed=4, **STEPS).samples)


def test_songs_side_by_side_are_the_songs_alone(singer: Synthesizer) -> None:
    with singer.session(seeds=(5, 2**64 - 1), **STEPS) as session:
        mels, samples = joined(list(session.sing(list(zip(SONG, OTHER, strict=True)))))
    for index, (song, seed) in enumerate(((SONG, 5), (OTHER, 2**64 - 1))):
        np.testing.assert_allclose(mels[index], singer.spectrogram(song, seed=seed, **STEPS), rtol=0, atol=2e-3)
        np.testing.assert_allclose(samples[index], singer.render(song, seed=seed, **STEPS).samples, rtol=0, atol=2e-3)


def test_feeding_computes_nothing_and_a_third_segment_may_wait_too(singer: Synthesizer) -> None:
    steps: list[int] = []
    with singer.session(sound=False, on_step=lambda: steps.append(1), **STEPS) as session:
        for count, tokens in enumerate(SONG):
            session.feed([tokens])
            assert not steps, count
        mels = []
        for count in range(1, 4):
            mels.append(session.take().mel[0])
            assert len(steps) == 2 * count, "waiting for a segment does not make the one behind it"
    np.testing.assert_array_equal(np.concatenate(mels), singer.spectrogram(SONG, **STEPS))


def test_only_what_was_asked_for_is_made(singer: Synthesizer) -> None:
    with singer.session(mel=False, **STEPS) as session:
        session.feed([SONG[0]], last=True)
        made = session.take()
    assert made.mel is None and made.samples.shape == (1, FRAMES * HOP)
    with singer.session(sound=False, **STEPS) as session:
        session.feed([SONG[0]])
        made, rest = session.take(), session.rest()
    assert made.samples is None and made.mel.shape == (1, FRAMES, MELS)
    assert rest.mel is None and rest.samples is None


def test_an_unforeseen_end_gives_the_rest_of_the_sound(singer: Synthesizer) -> None:
    with singer.session(**STEPS) as session:
        _, samples = joined([*_fed(session), session.rest()])
    expected = singer.render(SONG, **STEPS).samples
    assert samples.shape == (1, len(expected))
    np.testing.assert_allclose(samples[0], expected, rtol=0, atol=1e-5)


def _fed(session: object) -> Iterator[Made]:
    for tokens in SONG:
        session.feed([tokens])
        yield session.take()


def test_segments_are_sung_as_they_come(singer: Synthesizer) -> None:
    """From an iterator nothing more is asked for before what is there was heard."""
    heard: list[int] = []

    def coming() -> Iterator[np.ndarray]:
        for index, tokens in enumerate(SONG):
            assert len(heard) == index, "a segment is waited for before the one before it was heard"
            yield tokens

    chunks = []
    for chunk in singer.stream(coming(), **STEPS):
        heard.append(len(chunk.samples))
        chunks.append(chunk.samples)
    expected = singer.render(SONG, **STEPS).samples
    np.testing.assert_allclose(np.concatenate(chunks), expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(singer.spectrogram(iter(SONG), **STEPS), singer.spectrogram(SONG, **STEPS))
    assert len(singer.render(iter(SONG), **STEPS).samples) == len(expected)


def test_griffin_lim_sounds_in_sessions_too(vocoded_voice: Path) -> None:
    singer = Synthesizer(vocoded_voice, backend="cpu", threads=1, vocoder="griffin-lim")
    with singer.session(**STEPS) as session:
        session.feed([SONG[0]])
        made = session.take()
        samples = np.concatenate([made.samples, session.rest().samples], axis=1)
    assert 0 < made.samples.shape[1] < samples.shape[1] == FRAMES * HOP
    np.testing.assert_allclose(samples[0], singer.vocode(made.mel[0]).samples, rtol=0, atol=1e-6)


def test_every_network_s_runs_are_seen(singer: Synthesizer) -> None:
    runs, depth = Counter[str](), []

    @contextlib.contextmanager
    def watch(network: str) -> Iterator[None]:
        depth.append(network)
        assert len(depth) == 1, "networks run one after another"
        yield
        runs[depth.pop()] += 1

    singer.render(SONG, sampler="ddim", steps=7, guidance=2.0, on_network=watch)
    expected = dict.fromkeys(("note_encoder", "cross_attention", "vocoder"), 3)
    expected |= {"context_encoder": 2, "decoder": 21, "unconditional_decoder": 21, "time_embedding": 1}
    assert runs == expected
    singer.render(SONG, sampler="ddim", steps=7, guidance=2.0, on_network=watch)
    assert runs["time_embedding"] == 1, "once for a schedule"


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        ({"on_network": 3}, "on_network is 3"),
        ({"on_step": "x"}, "on_step is 'x'"),
        ({"seeds": ()}, "there are 0 seeds"),
        ({"seeds": (1, -1)}, "a seed is -1"),
        ({"seeds": (1, 2), "noise": np.zeros((2, FRAMES, MELS), np.float32)}, "there are 2 seeds"),
        ({"noise": np.zeros((3, FRAMES, MELS), np.float32)}, r"\[a multiple of 2, 256, 128\]"),
    ],
)
def test_options_that_cannot_be(singer: Synthesizer, options: dict[str, object], fact: str) -> None:
    with pytest.raises(SamplingError, match=fact), singer.session(**{**STEPS, **options}):
        pass


def test_noise_that_runs_out_is_an_error(singer: Synthesizer) -> None:
    noise = np.zeros((2, FRAMES, MELS), np.float32)
    with singer.session(noise=noise, sound=False, **STEPS) as session:
        session.feed([SONG[0]])
        session.take()
        with pytest.raises(SamplingError, match="noise for 1 segments, and none for another"):
            session.feed([SONG[1]])


def test_what_cannot_be_fed_or_taken(singer: Synthesizer, reference_voice: Path) -> None:
    with singer.session(seeds=(1, 2), **STEPS) as session:
        with pytest.raises(ArgumentError, match="1 token arrays were fed for 2 songs"):
            session.feed([SONG[0]])
        with pytest.raises(ArgumentError, match="no segment to take"):
            session.take()
        with pytest.raises(MidiError, match="no segments"):
            session.rest()
        session.feed([SONG[0], OTHER[0]])
        with pytest.raises(MidiError, match="segment 1 is no token sequence"):
            session.feed([SONG[0], SONG[0][:-1]])
    with pytest.raises(MidiError, match="no segments"):
        singer.render(iter([]), **STEPS)
    with pytest.raises(MidiError, match="segment 1 is"):
        list(singer.stream(iter([SONG[0], "x"]), **STEPS))
    silent = Synthesizer(reference_voice, backend="cpu", threads=1)
    with pytest.raises(VoiceError, match="has no vocoder"), silent.session():
        pass
    with silent.session(sound=False, **STEPS) as session:
        session.feed([SONG[0]])
        assert session.take().mel.shape == (1, FRAMES, MELS)


def test_a_run_that_failed_or_ended_gives_nothing_more(singer: Synthesizer) -> None:
    class Stop(Exception):
        pass

    def fails() -> None:
        raise Stop

    with singer.session(sound=False, on_step=fails, **STEPS) as session:
        session.feed([SONG[0]])
        session.feed([SONG[1]])
        with pytest.raises(Stop):
            session.take()
        with pytest.raises(BackendError, match="has failed"):
            session.take()
        with pytest.raises(BackendError, match="has failed"):
            session.feed([SONG[2]])
    with singer.session(sound=False, **STEPS) as session:
        session.feed([SONG[0]])
    with pytest.raises(BackendError, match="is over"):
        session.take()
    with pytest.raises(BackendError, match="is over"):
        session.feed([SONG[0]])


def test_mels_are_copies(singer: Synthesizer) -> None:
    with singer.session(sound=False, **STEPS) as session:
        session.feed([SONG[0]])
        first = session.take().mel
        kept = first.copy()
        session.feed([SONG[1]])
        session.take()
    np.testing.assert_array_equal(first, kept)
    assert first.min() >= from_network(np.float32(-10.0))


@pytest.mark.parametrize("songs", [[], iter([])], ids=["a sequence", "an iterator"])
def test_a_song_of_no_segments_is_none(singer: Synthesizer, songs: Iterable[list[np.ndarray]]) -> None:
    with singer.session(**STEPS) as session, pytest.raises(MidiError, match="no segments"):
        list(session.sing(songs))
