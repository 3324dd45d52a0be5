"""Songs vocoded where they were denoised, on the simulated GPU, beside the next segment's steps."""

from __future__ import annotations

import ctypes
import dataclasses
import threading
from pathlib import Path

import numpy as np
import pytest
from gpu_songs import STEPS, job, opened, sounded, sung
from simulated_device import Operation, Stream

import notewave
from notewave.backends.gpu.backend import GpuBackend
from notewave.backends.gpu.pending import Copied
from notewave.backends.gpu.sound import DeviceSound
from notewave.backends.gpu.vocoder import VocoderLane
from notewave.backends.gpu.workspace import Slot
from notewave.backends.ort.backend import OrtBackend
from notewave.song.dialect import Tokens
from notewave.sound.mel import FRAMES, HOP, MELS, from_network
from notewave.sound.stream import VocoderStream
from notewave.voice.folder import Voice


def test_the_vocoder_sounds_a_segment_while_the_next_is_denoised(
    voice: Voice, home: Path, segments: list[Tokens]
) -> None:
    backend, device = opened(voice)
    cpu = OrtBackend(voice, 1)
    with backend.start(job(voice)) as run:
        mel = from_network(run.denoise(segments[:1]))
        run.submit(segments[1:2])
        later = run.mel()
        del device.launches[:]
        audio = backend.vocode(mel, 5)
        launches = device.launches  # the segment submitted before still waits
        assert len(launches) == 3 and launches.index("upload") < launches.index("network") < launches.index("download")
        assert np.isfinite(later.result()).all()
    assert audio.shape == (1, FRAMES * HOP)
    np.testing.assert_allclose(audio, cpu.vocode(mel, 5), rtol=0, atol=1e-5)
    short = mel[:, :17]
    np.testing.assert_allclose(backend.vocode(short, 0), cpu.vocode(short, 0), rtol=0, atol=1e-5)


