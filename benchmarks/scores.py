"""The scores of a song, one dictionary a song, and of all songs together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from notewave.benchmarks.embedding import Musicnn
from notewave.benchmarks.judges import (
    PitchedNotes,
    Transcriber,
    drum_f1,
    frechet_distance,
    note_f1,
    patches,
    seam_score,
    silence_error,
)
from notewave.benchmarks.second_judge import PianoTranscriber, can_judge, written
from notewave.benchmarks.songs import PlayedSong, Rendering
from notewave.sound.distance import DB, in_range, mel_error, silence_of, stft_loss
from notewave.sound.griffin_lim import GriffinLim
from notewave.sound.mel import SEGMENT_SECONDS
from notewave.synthesizer import Synthesizer

NAN = math.nan

# Heading of each score in the table. FS is FluidSynth's own audio; the other song is the next of the list.
SCORES = {
    "note_f1": "note-F1",  # of the voice's audio
    "note_f1_fluidsynth": "of FS",
    "note_f1_vocoder": "of FS, vocoded",  # FluidSynth's mel through the voice's vocoder
    "note_f1_griffin_lim": "by Griffin-Lim",  # FluidSynth's mel through 60 iterations of it
    "note_f1_other_song": "for other song",  # the voice's audio against another song's notes
    "note_f1_second": "second judge",  # the first seconds of a piano by another transcriber, where it is installed
    "note_f1_second_fluidsynth": "of FS",
    "drum_f1": "drum-F1",
    "drum_f1_fluidsynth": "of FS",
    "drum_f1_other_song": "for other song",
    "mel_error": "mel error",  # nats, of the diffusion's mel at the set's level against FluidSynth's, within its range
    "mel_error_audio": "of audio",  # of the mel of the voice's audio
    "mel_error_mean": "of mean",  # of FluidSynth's mean over all frames of all songs
    "mel_error_other_song": "of other song",  # of FluidSynth's mel of another song
    "silence_error": "silence",  # nats above silence, where FluidSynth's drums alone are silent
    "silence_share": "of cells",  # that part of the drums' mel
    "stft_vocoder": "STFT of FS, vocoded",  # multi-resolution STFT loss against FluidSynth's audio
    "stft_griffin_lim": "by Griffin-Lim",
    "seam": "seam",  # of the diffusion's mel
    "seam_fluidsynth": "of FS",
    "real_time_factor": "RTF",  # seconds of work a second of audio
}

_Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Take:
    """A song, played and sung."""

    true: PlayedSong
    ours: Rendering
    drums: tuple[_Floats, _Floats] | None  # of its drums alone the voice's mel and FluidSynth's [T, M]


@dataclass(frozen=True)
class Judges:
    """Who hears what, beside the judges that are functions."""

    transcriber: Transcriber
    second: PianoTranscriber | None  # None: not installed
    musicnn: Musicnn | None


def pitched_f1(heard: PitchedNotes, song: PlayedSong) -> float:
    """Note-F1 of what was heard against a song's notes; NaN where none of them has a pitch."""
    return note_f1(heard, song.written) if len(song.written.pitches) else NAN


def stroke_f1(mel: _Floats, song: PlayedSong) -> float:
    """Drum-F1 of a mel [T, M] against a song's drums; NaN where it has none."""
    return drum_f1(mel, song.notes) if song.notes.is_drum.any() else NAN


def voice_scores(song: PlayedSong, ours: Rendering, level: float = 0.0) -> dict[str, float]:
    """Scores of a song as the voice sings it, by name in SCORES; its mels are taken ``level`` nats louder."""
    return {
        "note_f1": pitched_f1(ours.heard, song),
        "drum_f1": stroke_f1(ours.audio_mel, song),
        "mel_error": mel_error(ours.mel, song.mel, level),
        "mel_error_audio": mel_error(ours.audio_mel, song.mel, level),
        "seam": seam_score([ours.mel]),
        "real_time_factor": ours.seconds / (len(song.tokens) * SEGMENT_SECONDS),
    }


def song_scores(
    takes: dict[str, Take], judges: Judges, synthesizer: Synthesizer, level: float
) -> dict[str, dict[str, float]]:
    """All scores of each song, by its name and theirs; NaN for those that it cannot have."""
    every = [*takes.values()]
    mean_mel = np.concatenate([in_range(take.true.mel, silence_of(take.true.mel)) for take in every]).mean(axis=0)
    scores = {}
    for number, (name, take) in enumerate(takes.items(), 1):
        other = every[number % len(every)].true if len(every) > 1 else None
        scores[name] = voice_scores(take.true, take.ours, level)
        scores[name] |= _fluidsynth_scores(judges.transcriber, synthesizer, take.true, mean_mel)
        scores[name] |= _second_scores(judges.second, take)
        scores[name] |= _other_song_scores(take.true, take.ours, other)
        scores[name] |= _silence_scores([take], level)
    return scores


