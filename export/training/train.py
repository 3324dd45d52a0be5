"""A voice from nothing: data, symbolic stage, mel stage, vocoder, voice folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from notewave.checks import is_number, quoted
from notewave.errors import ArgumentError, ToolError, TrainingError
from notewave.export.autoregressive import VoiceNetworks
from notewave.export.convert import export_voice
from notewave.export.graphs.restore import restore_vocoder
from notewave.export.material.packing import pack_songs
from notewave.export.material.songs import make_data
from notewave.export.material.timbres import Timbres
from notewave.export.networks import SpectrogramDiffusion
from notewave.export.training.config import Config, for_gpu, load_config
from notewave.export.training.diffusion import PREDICTION, SCHEDULE
from notewave.export.training.distil import train_student
from notewave.export.training.loop import Allowance, plot_log
from notewave.export.training.pairs import make_pairs
from notewave.export.training.stages import prepare_for_mel, train_mel, train_symbolic, trained_model
from notewave.export.training.vocoder import train_vocoder
from notewave.export.training.weights import load_weights, weights_about
from notewave.export.vocoders import load_vocoder
from notewave.sampling.options import FRAME_BY_FRAME, Sampling
from notewave.song.dialect import Dialect
from notewave.voice.folder import Voice

SAMPLING, DISTILLED = Sampling("dpmpp-2m", steps=4, guidance=1.2), Sampling("dpmpp-2m", steps=1)
LICENCE = "Apache-2.0"
SYMBOLIC_SHARE, MEL_SHARE, DISTIL_SHARE = 0.2, 0.7, 0.8  # of a training's time: when these stages end
TIMBRES = "timbres.npz"  # beside the songs
PAIRED_SONGS, PAIRED_SEGMENTS = 32, 6  # vocoded from generated mels while the vocoder trains


def train(
    config: str | Path,
    out: str | Path,
    *,
    state: str | Path | None = None,
    data: str | Path | None = None,
    vocoder: str | Path | None = None,
    start: str | Path | None = None,
    precision: str = "fp16",
    minutes: float | None = None,
    device: str | None = None,
) -> Voice | None:
    """Train a voice and write it to ``out``; started again, go on where the last run was stopped.

    config: a file or the name of a bundled configuration. state: folder of checkpoints, log, curve and weights
    (default: ``out`` with ".training" added). data: folder of rendered songs (default: "data" in the state folder), of
    which those that it lacks are rendered, or a pack of them. vocoder: file of a trained vocoder, in the place of
    training one. start: folder of a voice whose networks and vocoder training begins with; without one the symbolic
    stage makes networks. minutes: how long to train in all, once there is data; then a voice is written. Each stage has
    its share of the time, in whose last fifth its learning rate falls; started again, it goes on from where that began.
    device: "cpu", or "cuda" with larger batches than a configuration for the CPU has; default: as the
    configuration says.
    Stopped by SIGTERM or SIGINT while a stage trains, the vocoder's too, it saves its state and returns None; elsewhere
    it ends at once, and whatever is on the disk is whole. Raises TrainingError for a bad configuration or state,
    ToolError where FluidSynth or music21 is missing, VoiceError for a voice that can't be gone on from.
    """
    if minutes is not None and not is_number(minutes, 1e-3, 1e9):
        raise ArgumentError(f"minutes is {quoted(minutes)}; it must be a number above 0, or None for no limit.")
    settings = _on(load_config(config), device)
    folder = Path(state) if state else Path(f"{out}.training")
    songs = Path(data) if data else folder / "data"
    wants_vocoder = vocoder is None and settings.vocoder is not None
    timbres = None
    if not songs.is_file():
        make_data(songs, settings.data, settings.threads)
        if settings.data.ensemble != "piano":
            timbres = Timbres.load(songs / TIMBRES, settings.threads)
    elif wants_vocoder:
        raise TrainingError(f"{songs} has no sound to train a vocoder on: a pack is without. Name a trained --vocoder.")
    clock = None if minutes is None else Allowance.from_now(60 * minutes)
    origin = None if start is None else Voice.load(start)
    weights = _train_networks(settings, folder, songs, origin, clock, wants_vocoder, timbres)
    plot_log(folder)
    if weights is not None and wants_vocoder:
        vocoder = folder / "vocoder" / "final"
        if not _train_vocoder(settings, folder, songs, origin, clock, weights):
            return None
    return None if weights is None else write_voice(weights, Path(out), vocoder, precision)


def _train_networks(
    config: Config,
    folder: Path,
    songs: Path,
    origin: Voice | None,
    clock: Allowance | None,
    wants_vocoder: bool,
    timbres: Timbres | None,
) -> Path | None:
    """The symbolic and the mel stage and the distillation; the file of weights, or None if it was stopped."""
    model: SpectrogramDiffusion | None = None if origin is None else trained_model(config, origin)
    if origin is None or origin.dialect != config.dialect:  # it must learn to read, or to read other tokens
        model = train_symbolic(config, folder, _until(SYMBOLIC_SHARE, clock), model, timbres)
    if model is None:
        return None
    ready: VoiceNetworks = model if origin is not None else prepare_for_mel(model, config, songs)
    last = 1.0 if not wants_vocoder else DISTIL_SHARE if config.distil else MEL_SHARE
    weights = train_mel(config, folder, songs, ready, _until(MEL_SHARE if config.distil else last, clock))
    if weights is None or not config.distil:
        return weights
    state = folder / f"distil-{weights_about(weights)['steps_trained']}"  # a student of this teacher, and no other's
    teacher = load_weights(weights)
    assert isinstance(teacher, SpectrogramDiffusion), "no configuration has the other decoder distilled"
    return train_student(config, state, songs, teacher, _until(last, clock))


def _train_vocoder(
    config: Config, folder: Path, songs: Path, origin: Voice | None, clock: Allowance | None, weights: Path
) -> bool:
    """The vocoder's stage, partly on mels that the weights make; False if it was stopped."""
    assert config.vocoder is not None
    pairs = folder / "pairs"
    make_pairs(weights, songs, pairs, PAIRED_SONGS, PAIRED_SEGMENTS)
    first = restore_vocoder(origin, config.vocoder.model) if origin is not None and origin.vocoder else None
    out, count = folder / "vocoder", config.data.songs
    return train_vocoder(config.vocoder, {songs: 1.0}, out, pairs, count, _until(1.0, clock), first) is not None


