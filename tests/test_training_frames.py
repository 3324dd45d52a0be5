"""Training of an autoregressive decoder: what it starts from, what it learns from, and the voice that comes of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from notewave.errors import TrainingError, VoiceError
from notewave.export.autoregressive import SpectrogramAutoregression
from notewave.export.material.ensembles import PIANO
from notewave.export.material.pieces import compose
from notewave.export.material.segments import Segments
from notewave.export.material.songs import Data, Song, save_song
from notewave.export.networks import SpectrogramDiffusion
from notewave.export.training.config import Config, Stage, load_config
from notewave.export.training.diffusion import mel_batch
from notewave.export.training.frames import frame_loss, frames_of, write_frames
from notewave.export.training.generation import generate, mel_scores
from notewave.export.training.loop import read_log
from notewave.export.training.queries import scale_queries
from notewave.export.training.stages import prepare_for_mel, train_mel, train_symbolic, trained_model
from notewave.export.training.train import write_voice
from notewave.export.training.weights import load_weights
from notewave.song.codec import encode_notes
from notewave.song.dialect import PUBLISHED, Dialect
from notewave.sound.mel import FRAMES, MELS
from notewave.synthesizer import Synthesizer
from notewave.voice.contracts import Dimensions

TINY = Dimensions(32, 2, 16, 48, 2, 0, 3)


def config(mel: int, rate: float = 1e-2) -> Config:
    return Config(
        name="tiny",
        dimensions=TINY,
        decoder="autoregressive",
        symbolic=(Stage(1, segments=4, tokens=1800, frames=32),),
        mel=(Stage(mel, segments=2, learning_rate=rate, learning_rate_end=rate),),
        data=Data(songs=2, held_out_songs=0),
        structured=False,
        threads=1,
        validate_seconds=1e9,
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Songs with true tokens and mels that rise and fall alike in each segment: FluidSynth is not needed here."""
    folder = tmp_path_factory.mktemp("songs")
    for index in range(2):
        notes = compose(np.random.default_rng(index), PIANO, 14.0)
        mel = np.full((len(encode_notes(notes)), FRAMES, MELS), 60, np.uint8)
        mel += (100 * np.abs(np.sin(np.arange(FRAMES) / 9))).astype(np.uint8)[:, None]
        save_song(Song(np.zeros(0, np.int16), mel, notes), folder / f"train-{index:05d}.npz")
    return folder


@pytest.fixture
def model() -> SpectrogramAutoregression:
    torch.manual_seed(0)
    return SpectrogramAutoregression(TINY).requires_grad_(False)


def test_it_begins_with_what_the_symbolic_stage_taught() -> None:
    torch.manual_seed(0)
    taught = SpectrogramDiffusion(TINY).requires_grad_(False)
    before = {name: value.clone() for name, value in taught.state_dict().items()}
    scale_queries(taught)
    model = frames_of(taught)
    tokens = torch.tensor([[5, 1140, 1]])
    torch.testing.assert_close(model.note_encoder(tokens), taught.note_encoder(tokens))
    plain = SpectrogramAutoregression(TINY)
    plain.load_state_dict({name: before[name] for name in plain.state_dict()})
    mel = torch.rand(1, FRAMES, MELS)
    torch.testing.assert_close(model(mel, tokens), plain(mel, tokens), rtol=1e-4, atol=1e-5)


def test_songs_are_written_as_the_decoder_foretells_them(model: SpectrogramAutoregression) -> None:
    tokens = torch.tensor([[5, 1140, 1], [7, 1150, 1]])
    written = write_frames(model, tokens)
    torch.testing.assert_close(model(written, tokens), written, rtol=1e-4, atol=1e-4)
    arrays = [PUBLISHED.tokens(one.numpy()) for one in tokens]
    first, second = generate(model, [[arrays[0], arrays[1]], [arrays[1]]])
    assert first.shape == (2, FRAMES, MELS) and second.shape == (1, FRAMES, MELS)
    np.testing.assert_allclose(first[1], second[0], rtol=0, atol=1e-3)
    scores = mel_scores(model, [([arrays[0]], first[:1] + 0.5)], first[0].mean(axis=0))
    assert scores["mel_error"] == pytest.approx(0.5, abs=1e-3)


def test_noise_is_on_the_past_alone(model: SpectrogramAutoregression, data: Path) -> None:
    phase = Stage(1, segments=2)
    batch = mel_batch(Segments(data, PUBLISHED, Data(songs=2)), 0, 0, phase)
    generator = torch.Generator().manual_seed(0)
    plain, noisy = (
        frame_loss(model, batch, dataclasses.replace(phase, past_noise=level), generator) for level in (0.0, 0.5)
    )
    assert torch.isfinite(noisy) and noisy != plain
    again = frame_loss(model, batch, phase, torch.Generator().manual_seed(9))
    assert again == plain, "without noise nothing is drawn"


def test_a_voice_comes_of_it(tmp_path: Path, data: Path) -> None:
    """Training lowers the loss, and the voice writes what the trained networks do."""
    settings = config(40)
    taught = train_symbolic(settings, tmp_path)
    assert taught is not None
    weights = train_mel(settings, tmp_path, data, prepare_for_mel(taught, settings, data))
    assert weights is not None
    losses = [line["loss"] for line in read_log(tmp_path) if line.get("stage") == "mel" and "loss" in line]
    assert losses[-1] < 0.7 * losses[0]
    voice = write_voice(weights, tmp_path / "voice", precision="fp32")
    assert voice.is_autoregressive
    tokens = PUBLISHED.tokens([1134, 300, 1])
    (expected,) = generate(load_weights(weights), [[tokens]])
    found = Synthesizer(voice.folder, backend="cpu", threads=1).spectrogram([tokens])
    np.testing.assert_allclose(found, expected[0], rtol=0, atol=2e-2)
    with pytest.raises(VoiceError, match="another prediction"):
        trained_model(settings, voice)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"decoder": "recurrent"}, "decoder is 'recurrent'"),
        ({"dimensions": dataclasses.replace(TINY, context_encoder_layers=1)}, "context_encoder_layers 0"),
        ({"distil": (Stage(1, 1),)}, "no steps to distil"),
        ({"dialect": Dialect(codec="pytorch")}, "codec 'mt3', and the dialect says 'pytorch'"),
    ],
)
def test_configurations_that_cannot_be(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(TrainingError, match=reason):
        dataclasses.replace(config(1), **changes)  # type: ignore[arg-type]


def test_the_compared_configurations_are_alike() -> None:
    """As many weights to 3 %, the same songs, as many steps of as many segments."""
    one, other = (load_config(f"compare-{decoder}") for decoder in ("diffusion", "autoregressive"))
    assert (one.data, one.symbolic, one.muon, one.vocoder) == (other.data, other.symbolic, other.muon, other.vocoder)
    stages = [[(stage.steps, stage.segments, stage.learning_rate) for stage in each.mel] for each in (one, other)]
    assert stages[0] == stages[1]
    with torch.device("meta"):
        models = SpectrogramDiffusion(one.dimensions), SpectrogramAutoregression(other.dimensions)
    counts = [sum(weight.numel() for weight in model.parameters()) for model in models]
    assert counts[1] == pytest.approx(counts[0], rel=0.03)
