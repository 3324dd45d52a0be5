"""Training of the shipped vocoder on audio: spectral losses at several resolutions, resumable, deterministic.

A mel's windows of 40 ms hardly part low pitches, whose overtones and beats must be read together. Spectral losses alone
teach that slowly, so the trunk must also name the pitches that the song's tokens say sound (a head thrown away later):
at first nothing else. Meanwhile a listener learns to name them from the sound, and then judges the vocoder's.

Letters: B batch, V frames of a crop, M mel bins, n samples.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from notewave.errors import VoiceError
from notewave.export.material.songs import load_song, unpack_mel
from notewave.export.training.config import VocoderTraining
from notewave.export.training.listener import HIGHEST, LOWEST, Listener, hearing_losses
from notewave.export.training.loop import Allowance, Average, Figures, Run, low_precision, plot_log
from notewave.export.training.symbolic import piano_rolls, pitch_loss
from notewave.export.vocoders import Tonewheel, save_vocoder
from notewave.song.dialect import PITCHES
from notewave.sound.distance import stft_loss
from notewave.sound.mel import (
    FFT,
    HOP,
    MAGNITUDE_MAX,
    MAGNITUDE_MIN,
    MELS,
    SAMPLE_RATE,
    WINDOW,
    FloatArray,
    hann,
    mel_weights,
)

RESOLUTIONS = (256, 1024, 2048, 4096, 8192)  # samples of the training loss's windows, as a crop has room; hop 1/4
PITCH_HZ = 100.0  # log magnitudes above it count less, as 1 / frequency: octaves alike, where pitches are told apart
EDGE = 4  # frames at both ends of a crop that the losses leave out
BETAS, WEIGHT_DECAY = (0.8, 0.99), 1e-3  # of the optimiser
NAMING_SHARE = 0.4  # of the time of a training by the clock
CLIP = 5.0  # norm of the gradient
MAGNITUDE_FLOOR = 1e-3  # added to STFT magnitudes before the logarithm: about -110 dB of full scale


def mel_of(audio: Tensor) -> Tensor:
    """``notewave.sound.mel.log_mel`` with gradients: audio [B, HOP (V - 1) + WINDOW] -> log-mel [B, V, M]."""
    window, weights = _analysis()
    magnitude = torch.fft.rfft(audio.unfold(-1, WINDOW, HOP) * window, FFT).abs()
    return (magnitude @ weights).clamp(MAGNITUDE_MIN, MAGNITUDE_MAX).log()


@functools.cache
def _analysis() -> tuple[Tensor, Tensor]:
    return torch.from_numpy(hann()).float(), torch.from_numpy(mel_weights()).float()


def spectral_loss(predicted: Tensor, true: Tensor, size: int) -> Tensor:
    """Spectral convergence plus weighted L1 of log magnitudes (Arik et al. 2018) at one window size; audio [B, n]."""
    ours, theirs = (_magnitude(audio, size) for audio in (predicted, true))
    convergence = (ours - theirs).square().sum((1, 2)).sqrt() / (theirs.square().sum((1, 2)).sqrt() + 1.0)
    weights = 1 / (1 + torch.linspace(0, SAMPLE_RATE / 2 / PITCH_HZ, size // 2 + 1))[:, None]
    log_error = ((ours + MAGNITUDE_FLOOR).log() - (theirs + MAGNITUDE_FLOOR).log()).abs() * (weights / weights.mean())
    return convergence.mean() + log_error.mean()


def _magnitude(audio: Tensor, size: int) -> Tensor:
    window = torch.hann_window(size, device=audio.device)
    return torch.stft(audio, size, size // 4, window=window, center=False, return_complex=True).abs()


@dataclass(frozen=True)
class Recording:
    """Audio, its pitches and, where a voice's own mel is to be vocoded, that mel; otherwise it is computed."""

    samples: NDArray[np.int16]  # [n]
    pitches: NDArray[np.uint8]  # [n / HOP, 2 PITCHES / 8], numpy.packbits: sounding, then starting
    mel: NDArray[np.uint8] | None = None  # [n / HOP, M], packed


def load_recordings(
    folder: Path, kind: str = "train", songs: int | None = None, with_mel: bool = False
) -> list[Recording]:
    """The first ``songs`` songs of a folder in the format of ``notewave.export.material.songs``."""
    recordings = []
    for path in sorted(folder.glob(f"{kind}-*.npz"))[:songs]:
        song = load_song(path)
        rolls = piano_rolls(song.notes, len(song.mel))
        pitches = np.packbits(rolls.reshape(-1, 2 * PITCHES) > 0, axis=1)
        recordings.append(Recording(song.samples, pitches, song.mel.reshape(-1, MELS) if with_mel else None))
    if not recordings:
        raise VoiceError(f"{folder} holds no {kind}-*.npz; render the training data first.")
    return recordings


