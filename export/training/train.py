"""A voice from nothing: data, symbolic stage, mel stage, vocoder, voice folder."""

from __future__ import annotations

import json
from pathlib import Path

from notewave.errors import TrainingError
from notewave.export.convert import export_voice
from notewave.export.graphs.restore import restore_vocoder
from notewave.export.material.packing import pack_songs
from notewave.export.material.songs import make_data
from notewave.export.networks import SpectrogramDiffusion
from notewave.export.training.config import load_config
from notewave.export.training.diffusion import PREDICTION, SCHEDULE
from notewave.export.training.distil import train_student
from notewave.export.training.loop import Allowance, plot_log
from notewave.export.training.pairs import make_pairs
from notewave.export.training.stages import prepare_for_mel, train_mel, train_symbolic, trained_model
from notewave.export.training.vocoder import train_vocoder
from notewave.export.training.weights import load_weights, weights_dialect
from notewave.export.vocoders import load_vocoder
from notewave.sampling.options import Sampling
from notewave.voice.folder import Voice

SAMPLING, DISTILLED = Sampling("dpmpp-2m", steps=4, guidance=1.2), Sampling("dpmpp-2m", steps=1)
LICENCE = "Apache-2.0"
SYMBOLIC_SHARE, MEL_SHARE, DISTIL_SHARE = 0.2, 0.7, 0.8  # of a training's time: when these stages end
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
) -> Voice | None:
    """Train a voice and write it to ``out``; started again, go on where the last run was stopped.

    config: a file or the name of a bundled configuration. state: folder of checkpoints, log, curve and weights
    (default: ``out`` with ".training" added). data: folder of rendered songs (default: "data" in the state folder), of
    which those that it lacks are rendered, or a pack of them. vocoder: file of a trained vocoder, in the place of
    training one. start: folder of a voice whose networks and vocoder training begins with; without one the symbolic
    stage makes networks. minutes: how long to train in all. By then there is a voice: each stage has its share of the
    time, in whose last fifth its learning rate falls; started again, it goes on from where that began.
    Stopped by SIGTERM or SIGINT while a stage trains, the vocoder's too, it saves its state and returns None; elsewhere
    it ends at once, and whatever is on the disk is whole. Raises TrainingError for a bad configuration or state,
    ToolError where FluidSynth or music21 is missing, VoiceError for a voice that can't be gone on from.
    """
    settings = load_config(config)
    folder = Path(state) if state else Path(f"{out}.training")
    songs = Path(data) if data else folder / "data"
    packed = songs.is_file()
    if not packed:
        make_data(songs, settings.data, settings.threads)
    clock = None if minutes is None else Allowance.from_now(60 * minutes)
    wants_vocoder = vocoder is None and settings.vocoder is not None
    if packed and wants_vocoder:
        raise TrainingError(f"{songs} has no sound to train a vocoder on: a pack is without. Name a trained --vocoder.")

    def until(share: float) -> Allowance | None:
        """From now to this share of all the time."""
        return None if clock is None else Allowance.from_now((share - clock.used) * clock.seconds)

    origin = None if start is None else Voice.load(start)
    model: SpectrogramDiffusion | None = None if origin is None else trained_model(settings, origin)
    if origin is None or origin.dialect != settings.dialect:  # it must learn to read, or to read other tokens
        model = train_symbolic(settings, folder, until(SYMBOLIC_SHARE), model)
    if origin is None and model is not None:
        prepare_for_mel(model, settings, songs)
    last = 1.0 if not wants_vocoder else DISTIL_SHARE if settings.distil else MEL_SHARE
    end = MEL_SHARE if settings.distil else last
    weights = train_mel(settings, folder, songs, model, until(end)) if model is not None else None
    if weights is not None and settings.distil:
        weights = train_student(settings, folder / "distil", songs, load_weights(weights), until(last))
    plot_log(folder)
    if weights is None:
        return None
    if wants_vocoder and settings.vocoder is not None:
        vocoder = folder / "vocoder" / "final"
        make_pairs(weights, songs, folder / "pairs", PAIRED_SONGS, PAIRED_SEGMENTS)
        pairs, count = folder / "pairs", settings.data.songs
        first = restore_vocoder(origin, settings.vocoder.model) if origin is not None and origin.vocoder else None
        if train_vocoder(settings.vocoder, {songs: 1.0}, vocoder.parent, pairs, count, until(1.0), first) is None:
            return None
    return write_voice(weights, Path(out), vocoder, precision)


def pack(config: str | Path, data: str | Path, out: str | Path) -> int:
    """Render a configuration's songs into a folder, as far as it lacks them, and pack them; returns their number.

    Raises what ``train`` raises of data, and OutputError where the pack cannot be written.
    """
    settings = load_config(config)
    make_data(Path(data), settings.data, settings.threads)
    return pack_songs(Path(data), Path(out), settings.data.songs)


def write_voice(weights: Path, out: Path, vocoder: str | Path | None = None, precision: str = "fp16") -> Voice:
    """Write a voice folder of averaged weights and, if there is one, a trained vocoder."""
    about = json.loads(weights.with_suffix(".json").read_text())
    return export_voice(
        load_weights(weights),
        out,
        name=out.name,
        licence=LICENCE,
        provenance=about["provenance"],
        prediction=PREDICTION,
        schedule=SCHEDULE,
        sampling=DISTILLED if about["distilled"] else SAMPLING,
        dialect=weights_dialect(weights),
        precision=precision,
        vocoder=load_vocoder(Path(vocoder)) if vocoder else None,
    )
