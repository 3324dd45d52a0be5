"""Songs with the mels that a trained voice makes of them, for fine-tuning the vocoder on what it will be given."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from notewave.contracts import Dimensions
from notewave.export.modules import SpectrogramDiffusion
from notewave.export.training.data import SEGMENT_SAMPLES, Song, load_song, save_song
from notewave.export.training.diffusion import generate


def load_weights(weights: Path) -> SpectrogramDiffusion:
    """The networks of a run's averaged weights, ``ema.safetensors``."""
    about = json.loads(weights.with_suffix(".json").read_text())
    model = SpectrogramDiffusion(Dimensions(**about["dimensions"]))
    model.load_state_dict(load_file(weights))
    return model.eval()


def make_pairs(weights: Path, data: Path, out: Path, songs: int, segments: int, steps: int = 20) -> None:
    """Write the first segments of the first songs of ``data`` to ``out``, true samples beside generated mels."""
    out.mkdir(parents=True, exist_ok=True)
    model, paths = load_weights(weights), sorted(data.glob("train-*.npz"))[:songs]
    for start in range(0, len(paths), 8):
        originals = [load_song(path) for path in paths[start : start + 8]]
        made = generate(model, [song.tokens[:segments] for song in originals], steps)
        for path, song, mel in zip(paths[start : start + 8], originals, made, strict=True):
            samples = song.samples[: len(mel) * SEGMENT_SAMPLES]
            save_song(Song(samples, mel.astype(np.float16), song.tokens[: len(mel)]), out / path.name)


def main() -> None:
    """Write generated mels beside true audio: ``python -m notewave.export.training.pairs WEIGHTS DATA OUT``."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("weights", type=Path, help="ema.safetensors of a run")
    parser.add_argument("data", type=Path, help="rendered songs")
    parser.add_argument("out", type=Path)
    parser.add_argument("--songs", type=int, default=32)
    parser.add_argument("--segments", type=int, default=6, help="of each song")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    make_pairs(options.weights, options.data, options.out, options.songs, options.segments, options.steps)


if __name__ == "__main__":
    main()
