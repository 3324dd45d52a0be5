"""Songs with the mels that a trained voice makes of them, for fine-tuning the vocoder on what it will be given."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from notewave.export.material.songs import SEGMENT_SAMPLES, Song, load_song, save_song
from notewave.export.training.diffusion import generate
from notewave.export.training.weights import load_weights


def make_pairs(weights: Path, data: Path, out: Path, songs: int, segments: int, steps: int = 20) -> None:
    """Write the first segments of the first songs of ``data`` to ``out``, true samples beside generated mels.

    Songs that are there already stay.
    """
    out.mkdir(parents=True, exist_ok=True)
    model = load_weights(weights)
    paths = [path for path in sorted(data.glob("train-*.npz"))[:songs] if not (out / path.name).exists()]
    for start in range(0, len(paths), 8):
        originals = [load_song(path) for path in paths[start : start + 8]]
        made = generate(model, [song.tokens[:segments] for song in originals], steps)
        for path, song, mel in zip(paths[start : start + 8], originals, made, strict=True):
            samples = song.samples[: len(mel) * SEGMENT_SAMPLES]
            save_song(Song(samples, mel.astype(np.float16), song.tokens[: len(mel)]), out / path.name)
