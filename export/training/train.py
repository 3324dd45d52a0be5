"""A voice from nothing: data, symbolic stage, mel stage, voice folder."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

from notewave.export.convert import export_voice
from notewave.export.training.config import load_config
from notewave.export.training.data import make_data
from notewave.export.training.diffusion import PREDICTION, SCHEDULE
from notewave.export.training.pairs import load_weights
from notewave.export.training.stages import plot_log, train_mel, train_symbolic
from notewave.export.vocoders import load_vocoder
from notewave.voice import Sampling, Voice

log = logging.getLogger(__name__)

SAMPLING = Sampling("dpmpp-2m", steps=20)
LICENCE = "Apache-2.0"


def train(
    config: str | Path,
    out: str | Path,
    *,
    state: str | Path | None = None,
    data: str | Path | None = None,
    vocoder: str | Path | None = None,
    precision: str = "fp16",
) -> Voice | None:
    """Train a voice and write it to ``out``; started again, go on where the last run was stopped.

    config: a file or the name of a bundled configuration. state: folder of checkpoints, log, curve and weights
    (default: ``out`` with ".training" added). data: folder of rendered songs (default: "data" in the state folder);
    songs that it lacks are rendered. vocoder: file of a vocoder trained by ``notewave.export.training.vocoder``.
    Stopped by SIGTERM or SIGINT, it saves its state and returns None. Raises ValueError for a bad configuration.
    """
    settings = load_config(config)
    folder = Path(state) if state else Path(f"{out}.training")
    songs = Path(data) if data else folder / "data"
    make_data(songs, settings.data.songs, settings.data.held_out_songs, settings.data.seed, settings.data.seconds)
    model = train_symbolic(settings, folder)
    weights = train_mel(settings, folder, songs, model) if model is not None else None
    if (folder / "log.jsonl").exists():
        plot_log(folder)
    return write_voice(weights, Path(out), vocoder, precision) if weights is not None else None


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


def main() -> None:
    """Train a voice: ``python -m notewave.export.training.train --config piano --out VOICE``."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--config", required=True, help="a JSON file or the name of a bundled configuration")
    parser.add_argument("--out", type=Path, required=True, help="voice folder to write")
    parser.add_argument("--state", type=Path, help="checkpoints, log and weights (default: OUT.training)")
    parser.add_argument("--data", type=Path, help="rendered songs (default: STATE/data)")
    parser.add_argument("--vocoder", type=Path, help="a trained vocoder")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train(options.config, options.out, state=options.state, data=options.data, vocoder=options.vocoder)


if __name__ == "__main__":
    main()
