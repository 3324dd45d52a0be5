"""Songs with the mels that a trained voice makes of them, for fine-tuning the vocoder on what it will be given."""

from __future__ import annotations

from pathlib import Path

from notewave.export.material.songs import SEGMENT_SAMPLES, Song, load_song, pack_mel, save_song
from notewave.export.training.generation import generate
from notewave.export.training.weights import load_weights, weights_about
from notewave.song.dialect import Dialect


def make_pairs(weights: Path, data: Path, out: Path, songs: int, segments: int, steps: int = 20) -> None:
    """Write the first segments of the first songs of ``data`` to ``out``, true samples beside generated mels.

    Songs that are there already stay.
    """
    out.mkdir(parents=True, exist_ok=True)
    model, dialect = load_weights(weights), Dialect(**weights_about(weights)["dialect"])
    paths = [path for path in sorted(data.glob("train-*.npz"))[:songs] if not (out / path.name).exists()]
    for start in range(0, len(paths), 8):
        originals = [load_song(path) for path in paths[start : start + 8]]
        made = generate(model, [song.tokens(dialect)[:segments] for song in originals], steps)
        for path, song, mel in zip(paths[start : start + 8], originals, made, strict=True):
            samples = song.samples[: len(mel) * SEGMENT_SAMPLES]
            save_song(Song(samples, pack_mel(mel), song.notes), out / path.name)