def test_the_vocoder_is_sent_what_it_is_given_and_no_more(
    voice: Voice, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, device = opened(voice)
    sent, upload = [], device.upload
    monkeypatch.setattr(device, "upload", lambda to, source, on: (sent.append(source.nbytes), upload(to, source, on)))
    mels = np.random.default_rng(0).standard_normal((2, 20, MELS)).astype(np.float32)
    expected = OrtBackend(voice, 1).vocode(mels, 7)
    np.testing.assert_allclose(backend.vocode(mels, 7), expected, rtol=0, atol=1e-5)
    assert sent == [256 + mels.nbytes]  # the number of the first frame, padded, and the mel


def test_a_song_sounds_as_on_the_cpu(
    voice: Voice, home: Path, segments: list[Tokens], monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = notewave.Synthesizer(voice.folder, backend="cpu", threads=1)
    monkeypatch.setattr("notewave.synthesizer.open_backend", lambda *_: opened(voice)[0])
    gpu = notewave.Synthesizer(voice.folder)
    assert gpu.backend == "tensorrt"
    mine, expected = (one.render(segments, sampler="ddpm", steps=STEPS, seed=5).samples for one in (gpu, cpu))
    assert len(mine) == len(segments) * FRAMES * HOP
    np.testing.assert_allclose(mine, expected, rtol=0, atol=1e-3)


def test_a_segment_is_denoised_while_the_one_before_is_vocoded(
    voice: Voice, home: Path, segments: list[Tokens], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, device = opened(voice)
    monkeypatch.setattr("notewave.synthesizer.open_backend", lambda *_: backend)
    synthesizer, under_way, result = notewave.Synthesizer(voice.folder), [], Copied.result

    def watched(self: Copied) -> np.ndarray:
        audio = result(self)
        queued = [entry for stream in device.streams.values() for _, _, entry in stream.queue]
        under_way.append(sum(isinstance(entry, Operation) for entry in queued))
        return audio

    monkeypatch.setattr(Copied, "result", watched)
    list(synthesizer.stream(segments, sampler="ddpm", steps=STEPS))
    assert len(under_way) == 3 and min(under_way[:2]) > 3 * STEPS and under_way[2] == 0


def test_only_audio_comes_back_once_a_chunk(voice: Voice, home: Path, segments: list[Tokens]) -> None:
    backend, device = opened(voice)
    sounded(backend, job(voice), segments)
    del device.launches[:]
    held = (list(device.memories), list(device.pinned_bytes), list(device.streams))
    sounded(backend, job(voice), segments)
    assert device.launches.count("download") == len(segments)
    vocoded = [index for index, label in enumerate(device.launches) if label == "from_network"]
    downloads = [index for index, label in enumerate(device.launches) if label == "download"]
    assert len(vocoded) == len(segments)
    for handed_over, audio in zip(vocoded, downloads, strict=True):
        assert device.launches[handed_over:audio].count("network") == 1, "the vocoder, on a mel that stays there"
    assert (device.memories, device.pinned_bytes, list(device.streams)) == held


@pytest.mark.parametrize(("left", "right"), [(0, 0), (3, 1), (40, 60), (5, 300)])
def test_chunks_join_whatever_the_vocoder_sees(
    left: int, right: int, voice: Voice, home: Path, segments: list[Tokens], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The windows on the device move as the host's do."""
    plans, device = opened(voice)
    traits = dataclasses.replace(voice.vocoder, left_frames=left, right_frames=right)
    seen: list[tuple[np.ndarray, int]] = []

    def vocode(mel: np.ndarray, frame: int) -> np.ndarray:
        seen.append((mel.copy(), frame))
        return np.repeat(mel.mean(axis=2), HOP, axis=1)

    def enqueue(
        self: VocoderLane, mels: list[int], frames: int, frame: int, slot: Slot, skipped: int, audio: np.ndarray
    ) -> None:
        self.stream.synchronize()
        (mel,) = mels
        window = np.ctypeslib.as_array((ctypes.c_float * (frames * MELS)).from_address(mel)).reshape(1, frames, MELS)
        audio[:] = vocode(window, frame)[:, HOP * skipped :][:, : audio.shape[1]]

    monkeypatch.setattr(VocoderLane, "enqueue", enqueue)
    seeing = dataclasses.replace(voice, vocoder=traits)
    backend = GpuBackend(seeing, device, plans.shared.runtime, device.kernels(b"simulated"))
    mine, windows = sounded(backend, job(voice), segments), list(seen)
    seen.clear()
    host = VocoderStream(vocode, traits)
    mels = from_network(sung(backend, job(voice), [segments])[:, 0])
    theirs = [host.push(mel, index == len(mels) - 1) for index, mel in enumerate(mels)]
    np.testing.assert_array_equal(mine, np.concatenate(theirs))
    for (window, frame), (expected, first) in zip(windows, seen, strict=True):
        np.testing.assert_array_equal(window, expected)
        assert frame == first


def test_songs_sound_side_by_side_and_after_one_that_was_left(voice: Voice, home: Path, segments: list[Tokens]) -> None:
    backend, device = opened(voice)
    expected = [sounded(backend, job(voice, seeds=seeds), segments) for seeds in ((3,), (8,))]
    mel = np.zeros((1, 4, MELS), np.float32)
    alone = backend.vocode(mel, 0)
    with backend.start(job(voice, seeds=(3,))) as one, backend.start(job(voice, seeds=(8,))) as two:
        runs, sounds, chunks = (one, two), [None, None], ([], [])
        for turn in range(4):  # the second song is a segment behind the first
            under_way = [song for song in (0, 1) if 0 <= turn - song < 3]
            for song in under_way:
                runs[song].submit(segments[turn - song : turn - song + 1])
                sounds[song] = runs[song].sound(last=turn - song == 2)
            np.testing.assert_array_equal(backend.vocode(mel, 0), alone)
            for song in under_way:
                chunks[song].append(sounds[song].result()[0])
        for song in (0, 1):
            np.testing.assert_array_equal(np.concatenate(chunks[song]), expected[song])
    with backend.start(job(voice)) as run:
        run.submit(segments[1:2])
        run.sound(last=False)
    np.testing.assert_array_equal(sounded(backend, job(voice, seeds=(8,)), segments), expected[1])
    with backend.start(job(voice)) as run:
        run.submit(segments[:1])
        run.sound(last=False)
    backend.close()  # frees what the chunk under way was using
    assert not device.memories and not device.freed_early


def test_a_batch_sounds_as_its_songs_alone(voice: Voice, home: Path, segments: list[Tokens]) -> None:
    backend, seeds, songs = opened(voice)[0], (1, 2), [segments, segments[::-1]]
    chunks = []
    with backend.start(job(voice, seeds=seeds)) as pair:
        for index, tokens in enumerate(zip(*songs, strict=True)):
            pair.submit(list(tokens))
            chunks.append(pair.sound(last=index == 2).result())
    together = np.concatenate(chunks, axis=1)
    for seed, song, audio in zip(seeds, songs, together, strict=True):
        np.testing.assert_allclose(audio, sounded(backend, job(voice, seeds=(seed,)), song), rtol=0, atol=1e-3)


def test_a_segment_gives_both_its_mel_and_its_sound(voice: Voice, home: Path, segments: list[Tokens]) -> None:
    backend, _ = opened(voice)
    mels, sound = sung(backend, job(voice), [segments])[:, 0], sounded(backend, job(voice), segments)
    chunks = []
    with backend.start(job(voice)) as run:
        for index, tokens in enumerate(segments):
            run.submit([tokens])
            mel, audio = run.mel(), run.sound(last=False)
            np.testing.assert_array_equal(mel.result()[0], mels[index])
            chunks.append(audio.result()[0])
        chunks.append(run.rest().result()[0])
    assert [len(chunk) // HOP for chunk in chunks] == [FRAMES - 1, FRAMES, FRAMES, 1], "a frame waits for the next"
    np.testing.assert_allclose(np.concatenate(chunks), sound, rtol=0, atol=1e-3)


def test_a_song_goes_on_while_another_s_audio_is_waited_for(
    voice: Voice, home: Path, segments: list[Tokens], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever vocodes from the host's memory holds the vocoder while it is given work, not while that is done."""
    backend, _ = opened(voice)
    receive, sounds = VocoderLane.receive, []

    with backend.start(job(voice)) as run:
        run.submit(segments[:1])

        def received(self: VocoderLane, batch: int, frames: int) -> np.ndarray:
            thread = threading.Thread(target=lambda: sounds.append(run.sound(last=True)), daemon=True)
            thread.start()
            thread.join(10)
            assert sounds, "the song waits"
            return receive(self, batch, frames)

        mel = np.random.default_rng(0).standard_normal((1, 9, MELS)).astype(np.float32)
        expected = backend.vocode(mel, 0)
        monkeypatch.setattr(VocoderLane, "receive", received)
        np.testing.assert_array_equal(backend.vocode(mel, 0), expected)
        audio = sounds[0].result()[0]
    monkeypatch.undo()
    monkeypatch.setenv("NOTEWAVE_PLANS", str(home))
    np.testing.assert_array_equal(audio, sounded(backend, job(voice), segments[:1]))


def test_the_rest_waits_for_a_place_as_a_segment_would(voice: Voice, home: Path, segments: list[Tokens]) -> None:
    """Nothing was taken before all was asked for."""
    backend, _ = opened(voice)
    expected = sounded(backend, job(voice), segments[:2])
    with backend.start(job(voice)) as run:
        asked = []
        for tokens in segments[:2]:
            run.submit([tokens])
            asked.append(run.sound(last=False))
        asked.append(run.rest())
        chunks = [one.result()[0] for one in asked]
    assert [len(chunk) // HOP for chunk in chunks] == [FRAMES - 1, FRAMES, 1]
    np.testing.assert_allclose(np.concatenate(chunks), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("missing", ["denoised", "handed_over"])
def test_streams_that_do_not_wait_for_each_other_are_noticed(
    missing: str, voice: Voice, home: Path, segments: list[Tokens], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, _ = opened(voice)
    hand_over, wait = DeviceSound._hand_over, Stream.wait_for_event
    forgotten: list[object] = []

    def forgetful(self: DeviceSound, frame: int, lane: VocoderLane) -> None:
        forgotten[:] = [getattr(self._space, missing)]
        hand_over(self, frame, lane)

    monkeypatch.setattr(DeviceSound, "_hand_over", forgetful)
    monkeypatch.setattr(Stream, "wait_for_event", lambda self, on: None if on in forgotten else wait(self, on))
    with pytest.raises(AssertionError, match=r"never written|is not ordered before"), backend.start(job(voice)) as run:
        for index in range(2):
            run.submit(segments[index : index + 1])
            sound = run.sound(last=False)
        sound.result()
