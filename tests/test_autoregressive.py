"""Voices that write their mels frame by frame: the networks against the PyTorch port's, and how they sing."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from notewave import ArgumentError, BackendError, SamplingError, Synthesizer, VoiceError
from notewave.backends.ort.backend import OrtBackend
from notewave.backends.protocol import PARTS
from notewave.export.autoregressive import SpectrogramAutoregression
from notewave.export.convert import export_checkpoint
from notewave.export.graphs.restore import restore_voice
from notewave.sampling.job import make_job
from notewave.sampling.options import FRAME_BY_FRAME
from notewave.song.dialect import EOS, PAD
from notewave.sound.mel import FRAMES, HOP, MELS, PUBLISHED_RANGE
from notewave.voice.folder import Voice

SONG = [np.array([1134, 300 + index, EOS], np.int32) for index in range(2)]
OTHER = [np.array([1134, 400, 500 + index, 20, EOS], np.int32) for index in range(2)]
PART = FRAMES // PARTS


@pytest.fixture(scope="module")
def singer(frames_voice: Path) -> Synthesizer:
    return Synthesizer(frames_voice, backend="cpu", threads=1)


@pytest.fixture(scope="module")
def model(frames_voice: Path) -> SpectrogramAutoregression:
    restored = restore_voice(Voice.load(frames_voice))
    assert isinstance(restored, SpectrogramAutoregression)
    return restored.eval().requires_grad_(False)


def test_the_loop_with_its_cache_writes_what_the_whole_decoder_foretells(
    singer: Synthesizer, model: SpectrogramAutoregression
) -> None:
    """Each frame of the loop is the one that the decoder, shown all of them at once under its mask, gives there."""
    mel = PUBLISHED_RANGE.scale * model(_network(singer.spectrogram(SONG[:1])), torch.from_numpy(SONG[0])[None]) + 0
    expected = mel[0].numpy() + PUBLISHED_RANGE.low + PUBLISHED_RANGE.scale
    assert np.abs(singer.spectrogram(SONG[:1]) - expected).max() < 1e-3 * np.abs(expected).max()


def _network(log_mel: np.ndarray) -> torch.Tensor:
    return torch.from_numpy((log_mel - PUBLISHED_RANGE.low) / PUBLISHED_RANGE.scale - 1)[None]


def test_a_frame_sees_none_after_it(model: SpectrogramAutoregression) -> None:
    tokens = torch.from_numpy(SONG[0])[None]
    mel = torch.rand(1, FRAMES, MELS, generator=torch.Generator().manual_seed(0)) - 0.5
    whole, changed = model(mel, tokens), model(torch.cat([mel[:, :100], -mel[:, 100:]], dim=1), tokens)
    torch.testing.assert_close(changed[:, :101], whole[:, :101], rtol=0, atol=1e-4)
    assert (changed[:, 101] - whole[:, 101]).abs().max() > 0.1
    unmasked = model.decoder.whole(mel, model.condition(tokens)[1], model.condition(tokens)[0], causal=False)
    seen = model.decoder.whole(mel, model.condition(tokens)[1], model.condition(tokens)[0])
    assert (unmasked[:, 0] - seen[:, 0]).abs().max() > 0.1, "without its mask, the first frame sees all others"


def test_segments_are_written_each_for_itself(singer: Synthesizer) -> None:
    mel = singer.spectrogram([SONG[0], OTHER[0], SONG[0]])
    assert mel.shape == (3 * FRAMES, MELS)
    np.testing.assert_array_equal(mel[:FRAMES], mel[2 * FRAMES :])
    assert np.abs(mel[:FRAMES] - mel[FRAMES : 2 * FRAMES]).max() > 0.1


def test_the_sound_comes_part_by_part(singer: Synthesizer) -> None:
    chunks = [chunk.samples for chunk in singer.stream(SONG)]
    whole = np.concatenate(chunks)
    assert len(whole) == 2 * FRAMES * HOP
    assert len(chunks) >= 2 * PARTS - 3 and len(chunks[0]) <= PART * HOP, "the first comes before the segment is whole"
    np.testing.assert_array_equal(whole, singer.render(SONG).samples)
    np.testing.assert_allclose(whole, singer.vocode(singer.spectrogram(SONG)).samples, rtol=0, atol=1e-3)
    coming = np.concatenate([chunk.samples for chunk in singer.stream(iter(SONG))])
    np.testing.assert_allclose(coming, whole, rtol=0, atol=1e-3)


def test_no_frame_is_written_before_it_is_asked_for(singer: Synthesizer) -> None:
    frames: list[int] = []
    with singer.session(on_step=lambda: frames.append(1)) as session:
        session.feed([SONG[0]], last=True)
        assert not frames and session.parts == PARTS
        for count in range(1, PARTS + 1):
            made = session.take()
            assert len(frames) == count * PART and made.frames == PART and made.mel.shape == (1, PART, MELS)
        with pytest.raises(ArgumentError, match="no segment to take"):
            session.take()


def test_songs_side_by_side_are_the_songs_alone(singer: Synthesizer) -> None:
    """Of unequal lengths too, and what is told of each one's mel is that song's."""
    mels: list[list[np.ndarray]] = [[], []]
    made = singer._backend.start(make_job({}, singer.voice, seeds=(0, 0)))
    with made as run:
        mel = run.denoise([SONG[0], OTHER[0]])
    for index, song in enumerate((SONG, OTHER)):
        alone = singer.spectrogram(song[:1])
        np.testing.assert_allclose(PUBLISHED_RANGE.from_network(mel[index]), alone, rtol=1e-3, atol=2e-3)
    batch = singer.render_batch([SONG, OTHER[:1]], on_mel=lambda place, part: mels[place].append(part.copy()))
    assert [len(audio.samples) for audio in batch] == [2 * FRAMES * HOP, FRAMES * HOP]
    np.testing.assert_allclose(batch[1].samples, singer.render(OTHER[:1]).samples, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(np.concatenate(mels[0]), singer.spectrogram(SONG))


def test_unequal_songs_in_one_session(singer: Synthesizer) -> None:
    """As a GPU sings them: the shorter one's sound ends where it does."""
    from notewave.session import sing_each

    with singer.session(seeds=(0, 0), mel=True) as session:
        audio = sing_each(session, [SONG, OTHER[:1]], singer._vocoder())
    for found, song in zip(audio, (SONG, OTHER[:1]), strict=True):
        np.testing.assert_allclose(found, singer.render(song).samples, rtol=0, atol=2e-2)


