"""How good a voice is: its songs beside FluidSynth's of the same notes, by judges that take no part in training.

FluidSynth plays what the tokens say: their 10 ms grid, their Slakh programs, one loudness for all notes, dry. A voice
that had learned everything would so score as FluidSynth does; the controls say what knowing nothing scores.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from notewave.benchmarks.clock import CLOCK
from notewave.benchmarks.judges import (
    PitchedNotes,
    Transcriber,
    drum_f1,
    frechet_distance,
    mel_error,
    note_f1,
    patches,
    seam_score,
)
from notewave.benchmarks.report import check_counts, machine, text_table, voice_sha256
from notewave.errors import MidiError, OutputError
from notewave.export.material.excerpts import HELD_OUT, held_out_tokens
from notewave.export.material.fluidsynth import SOUNDFONT, check_fluidsynth, fluidsynth
from notewave.export.material.songs import SEGMENT_SAMPLES
from notewave.files import atomic_file
from notewave.sampling.options import SamplingOptions
from notewave.song.codec import Tokens, decode_tokens
from notewave.song.midi import tokenize
from notewave.song.notes import Notes
from notewave.sound.distance import stft_loss
from notewave.sound.griffin_lim import GriffinLim
from notewave.sound.mel import SEGMENT_SECONDS, log_mel
from notewave.sound.plot import save_mel_picture
from notewave.synthesizer import Synthesizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

log = logging.getLogger(__name__)

MAX_SEGMENTS = 8  # of each song: 41 s
DRUM_SECONDS = 0.1  # a drum's length, which tokens do not tell
JUDGES = ("basic-pitch", "mir_eval", "librosa")
NAN = float("nan")

# Heading of each score in the table. FS is FluidSynth's own audio; the other song is the next of the list.
SCORES = {
    "note_f1": "note-F1",  # of the voice's audio
    "note_f1_fluidsynth": "of FS",
    "note_f1_vocoder": "of FS, vocoded",  # FluidSynth's mel through the voice's vocoder
    "note_f1_griffin_lim": "by Griffin-Lim",  # FluidSynth's mel through 60 iterations of it
    "note_f1_other_song": "for other song",  # the voice's audio against another song's notes
    "drum_f1": "drum-F1",
    "drum_f1_fluidsynth": "of FS",
    "drum_f1_other_song": "for other song",
    "mel_error": "mel error",  # nats, of the diffusion's mel against FluidSynth's
    "mel_error_audio": "of audio",  # of the mel of the voice's audio
    "mel_error_mean": "of mean",  # of FluidSynth's mean over all frames of all songs
    "mel_error_other_song": "of other song",  # of FluidSynth's mel of another song
    "stft_vocoder": "STFT of FS, vocoded",  # multi-resolution STFT loss against FluidSynth's audio
    "stft_griffin_lim": "by Griffin-Lim",
    "seam": "seam",  # of the diffusion's mel
    "seam_fluidsynth": "of FS",
    "real_time_factor": "RTF",  # seconds of work a second of audio
}

_Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Report:
    """What ``evaluate`` found; scores that a song cannot have, as of drums that it lacks, are NaN, in JSON null."""

    voice: dict[str, str]  # name, precision, SHA-256 of voice.json (which lists its files' own), backend, vocoder
    sampling: dict[str, Any]  # sampler, steps, guidance and seed, as they took effect
    machine: dict[str, Any]  # and the versions of what ran on it
    songs: dict[str, dict[str, float]]  # by song, by name in SCORES
    summary: dict[str, float]  # of all songs together

    def table(self) -> str:
        """The report as text, for a terminal."""
        songs = {**self.songs, "all": self.summary}
        groups: dict[bool, list[str]] = {True: [], False: []}
        for key in SCORES:
            if not math.isnan(self.summary[key]):
                groups["_f1" in key].append(key)
        blocks = []
        for keys in filter(None, groups.values()):
            rows = [[name, *(_cell(scores[key]) for key in keys)] for name, scores in songs.items()]
            blocks.append(text_table([["", *(SCORES[key] for key in keys)], *rows]))
        rest = [f"{key}: {value:.3f}" for key, value in self.summary.items() if key not in SCORES]
        return "\n\n".join([*blocks, "\n".join(rest)])

    def save(self, path: Path) -> None:
        """Write the report as JSON. Raises OutputError."""
        content = {
            **dataclasses.asdict(self),
            "songs": {k: _json(v) for k, v in self.songs.items()},
            "summary": _json(self.summary),
        }
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


@dataclass(frozen=True, eq=False)
class PlayedSong:
    """A song as FluidSynth plays it."""

    tokens: list[Tokens]
    notes: Notes  # what the tokens say
    written: PitchedNotes  # those of them that can be heard as notes
    samples: _Floats  # [n], as long as the segments
    mel: _Floats  # [T, M]


@dataclass(frozen=True, eq=False)
class Rendering:
    """A song as the voice sings it."""

    mel: _Floats  # [T, M], the diffusion's
    samples: _Floats  # [n]
    audio_mel: _Floats  # [T, M], of the samples
    heard: PitchedNotes  # in the samples
    seconds: float  # of work, up to the samples


def evaluate(
    voice: str | os.PathLike[str],
    songs: Sequence[str | os.PathLike[str]] = ("piano",),
    *,
    out: Path | None = None,
    soundfont: Path = SOUNDFONT,
    max_segments: int = MAX_SEGMENTS,
    backend: str = "auto",
    threads: int | None = None,
    vocoder: str | None = None,
    **options: Unpack[SamplingOptions],
) -> Report:
    """Judge a voice on songs: MIDI files, or "piano" and "band", the held-out sets of ``export.material.excerpts``.

    The first ``max_segments`` segments of each song count. The folder ``out`` gets report.json and each song's picture:
    FluidSynth's mel and the voice's. soundfont: what FluidSynth plays on. voice, backend, threads, vocoder, options: as
    in ``Synthesizer`` and its ``render``. Raises ToolError when a tool is missing, ArgumentError for no segments,
    and what those raise.
    """
    check_counts(segments=max_segments)
    check_fluidsynth(soundfont)
    if out is not None:
        _make_folder(out)
    tokens = song_tokens(songs)
    transcriber = Transcriber()
    synthesizer = Synthesizer(voice, backend=backend, threads=threads, vocoder=vocoder)
    played, renderings = {}, {}
    for number, (name, song) in enumerate(tokens.items(), 1):
        log.info("%s, %d of %d", name, number, len(tokens))
        played[name] = play_song(song[:max_segments], soundfont)
        renderings[name] = sing(synthesizer, transcriber, played[name].tokens, options)
    log.info("judging")
    mean_mel = np.concatenate([song.mel for song in played.values()]).mean(axis=0)
    others = [*played.values()][1:] + [*played.values()][:1] if len(played) > 1 else [None]
    scores = {}
    for (name, true), other in zip(played.items(), others, strict=True):
        scores[name] = voice_scores(true, renderings[name])
        scores[name] |= _fluidsynth_scores(transcriber, synthesizer, true, mean_mel)
        scores[name] |= _other_song_scores(true, renderings[name], other)
    report = Report(
        {
            "name": synthesizer.voice.name,
            "precision": synthesizer.voice.precision,
            "sha256": voice_sha256(synthesizer.voice),
            "backend": synthesizer.backend,
            "vocoder": vocoder or "its own",
        },
        _sampling(synthesizer, options),
        _machine(soundfont),
        scores,
        _summary(scores, [*played.values()], [*renderings.values()]),
    )
    if out is not None:
        report.save(out / "report.json")
        for name, true in played.items():
            titles = f"{name}, FluidSynth", f"{name}, voice {synthesizer.voice.name}"
            mels = true.mel, renderings[name].audio_mel
            save_mel_picture(dict(zip(titles, mels, strict=True)), out / f"{name}.png")
    return report


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The folder {folder} cannot be made: {error.strerror}. Choose another.") from error


def song_tokens(songs: Sequence[str | os.PathLike[str]]) -> dict[str, list[Tokens]]:
    """Tokens of each song by its name."""
    named: list[tuple[str, list[Tokens]]] = []
    for song in (os.fspath(song) for song in songs):
        if song in HELD_OUT:
            named += [(excerpt.score.replace("/", "-"), held_out_tokens(excerpt)) for excerpt in HELD_OUT[song]]
        else:
            named.append((Path(song).stem, tokenize(song)))
    if not named or len(dict(named)) < len(named):
        raise MidiError("There are no songs, or two of one name, which a report cannot tell apart. Name each once.")
    return dict(named)


def play_song(tokens: list[Tokens], soundfont: Path) -> PlayedSong:
    """A song as FluidSynth plays what its tokens say."""
    notes = decode_tokens(tokens)
    offset_s = np.where(notes.is_drum, notes.onset_s + DRUM_SECONDS, notes.offset_s)
    samples = np.zeros(len(tokens) * SEGMENT_SAMPLES, np.float32)
    sound = fluidsynth(dataclasses.replace(notes, offset_s=offset_s), soundfont)[: len(samples)]
    samples[: len(sound)] = sound
    return PlayedSong(tokens, notes, PitchedNotes.of(notes), samples, log_mel(samples))


def sing(
    synthesizer: Synthesizer, transcriber: Transcriber, tokens: list[Tokens], options: SamplingOptions
) -> Rendering:
    """A song as the voice sings it, and what is heard in that."""
    start = CLOCK.now()
    mel = synthesizer.spectrogram(tokens, **options)
    samples = synthesizer.vocode(mel).samples
    seconds = CLOCK.now() - start
    return Rendering(mel, samples, log_mel(samples), transcriber(samples), seconds)


def pitched_f1(heard: PitchedNotes, song: PlayedSong) -> float:
    """Note-F1 of what was heard against a song's notes; NaN where none of them has a pitch."""
    return note_f1(heard, song.written) if len(song.written.pitches) else NAN


