"""A voice from nothing: data, symbolic stage, mel stage, vocoder, voice folder."""

from __future__ import annotations

import json
from pathlib import Path

from notewave.export.convert import export_voice
from notewave.export.material.songs import make_data
from notewave.export.networks import SpectrogramDiffusion
from notewave.export.training.config import load_config
from notewave.export.training.diffusion import PREDICTION, SCHEDULE
from notewave.export.training.loop import plot_log
from notewave.export.training.pairs import make_pairs
from notewave.export.training.stages import prepare_for_mel, train_mel, train_symbolic, trained_model
from notewave.export.training.vocoder import train_vocoder
from notewave.export.training.weights import load_weights
from notewave.export.vocoders import load_vocoder
from notewave.sampling.options import Sampling
from notewave.voice.folder import Voice

SAMPLING = Sampling("dpmpp-2m", steps=4, guidance=1.2)
LICENCE = "Apache-2.0"
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
) -> Voice | None:
    """Train a voice and write it to ``out``; started again, go on where the last run was stopped.

    config: a file or the name of a bundled configuration. state: folder of checkpoints, log, curve and weights
    (default: ``out`` with ".training" added). data: folder of rendered songs (default: "data" in the state folder);
    songs that it lacks are rendered. vocoder: file of a trained vocoder, in the place of training one.
    start: folder of a voice whose networks the mel stage starts from; without one the symbolic stage makes them.
    Stopped by SIGTERM or SIGINT while a stage trains, the vocoder's too, it saves its state and returns None; elsewhere
    it ends at once, and whatever is on the disk is whole. Raises TrainingError for a bad configuration or state,
    ToolError where FluidSynth or music21 is missing, VoiceError for a voice that can't be gone on from.
    """
    settings = load_config(config)
    folder = Path(state) if state else Path(f"{out}.training")
    songs = Path(data) if data else folder / "data"
    make_data(songs, settings.data, settings.threads)
    if start is not None:
        model: SpectrogramDiffusion | None = trained_model(settings, Voice.load(start))
    elif (model := train_symbolic(settings, folder)) is not None:
        prepare_for_mel(model, settings, songs)
    weights = train_mel(settings, folder, songs, model) if model is not None else None
    plot_log(folder)
    if weights is None:
        return None
    if vocoder is None and settings.vocoder is not None:
        vocoder = folder / "vocoder" / "final"
        make_pairs(weights, songs, folder / "pairs", PAIRED_SONGS, PAIRED_SEGMENTS)
        pairs, count = folder / "pairs", settings.data.songs
        if train_vocoder(settings.vocoder, {songs: 1.0}, vocoder.parent, pairs, count) is None:
            return None
    return write_voice(weights, Path(out), vocoder, precision)


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
        sampling=SAMPLING,
        precision=precision,
        vocoder=load_vocoder(Path(vocoder)) if vocoder else None,
    )