@pytest.mark.parametrize(
    "options",
    [{"steps": 4}, {"sampler": "ddim"}, {"guidance": 2.0}, {"noise": np.zeros((1, FRAMES, MELS), np.float32)}],
    ids=lambda options: next(iter(options)),
)
def test_there_is_nothing_to_sample(singer: Synthesizer, options: Any) -> None:
    with pytest.raises(SamplingError, match=rf"frame by frame.*no {next(iter(options))} to choose"):
        singer.render(SONG, **options)


def test_what_it_recommends_may_be_said(singer: Synthesizer) -> None:
    same = singer.spectrogram(SONG[:1], sampler="autoregressive", steps=FRAMES, guidance=1.0, seed=5)
    np.testing.assert_array_equal(same, singer.spectrogram(SONG[:1]))


def test_it_goes_on_from_nothing(singer: Synthesizer) -> None:
    with pytest.raises(SamplingError, match="no context encoder"):
        singer.render(SONG, context=np.zeros((FRAMES, MELS), np.float32))


def test_it_cannot_be_played_live(singer: Synthesizer) -> None:
    with pytest.raises(VoiceError, match="cannot take up notes midway"):
        singer.live()


def test_what_a_run_leaves_does_not_reach_the_next(frames_voice: Path) -> None:
    backend = OrtBackend(Voice.load(frames_voice), 1)
    with backend.start(make_job({}, backend.voice)) as run:
        expected = run.denoise(SONG[:1])
    with pytest.raises(BackendError, match="is over"):
        run.go_on()
    for buffers in backend._idle:
        buffers.own.fill(np.nan)
    with backend.start(make_job({}, backend.voice)) as run:
        np.testing.assert_array_equal(run.denoise(SONG[:1]), expected)


def test_weights_that_are_no_numbers_are_told(frames_voice: Path, tmp_path: Path) -> None:
    model = restore_voice(Voice.load(frames_voice))
    with torch.no_grad():
        model.decoder.output.weight[3, 3] = torch.nan
    with _unchecked(), pytest.raises(VoiceError, match="no finite numbers"):
        Synthesizer(_exported(model, tmp_path / "voice"), backend="cpu").render(SONG)