def stroke_f1(mel: _Floats, song: PlayedSong) -> float:
    """Drum-F1 of a mel [T, M] against a song's drums; NaN where it has none."""
    return drum_f1(mel, song.notes) if song.notes.is_drum.any() else NAN


def voice_scores(song: PlayedSong, ours: Rendering) -> dict[str, float]:
    """Scores of a song as the voice sings it, by name in SCORES."""
    return {
        "note_f1": pitched_f1(ours.heard, song),
        "drum_f1": stroke_f1(ours.audio_mel, song),
        "mel_error": mel_error(ours.mel, song.mel),
        "mel_error_audio": mel_error(ours.audio_mel, song.mel),
        "seam": seam_score([ours.mel]),
        "real_time_factor": ours.seconds / (len(song.tokens) * SEGMENT_SECONDS),
    }


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


def mean_scores(scores: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over the songs that have the score; NaN where none has."""
    known = {name: [song[name] for song in scores if not math.isnan(song[name])] for name in scores[0]}
    return {name: float(np.mean(values)) if values else NAN for name, values in known.items()}


def _summary(
    scores: dict[str, dict[str, float]], songs: Sequence[PlayedSong], renderings: Sequence[Rendering]
) -> dict[str, float]:
    """Means of the songs' scores, but seams over all joins, and what only all songs together have."""
    summary = mean_scores([*scores.values()])
    true = [patches(song.mel) for song in songs]
    ours = [patches(rendering.audio_mel) for rendering in renderings]
    return (
        summary
        | {
            "seam": seam_score([rendering.mel for rendering in renderings]),
            "seam_fluidsynth": seam_score([song.mel for song in songs]),
            "note_f1_ratio": summary["note_f1"] / summary["note_f1_fluidsynth"],
            "mel_error_ratio": summary["mel_error"] / summary["mel_error_mean"],
            "frechet": frechet_distance(np.concatenate(ours), np.concatenate(true)),
            "frechet_between_songs": (  # FluidSynth's odd songs against its even ones
                frechet_distance(np.concatenate(true[::2]), np.concatenate(true[1::2])) if len(true) > 1 else NAN
            ),
        }
    )


def _sampling(synthesizer: Synthesizer, options: SamplingOptions) -> dict[str, Any]:
    recommended = dataclasses.asdict(synthesizer.voice.sampling)
    given = {key: value for key, value in options.items() if key in recommended and value is not None}
    return {**recommended, **given, "seed": options.get("seed", 0)}


def _machine(soundfont: Path) -> dict[str, Any]:
    fluidsynth_version = subprocess.run(["fluidsynth", "--version"], check=True, capture_output=True, text=True).stdout
    return {
        **machine(),
        **{package: version(package) for package in JUDGES},
        "fluidsynth": fluidsynth_version.split("\n")[0].rpartition(" ")[2],
        "soundfont": soundfont.name,
    }


def _json(scores: dict[str, float]) -> dict[str, float | None]:
    return {key: None if math.isnan(value) else value for key, value in scores.items()}


def _cell(score: float) -> str:
    return "-" if math.isnan(score) else f"{score:.2f}"