def _fluidsynth_scores(
    transcriber: Transcriber, synthesizer: Synthesizer, song: PlayedSong, mean_mel: _Floats
) -> dict[str, float]:
    """Of FluidSynth's own audio, of its mel by the voice's vocoder and by Griffin-Lim, and of its mean mel [M]."""
    sounds = {"vocoder": synthesizer.vocode(song.mel).samples, "griffin_lim": GriffinLim()(song.mel[None], 0)[0]}
    return {
        "note_f1_fluidsynth": pitched_f1(transcriber(song.samples), song),
        "drum_f1_fluidsynth": stroke_f1(song.mel, song),
        **{f"note_f1_{name}": pitched_f1(transcriber(samples), song) for name, samples in sounds.items()},
        **{f"stft_{name}": stft_loss(samples, song.samples) for name, samples in sounds.items()},
        "mel_error_mean": mel_error(np.broadcast_to(mean_mel, song.mel.shape), song.mel),
        "seam_fluidsynth": seam_score([song.mel]),
    }


def _second_scores(second: PianoTranscriber | None, take: Take) -> dict[str, float]:
    """Of the second transcriber; NaN where it is not installed, or the song is no piano's alone."""
    sounds = {"note_f1_second": take.ours.samples, "note_f1_second_fluidsynth": take.true.samples}
    if second is None or not can_judge(take.true.notes):
        return dict.fromkeys(sounds, NAN)
    return {name: note_f1(second(samples), written(take.true.notes)) for name, samples in sounds.items()}


def _other_song_scores(song: PlayedSong, ours: Rendering, other: PlayedSong | None) -> dict[str, float]:
    """Of the voice's audio against another song's notes and of that song's mel; NaN where one of both lacks them."""
    if other is None:
        return dict.fromkeys([key for key in SCORES if key.endswith("_other_song")], NAN)
    pitched, drums = len(song.written.pitches), song.notes.is_drum.any()
    return {
        "note_f1_other_song": note_f1(ours.heard, other.written) if pitched else NAN,
        "drum_f1_other_song": stroke_f1(ours.audio_mel, other) if drums else NAN,
        "mel_error_other_song": mel_error(other.mel, song.mel),
    }


def _silence_scores(takes: Sequence[Take], level: float) -> dict[str, float]:
    """Of the drums alone of songs; NaN where none has any."""
    pairs = [take.drums for take in takes if take.drums is not None]
    if not pairs:
        return {"silence_error": NAN, "silence_share": NAN}
    error, share = silence_error([ours for ours, _ in pairs], [true for _, true in pairs], level)
    return {"silence_error": error, "silence_share": share}


def mean_scores(scores: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over the songs that have the score; NaN where none has."""
    known = {name: [song[name] for song in scores if not math.isnan(song[name])] for name in scores[0]}
    return {name: float(np.mean(values)) if values else NAN for name, values in known.items()}


def summarise(
    scores: dict[str, dict[str, float]], takes: Sequence[Take], judges: Judges, level: float
) -> dict[str, float]:
    """Means of the songs' scores, but of seams and silence over all joins and cells, and what only a set has."""
    summary = mean_scores([*scores.values()]) | _silence_scores(takes, level)
    summary |= {
        "seam": seam_score([take.ours.mel for take in takes]),
        "seam_fluidsynth": seam_score([take.true.mel for take in takes]),
        "note_f1_ratio": summary["note_f1"] / summary["note_f1_fluidsynth"],
        "mel_error_ratio": summary["mel_error"] / summary["mel_error_mean"],
        "level_db": level / DB,
    }
    floors = [silence_of(take.true.mel) for take in takes]
    ours = [patches(in_range(take.ours.audio_mel, floor, level)) for take, floor in zip(takes, floors, strict=True)]
    true = [patches(in_range(take.true.mel, floor)) for take, floor in zip(takes, floors, strict=True)]
    summary |= _frechet("frechet", ours, true)
    if judges.musicnn is None:
        return summary | {"frechet_musicnn": NAN, "frechet_musicnn_between_songs": NAN}
    gain = math.exp(level)
    sung = [judges.musicnn(take.ours.samples * gain) for take in takes]
    return summary | _frechet("frechet_musicnn", sung, [judges.musicnn(take.true.samples) for take in takes])


def _frechet(name: str, ours: Sequence[NDArray[np.float64]], true: Sequence[NDArray[np.float64]]) -> dict[str, float]:
    """Fréchet distance of the songs' embeddings [P, E], and of FluidSynth's odd songs from its even ones."""
    between = frechet_distance(np.concatenate(true[::2]), np.concatenate(true[1::2])) if len(true) > 1 else NAN
    return {
        name: frechet_distance(np.concatenate(ours), np.concatenate(true)),
        f"{name}_between_songs": between,
    }