@contextlib.contextmanager
def _unchecked() -> Iterator[None]:
    """Export what export would refuse."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("notewave.export.convert.relative_error", lambda *given: 0.0)
        yield


def _exported(model: Any, folder: Path) -> Path:
    from notewave.export.convert import export_voice
    from notewave.export.vocoders import Tonewheel
    from notewave.sampling.schedule import NoiseSchedule

    said = {"name": "n", "licence": "l", "provenance": "p", "prediction": "autoregressive"}
    vocoder = Tonewheel(width=32, blocks=1)
    return export_voice(
        model, folder, schedule=NoiseSchedule(), sampling=FRAME_BY_FRAME, vocoder=vocoder, **said
    ).folder


def test_its_description(frames_voice: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from notewave.cli import main

    said = json.loads((frames_voice / "voice.json").read_text())
    assert said["format"] == 1 and said["prediction"] == "autoregressive"
    graphs = {name for name in said["files"] if name.endswith(".onnx")}
    assert graphs == {"note_encoder.onnx", "cross_attention.onnx", "decoder.onnx", "vocoder.onnx"}
    main(["info", str(frames_voice)])
    assert "writes frame by frame" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("prediction", "epsilon", "sampling"),
        ("sampling", {"sampler": "ddim", "steps": 4, "guidance": 1.0}, "sampling"),
        ("prediction", "frames", "prediction"),
    ],
)
def test_crooked_descriptions_are_refused(
    frames_voice: Path, tmp_path: Path, key: str, value: Any, reason: str
) -> None:
    folder = Path(shutil.copytree(frames_voice, tmp_path / "voice"))
    said = json.loads((folder / "voice.json").read_text())
    (folder / "voice.json").write_text(json.dumps({**said, key: value}))
    with pytest.raises(VoiceError, match=f"{reason} is "):
        Voice.load(folder)


def test_a_voice_told_of_the_segment_before_cannot_be_one(frames_voice: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(frames_voice, tmp_path / "voice"))
    said = json.loads((folder / "voice.json").read_text())
    said["dimensions"]["context_encoder_layers"] = 2
    (folder / "voice.json").write_text(json.dumps(said))
    with pytest.raises(VoiceError, match="context_encoder_layers is 2"):
        Voice.load(folder)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_other_precisions_of_it_sing_alike(frames_voice: Path, tmp_path: Path, precision: str) -> None:
    voice = export_checkpoint(frames_voice, tmp_path / "voice", precision=precision)
    assert voice.is_autoregressive and voice.precision == precision
    mel = Synthesizer(voice.folder, backend="cpu", threads=1).spectrogram(SONG[:1])
    expected = Synthesizer(frames_voice, backend="cpu", threads=1).spectrogram(SONG[:1])
    error = np.abs(mel - expected).mean() / np.abs(expected - expected.mean()).mean()
    assert error < {"fp16": 0.05, "int8": 0.6}[precision]


def test_encoders_may_see_padding(tmp_path: Path) -> None:
    """As Google's configurations of this decoder were trained: it is part of the graph, and restored with it."""
    import dataclasses

    from notewave.export.checkpoints.seeded import RANDOM_SIZES
    from notewave.export.networks import T5

    size = dataclasses.replace(RANDOM_SIZES["tiny-frames"], max_tokens=64)
    torch.manual_seed(0)
    model = SpectrogramAutoregression(size, dataclasses.replace(T5, sees_padding=True)).eval().requires_grad_(False)
    voice = Voice.load(_exported(model, tmp_path / "voice"))
    restored = restore_voice(voice)
    assert restored.note_encoder.sees_padding
    tokens = torch.from_numpy(SONG[0])[None]
    padded = torch.nn.functional.pad(tokens, (0, 64 - 3), value=PAD)
    for one in (model, restored):
        torch.testing.assert_close(one.note_encoder(tokens), model.note_encoder(padded)[:, :3], rtol=1e-4, atol=1e-4)
    mel = Synthesizer(voice.folder, backend="cpu", threads=1).spectrogram(SONG[:1])
    expected = model(_network(mel), tokens)[0].numpy()
    assert np.abs(PUBLISHED_RANGE.from_network(expected) - mel).max() < 1e-3 * np.abs(mel).max()


def test_a_server_and_a_corpus_take_it(singer: Synthesizer, frames_voice: Path, tmp_path: Path) -> None:
    """With mels too, which come in parts."""
    pytest.importorskip("pyarrow")
    import soundfile
    from serving import serving, song

    from notewave.corpus import Machine, Making, make_corpus
    from notewave.sound.audio import pcm16

    (tmp_path / "song.mid").write_bytes(song(2))
    expected = singer.render(tmp_path / "song.mid").samples
    with serving(singer) as (_, client):
        answer = client.post("/render", params={"format": "f32le"}, content=song(2))
        assert answer.status_code == 200
        np.testing.assert_array_equal(np.frombuffer(answer.content, np.float32), expected)
        refused = client.post("/render", params={"steps": 4}, content=song(2))
        assert refused.status_code == 400 and "no steps to choose" in refused.text
    making, machine = Making(form="wav", mels=True), Machine(backend="cpu", workers=0, threads=1)
    out = tmp_path / "out"
    made = make_corpus(
        [str(tmp_path / "song.mid")], str(out), voices=[str(frames_voice)], making=making, machine=machine
    )
    assert (made.sung, made.failed) == (1, 0)
    (sound,) = out.rglob("*.wav")
    np.testing.assert_array_equal(soundfile.read(sound, dtype="int16")[0], pcm16(expected))
    (mel,) = (np.load(path) for path in out.rglob("*.npy"))
    np.testing.assert_allclose(mel, singer.spectrogram(tmp_path / "song.mid"), rtol=1e-2, atol=5e-2)
