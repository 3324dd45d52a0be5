"""Judges of rendered audio: which notes are heard in it, how near its mel is, whether its segments join.

Shapes: n samples at SAMPLE_RATE, T frames, M mels, K notes, P patches, E numbers of an embedding.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from notewave.errors import ToolError
from notewave.song.notes import Notes
from notewave.sound.distance import DB, in_range, mel_error, silence_of
from notewave.sound.mel import FRAMES, HOP, SAMPLE_RATE

ONSET_TOLERANCE_S = 0.05
OVERLAP_FRAMES = 30  # that basic-pitch's windows share
ONSET_THRESHOLD, FRAME_THRESHOLD, MIN_NOTE_FRAMES = 0.5, 0.3, 11  # basic-pitch's defaults
MOST_DB = 60  # by which a voice's level may differ from FluidSynth's
PATCH_FRAMES, PATCH_STEP = 16, 8  # 0.32 s of mel, every 0.16 s
PATCH_COSINES = (4, 64)  # slowest cosines along time and along mels that the embedding keeps
INSTALL = 'pip install "notewave[evaluate]" && pip install --no-deps basic-pitch==0.4.0'

_Floats = NDArray[np.float64]
_Mel = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class PitchedNotes:
    """Notes as the judge compares them."""

    intervals_s: _Floats  # [K, 2], onset and offset
    pitches: NDArray[np.int64]  # [K], MIDI

    @classmethod
    def of(cls, notes: Notes) -> PitchedNotes:
        """A song's notes without its drums; what several instruments play in unison counts once, as it sounds."""
        pitched = np.flatnonzero(~notes.is_drum)
        _, first = np.unique(np.stack([notes.onset_s[pitched], notes.pitch[pitched]]), axis=1, return_index=True)
        kept = pitched[first]
        offset_s = np.maximum(notes.offset_s[kept], notes.onset_s[kept] + 0.01)  # mir_eval takes no empty interval
        return cls(np.column_stack([notes.onset_s[kept], offset_s]), notes.pitch[kept])