def _until(share: float, clock: Allowance | None) -> Allowance | None:
    """From now to this share of all the time."""
    return None if clock is None else Allowance.from_now((share - clock.used) * clock.seconds)


def _on(config: Config, device: str | None) -> Config:
    """A configuration for a device. Raises ArgumentError for an unknown one, ToolError where there is none."""
    if device not in (None, "cpu", "cuda"):
        raise ArgumentError(
            f'device is {quoted(device)}; it must be "cpu" or "cuda", or None for the configuration\'s.'
        )
    if device == "cuda" and config.device == "cpu":
        config = for_gpu(config)
    elif device == "cpu":
        config = replace(config, device="cpu")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ToolError(
            f"The configuration {config.name} is to be trained on a GPU, and PyTorch finds none here. Check "
            'torch.cuda.is_available(), or train on the CPU: device="cpu".'
        )
    return config


def pack(config: str | Path, data: str | Path, out: str | Path) -> int:
    """Render a configuration's songs into a folder, as far as it lacks them, and pack them; returns their number.

    Raises what ``train`` raises of data, and OutputError where the pack cannot be written.
    """
    settings = load_config(config)
    make_data(Path(data), settings.data, settings.threads)
    return pack_songs(Path(data), Path(out), settings.data.songs)


def write_voice(weights: Path, out: Path, vocoder: str | Path | None = None, precision: str = "fp16") -> Voice:
    """Write a voice folder of averaged weights and, if there is one, a trained vocoder."""
    about = weights_about(weights)
    sampling = DISTILLED if about["distilled"] else SAMPLING
    return export_voice(
        load_weights(weights),
        out,
        name=out.name,
        licence=LICENCE,
        provenance=about["provenance"],
        prediction=about["prediction"],
        schedule=SCHEDULE,
        sampling=sampling if about["prediction"] == PREDICTION else FRAME_BY_FRAME,
        dialect=Dialect(**about["dialect"]),
        precision=precision,
        vocoder=load_vocoder(Path(vocoder)) if vocoder else None,
    )
