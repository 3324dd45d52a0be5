"""A second judge of which notes are heard: transkun (Yan & Duan 2024), a transcriber of pianos, where it is installed.

Its wheel (MIT licence) has its weights. It takes long, so that it hears the first seconds of a song only.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from notewave.benchmarks.judges import PitchedNotes
from notewave.song.notes import Notes
from notewave.sound.mel import SAMPLE_RATE, SEGMENT_SECONDS

HEARD_SECONDS = 3 * SEGMENT_SECONDS  # of a song
WINDOW_SECONDS = 16  # that transkun looks at together
PIANOS = range(4)  # programs


def can_judge(notes: Notes) -> bool:
    """Whether a song is a piano's alone, and has notes in what is heard of it."""
    return not notes.is_drum.any() and bool(np.isin(notes.program, PIANOS).all() and len(_heard(notes)))


def written(notes: Notes) -> PitchedNotes:
    """The notes of a song that ought to be heard."""
    return PitchedNotes.of(_heard(notes))


def _heard(notes: Notes) -> Notes:
    return notes.rows(notes.onset_s < HEARD_SECONDS)


class PianoTranscriber:
    """transkun's network with its own rules from scores to notes."""

    def __init__(self) -> None:
        """Raises ImportError where a package is missing."""
        import librosa
        import torch

        model = importlib.import_module("transkun.ModelTransformer")
        self._torch, self._resample = torch, librosa.resample
        folder = Path(sys.modules["transkun"].__path__[0]) / "pretrained"
        config = model.Config()
        settings = json.loads((folder / "2.0.conf").read_text(encoding="utf-8"))
        for name, value in settings["Model"]["config"].items():
            setattr(config, name, value)
        with _without_torchaudio():
            self._network: Any = model.TransKun(conf=config).eval()
        checkpoint = torch.load(folder / "2.0.pt", map_location="cpu", weights_only=True)
        self._network.load_state_dict(checkpoint["state_dict"])

    def __call__(self, samples: NDArray[np.floating]) -> PitchedNotes:
        """The notes heard in the first HEARD_SECONDS of mono audio [n]."""
        samples = np.asarray(samples[: round(HEARD_SECONDS * SAMPLE_RATE)], np.float32)
        audio = self._resample(samples, orig_sr=SAMPLE_RATE, target_sr=self._network.fs)
        with self._torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of checkpoints for training, which it makes all the same
            given = self._torch.from_numpy(audio[:, None])
            found = self._network.transcribe(given, stepInSecond=WINDOW_SECONDS, segmentSizeInSecond=WINDOW_SECONDS)
        intervals_s = np.array([(note.start, max(note.end, note.start + 0.01)) for note in found]).reshape(-1, 2)
        return PitchedNotes(intervals_s, np.array([note.pitch for note in found], np.int64))


def second_transcriber() -> PianoTranscriber | None:
    """The second judge; None where transkun or PyTorch is not installed."""
    if any(importlib.util.find_spec(package) is None for package in ("transkun", "torch")):
        return None
    return PianoTranscriber()


@contextlib.contextmanager
def _without_torchaudio() -> Iterator[None]:
    """Lend transkun the one function of torchaudio that it calls: its mel weights, which its checkpoint has as well."""
    import torch

    stand_in: Any = types.ModuleType("torchaudio")
    stand_in.functional = types.SimpleNamespace(
        melscale_fbanks=lambda n_freqs, n_mels, **_: torch.zeros(n_freqs, n_mels)
    )
    before = sys.modules.get("torchaudio")
    sys.modules["torchaudio"] = stand_in
    try:
        yield
    finally:
        del sys.modules["torchaudio"]
        if before is not None:
            sys.modules["torchaudio"] = before