class Transcriber:
    """basic-pitch (Bittner et al. 2022): its ONNX model in ONNX Runtime, and its own rules from activations to notes.

    Raises ToolError when a package that it needs is missing.
    """

    def __init__(self) -> None:
        import onnxruntime  # before basic-pitch, which fails without saying why where there is no runtime

        logging.disable(logging.WARNING)  # basic-pitch warns, on import, of every runtime that it does without
        try:
            import basic_pitch.inference
            import basic_pitch.note_creation
            import librosa
        except ImportError as error:
            raise ToolError(
                f"Notes cannot be judged: {error}. Its metadata asks for a TensorFlow that is not needed, so: {INSTALL}"
            ) from error
        finally:
            logging.disable(logging.NOTSET)
        self._inference, self._note_creation = basic_pitch.inference, basic_pitch.note_creation
        self._resample = librosa.resample
        model = Path(basic_pitch.__file__).parent / "saved_models" / "icassp_2022" / "nmp.onnx"
        self._session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])

    def __call__(self, samples: NDArray[np.floating]) -> PitchedNotes:
        """The notes heard in mono audio [n]."""
        rate, hop = self._inference.AUDIO_SAMPLE_RATE, self._inference.FFT_HOP
        overlap = OVERLAP_FRAMES * hop
        audio = self._resample(np.asarray(samples, np.float32), orig_sr=SAMPLE_RATE, target_sr=rate)
        padded = np.pad(audio, (overlap // 2, 0))
        windows = self._inference.window_audio_file(padded, self._inference.AUDIO_N_SAMPLES - overlap)
        batch = np.stack([window for window, _ in windows])
        outputs = {"note": "StatefulPartitionedCall:1", "onset": "StatefulPartitionedCall:2"}
        activations = self._session.run(list(outputs.values()), {"serving_default_input_2:0": batch})
        frames, onsets = (self._inference.unwrap_output(x, len(audio), OVERLAP_FRAMES) for x in activations)
        if not frames.max() > FRAME_THRESHOLD:  # silence, which basic-pitch would scale up
            return PitchedNotes(np.empty((0, 2)), np.empty(0, np.int64))
        found = self._note_creation.output_to_notes_polyphonic(
            frames, onsets, ONSET_THRESHOLD, FRAME_THRESHOLD, MIN_NOTE_FRAMES, True, None, None
        )
        time_s = self._note_creation.model_frames_to_time(len(frames))
        table = np.array([note[:3] for note in found], np.int64).reshape(-1, 3)
        return PitchedNotes(time_s[table[:, :2]], table[:, 2])


def note_f1(heard: PitchedNotes, written: PitchedNotes) -> float:
    """F1 of notes, 0 to 1: the right pitch must start within 50 ms of its time; where it ends does not count."""
    from mir_eval.transcription import precision_recall_f1_overlap

    if not len(heard.pitches) or not len(written.pitches):
        return 0.0
    hertz = [440.0 * 2.0 ** ((notes.pitches - 69) / 12) for notes in (written, heard)]
    scores = precision_recall_f1_overlap(
        written.intervals_s, hertz[0], heard.intervals_s, hertz[1], onset_tolerance=ONSET_TOLERANCE_S, offset_ratio=None
    )
    return float(scores[2])


def drum_f1(mel: _Mel, notes: Notes) -> float:
    """F1 of attacks in the upper half of the mel [T, M], where drums are loudest, against the song's drum strokes."""
    import librosa
    from mir_eval.onset import f_measure

    strokes_s = np.unique(notes.onset_s[notes.is_drum])
    flux = np.maximum(np.diff(mel[:, mel.shape[1] // 2 :], axis=0, prepend=mel[:1, mel.shape[1] // 2 :]), 0).mean(
        axis=1
    )
    found = librosa.onset.onset_detect(onset_envelope=flux, sr=SAMPLE_RATE, hop_length=HOP, units="time")
    return float(f_measure(strokes_s, found, window=ONSET_TOLERANCE_S)[0])


def best_level(ours: Sequence[_Mel], theirs: Sequence[_Mel]) -> float:
    """The one level, in nats, with which all songs' mel errors have the least mean; found within 0.05 dB."""

    def error(level_db: float) -> float:
        pairs = zip(ours, theirs, strict=True)
        return sum(mel_error(mine, true, level_db * DB) for mine, true in pairs)

    coarse = min(range(-MOST_DB, MOST_DB + 1), key=lambda level_db: (error(level_db), abs(level_db)))
    fine = coarse + np.arange(-20, 21) / 20
    return DB * min(fine.tolist(), key=lambda level_db: (error(level_db), abs(level_db)))


def silence_error(ours: Sequence[_Mel], theirs: Sequence[_Mel], level: float = 0.0) -> tuple[float, float]:
    """How far ours lie above silence where the songs' true log-mels [T, M] are silent: in nats, and that part of cells.

    The error is NaN where nothing is silent.
    """
    above, cells = [], 0
    for mine, true in zip(ours, theirs, strict=True):
        frames, floor = min(len(mine), len(true)), silence_of(true)
        raised = in_range(mine[:frames], floor, level) - np.float32(floor)
        above.append(raised[true[:frames] <= floor])
        cells += raised.size
    silent = np.concatenate(above)
    return float(silent.mean(dtype=np.float64)) if len(silent) else math.nan, len(silent) / cells


def loudness_db(mel: _Mel) -> float:
    """Mean power of a log-mel [T, M], in dB."""
    return 10 * math.log10(np.exp(2 * mel.astype(np.float64)).mean())


def seam_score(mels: Sequence[_Mel], frames: int = FRAMES) -> float:
    """Mean jump |mel[t] - mel[t - 1]| where pieces of so many frames join over that elsewhere, of log-mels [T, M]."""
    at_join, elsewhere = [], []
    for mel in mels:
        jump = np.abs(np.diff(mel, axis=0)).mean(axis=1, dtype=np.float64)
        join = np.arange(1, len(mel)) % frames == 0
        at_join.append(jump[join])
        elsewhere.append(jump[~join])
    joins, rest = np.concatenate(at_join), np.concatenate(elsewhere)
    return float(joins.mean() / rest.mean()) if len(joins) and rest.any() else math.nan


def patches(mel: _Mel) -> _Floats:
    """Embedding [P, E] of a log-mel [T, M]: the slowest cosines (2-D DCT) of each 0.32 s of it."""
    from scipy.fft import dctn

    cut = np.lib.stride_tricks.sliding_window_view(mel.astype(np.float64), PATCH_FRAMES, axis=0)[::PATCH_STEP]
    cosines = dctn(cut, axes=(1, 2), norm="ortho")[:, : PATCH_COSINES[1], : PATCH_COSINES[0]]  # cut is [P, M, frames]
    return np.ascontiguousarray(cosines).reshape(len(cut), -1)


def frechet_distance(ours: _Floats, theirs: _Floats) -> float:
    """Squared Fréchet distance of the normal distributions fitted to two embeddings [P, E] (Dowson & Landau 1982).

    In units of ``theirs``'s variance, averaged over the E axes: 0 for equal distributions, 1 for its mean alone.
    Too large where P is not several times E, as for a single song.
    """
    scale = theirs.std(axis=0, ddof=1) * np.sqrt(theirs.shape[1]) + 1e-12
    (mean, covariance), (other_mean, other) = (
        (x.mean(axis=0), np.cov(x, rowvar=False)) for x in (ours / scale, theirs / scale)
    )
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(values.clip(0.0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ other @ root).clip(0.0)).sum()
    return float(np.square(mean - other_mean).sum() + np.trace(covariance) + np.trace(other) - 2.0 * cross)