@dataclass(frozen=True)
class Batch:
    """Crops of B recordings."""

    mel: Tensor  # float32 [B, V, M]
    audio: Tensor  # float32 [B, HOP (V + 1)]
    pitches: Tensor  # float32 [B, V, 2, PITCHES]


class Crops:
    """Batches of random crops, each drawn from (seed, step) alone."""

    def __init__(self, config: VocoderTraining, sources: Sequence[tuple[Sequence[Recording], float]]) -> None:
        """Sources are recordings with the share of each batch that comes from them."""
        self.config = config
        self.sources = [recordings for recordings, _ in sources]
        shares = np.array([share for _, share in sources])
        self.shares = shares / shares.sum()

    def draw(self, step: int) -> Batch:
        """One step's batch."""
        rng = np.random.default_rng((self.config.seed, step))
        samples, given, packed = zip(*(self._crop(rng) for _ in range(self.config.batch)), strict=True)
        audio = torch.from_numpy(np.stack(samples))
        mel = mel_of(audio)
        for row, own in enumerate(given):
            if own is not None:
                mel[row] = torch.from_numpy(own)
        pitches = np.unpackbits(np.stack(packed), axis=-1).astype(np.float32)
        return Batch(mel, audio, torch.from_numpy(pitches).unflatten(-1, (2, PITCHES)))

    def _crop(
        self, rng: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None, NDArray[np.uint8]]:
        frames = self.config.frames
        source = self.sources[int(rng.choice(len(self.sources), p=self.shares))]
        recording = source[int(rng.integers(len(source)))]
        gain = rng.uniform(*self.config.gain_db) * math.log(10) / 20
        start = int(rng.integers(len(recording.samples) // HOP - frames - 1))
        offset = start * HOP + (0 if recording.mel is not None else int(rng.integers(HOP)))
        samples = recording.samples[offset : offset + HOP * (frames + 1)] * np.float32(math.exp(gain) / 32767)
        pitches = recording.pitches[start : start + frames]
        if recording.mel is None:
            return samples, None, pitches
        return samples, unpack_mel(recording.mel[start : start + frames]) + np.float32(gain), pitches


class Trainer(Run):
    """The vocoder's training: its networks, what they are taught by, and their losses."""

    def __init__(
        self,
        config: VocoderTraining,
        folder: Path,
        allowance: Allowance | None = None,
        start: Tonewheel | None = None,
    ) -> None:
        self.config = config
        torch.manual_seed(config.seed)
        self.model = Tonewheel(**config.model)
        Tonewheel(**config.model)  # its draws come before those of the heads: a seed gives what it gave shipped voices
        self.pitches = nn.Linear(self.model.norm.weight.numel(), 2 * PITCHES)
        nn.init.constant_(self.pitches.bias, -3.0)
        if start is not None:
            self.model.load_state_dict(start.state_dict())
        self.listener = Listener()
        trained = nn.ModuleDict({"model": self.model, "pitches": self.pitches, "listener": self.listener})
        super().__init__(
            folder,
            "vocoder",
            trained,
            torch.optim.AdamW(trained.parameters(), betas=BETAS, weight_decay=WEIGHT_DECAY),
            Average(self.model, config.average),
            about=self.model.arguments,
            checkpoint_seconds=config.checkpoint_seconds,
            allowance=allowance,
        )

    def advance(self, batch: Batch) -> dict[str, float]:
        """One optimiser step; returns the losses."""
        for group in self.optimiser.param_groups:
            group["lr"] = self._learning_rate() * self.falling
        with low_precision("cpu"):  # the amplitudes and the audio stay in float32
            features = self.model.trunk(batch.mel)
            logits = self.pitches(features)
        pitch = pitch_loss(logits.float().unflatten(-1, (2, PITCHES)), batch.pitches)
        losses = {"pitch": pitch, "loss": self.config.pitch_weight * pitch}
        naming = self.naming
        self.listener.requires_grad_(naming)
        losses |= self._listening_losses(batch) if naming else self._sound_losses(features, batch)
        losses["loss"] = losses["loss"] + (losses["listening"] if naming else losses["sound"])
        losses["loss"].backward()
        return {**{name: value.item() for name, value in losses.items()}, "norm": self.update(CLIP)}

    @property
    def naming(self) -> bool:
        """Whether pitches are named yet, and nothing else: to a number of steps or, by the clock, some of the time."""
        used = self.allowance.used if self.allowance else 0.0
        return self.step < self.config.naming_steps and used < NAMING_SHARE

    def _listening_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Of the pitches that the listener names in the true audio, with noise under it from -40 to -100 dB."""
        generator = torch.Generator().manual_seed(self.step)
        level_db = -40.0 - 60.0 * torch.rand(len(batch.audio), 1, generator=generator)
        noise = torch.randn(batch.audio.shape, generator=generator) * 10 ** (level_db / 20)
        with low_precision("cpu"):
            logits = self.listener((batch.audio + noise)[:, :-HOP])
        return {"listening": pitch_loss(logits, batch.pitches[..., LOWEST:HIGHEST])}

    def _sound_losses(self, features: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Of the audio that the trunk's features [B, V, D] give: at each resolution, of its mel, and all together."""
        frame = torch.tensor([self.step * 7919 % Tonewheel.PERIOD])
        predicted = self.model.synthesise(features.float(), batch.mel, frame)
        inner = slice(EDGE * HOP, -EDGE * HOP)  # the crop's edges lack what comes before and after
        predicted, true = predicted[:, inner], batch.audio[:, :-HOP][:, inner]
        sizes = [size for size in RESOLUTIONS if size <= true.shape[1]]
        losses = {f"stft_{size}": spectral_loss(predicted, true, size) for size in sizes}
        mel_loss = F.l1_loss(mel_of(predicted), mel_of(true))
        sound = torch.stack(list(losses.values())).mean() + self.config.mel_weight * mel_loss
        losses |= {"mel": mel_loss}
        if self.config.naming_steps:  # the listener has learned something
            with low_precision("cpu"):
                losses["heard"], losses["features"] = hearing_losses(self.listener, predicted, true)
            sound = sound + self.config.heard_weight * losses["heard"] + self.config.feature_weight * losses["features"]
        return {**losses, "sound": sound}

    def _learning_rate(self) -> float:
        """Warm-up, a plateau, a linear decay: ``steps`` may be moved while the plateau lasts."""
        config = self.config
        naming = self.naming
        first, steps = (0, config.naming_steps) if naming else (config.naming_steps, config.steps)
        warm_up = (self.step - first + 1) / config.warm_up
        decay = (first + steps - self.step) / (config.decay * steps)
        return config.learning_rate * min(1.0, warm_up, decay)

    @torch.no_grad()
    def validate(self, recordings: Sequence[Recording], seconds: float = 10.0) -> dict[str, float]:
        """STFT loss and mel L1 (of bins above -8 nats) on the starts of recordings."""
        stft, mel = [], []
        for recording in recordings:
            whole = int(seconds * SAMPLE_RATE) // HOP * HOP
            samples: FloatArray = recording.samples[:whole].astype(np.float32) / np.float32(32767)
            audio = torch.from_numpy(samples)[None]
            true = mel_of(F.pad(audio, (0, HOP)))
            predicted = self.model(true, torch.zeros(1, dtype=torch.int64))
            stft.append(stft_loss(predicted[0].numpy(), samples))
            mel.append(float((mel_of(F.pad(predicted, (0, HOP))) - true).abs()[true > -8].mean()))
        return {"valid_stft": float(np.mean(stft)), "valid_mel": float(np.mean(mel))}


def train_vocoder(
    config: VocoderTraining,
    data: Mapping[Path, float],
    out: Path,
    pairs: Path | None = None,
    songs: int | None = None,
    allowance: Allowance | None = None,
    start: Tonewheel | None = None,
) -> Tonewheel | None:
    """Train to ``config.all_steps``, from ``out``'s checkpoint on where there is one, and write ``final`` there.

    Returns the vocoder with averaged weights, or None if SIGTERM or SIGINT stopped it. ``data`` maps folders of songs
    to their share of each batch. ``pairs`` is a folder in the same format whose mels a voice generated, for the same
    samples: for fine-tuning on them. ``start``: a vocoder of the same size to begin with.
    """
    sources = [(load_recordings(folder, songs=songs), share) for folder, share in data.items()]
    if pairs is not None:
        sources = [(recordings, share * (1 - config.pair_fraction)) for recordings, share in sources]
        sources.append((load_recordings(pairs, with_mel=True), config.pair_fraction * sum(data.values())))
    held_out = load_recordings(next(iter(data)), kind="heldout")
    crops, trainer = Crops(config, sources), Trainer(config, out, allowance, start)

    def validate() -> Figures:
        save_vocoder(trainer.model, out / "final")
        return trainer.validate(held_out)

    finished = trainer.train(
        config.all_steps,
        lambda: trainer.advance(crops.draw(trainer.step)),
        validate,
        due=lambda: trainer.step % config.validate_every == 0,
        log_every=1,
    )
    plot_log(out)
    if not finished:
        return None
    trainer.average.settle()
    save_vocoder(trainer.model, out / "final")
    return trainer.model
