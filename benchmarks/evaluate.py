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
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

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
from notewave.benchmarks.report import grid, machine
from notewave.errors import BackendError, MidiError, OutputError
from notewave.export.material.excerpts import HELD_OUT, held_out_tokens
from notewave.export.material.fluidsynth import SOUNDFONT, fluidsynth
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
from notewave.voice.folder import DESCRIPTION, FileRecord

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
            blocks.append(grid([["", *(SCORES[key] for key in keys)], *rows]))
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
class Reference:
    """A song as FluidSynth plays it."""

    tokens: list[Tokens]
    notes: Notes  # what the tokens say
    samples: _Floats  # [n], as long as the segments
    mel: _Floats  # [T, M]


@dataclass(frozen=True, eq=False)
class _Rendering:
    """A song as the voice sings it."""

    mel: _Floats  # [T, M], the diffusion's
    samples: _Floats  # [n]
    audio_mel: _Floats  # [T, M], of the samples
    seconds: float  # of work


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
    in ``Synthesizer`` and its ``render``. Raises BackendError when a tool is missing, and what those raise.
    """
    check_tools(soundfont)
    if out is not None:
        _make_folder(out)
    tokens = song_tokens(songs)
    transcriber = Transcriber()
    synthesizer = Synthesizer(voice, backend=backend, threads=threads, vocoder=vocoder)
    references, renderings = {}, {}
    for number, (name, song) in enumerate(tokens.items(), 1):
        log.info("%s, %d of %d", name, number, len(tokens))
        references[name] = play_reference(song[:max_segments], soundfont)
        renderings[name] = _render(synthesizer, references[name].tokens, options)
    log.info("judging")
    mean_mel = np.concatenate([song.mel for song in references.values()]).mean(axis=0)
    others = [*references.values()][1:] + [*references.values()][:1] if len(references) > 1 else [None]
    scores = {}
    for (name, reference), other in zip(references.items(), others, strict=True):
        scores[name] = _note_scores(transcriber, reference, renderings[name], other)
        scores[name] |= _vocoder_scores(transcriber, synthesizer, reference)
        scores[name] |= _mel_scores(reference, renderings[name], other, mean_mel)
    report = Report(
        {
            "name": synthesizer.voice.name,
            "precision": synthesizer.voice.precision,
            "sha256": FileRecord.of(synthesizer.voice.folder / DESCRIPTION).sha256,
            "backend": synthesizer.backend,
            "vocoder": vocoder or "its own",
        },
        _sampling(synthesizer, options),
        _machine(soundfont),
        scores,
        _summary(scores, [*references.values()], [*renderings.values()]),
    )
    if out is not None:
        report.save(out / "report.json")
        for name, reference in references.items():
            titles = f"{name}, FluidSynth", f"{name}, voice {synthesizer.voice.name}"
            mels = reference.mel, renderings[name].audio_mel
            save_mel_picture(dict(zip(titles, mels, strict=True)), out / f"{name}.png")
    return report


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The folder {folder} cannot be made: {error.strerror}. Choose another.") from error


def check_tools(soundfont: Path) -> None:
    """Raise BackendError when FluidSynth or its soundfont is missing."""
    if shutil.which("fluidsynth") is None:
        raise BackendError(
            "The voice cannot be judged: the program fluidsynth, which it is compared with, is not installed. "
            "Install it (Debian: apt install fluidsynth fluid-soundfont-gm)."
        )
    if not soundfont.is_file():
        raise BackendError(
            f"The voice cannot be judged: FluidSynth needs a soundfont, and there is none at {soundfont}. "
            "Install it (Debian: apt install fluid-soundfont-gm) or name the one that the voice was trained on."
        )


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


def play_reference(tokens: list[Tokens], soundfont: Path) -> Reference:
    """A song as FluidSynth plays what its tokens say."""
    notes = decode_tokens(tokens)
    offset_s = np.where(notes.is_drum, notes.onset_s + DRUM_SECONDS, notes.offset_s)
    samples = np.zeros(len(tokens) * SEGMENT_SAMPLES, np.float32)
    played = fluidsynth(dataclasses.replace(notes, offset_s=offset_s), soundfont)[: len(samples)]
    samples[: len(played)] = played
    return Reference(tokens, notes, samples, log_mel(samples))


def _render(synthesizer: Synthesizer, tokens: list[Tokens], options: SamplingOptions) -> _Rendering:
    start = time.perf_counter()
    mel = synthesizer.spectrogram(tokens, **options)
    samples = synthesizer.vocode(mel).samples
    return _Rendering(mel, samples, log_mel(samples), time.perf_counter() - start)


def _note_scores(
    transcriber: Transcriber, song: Reference, ours: _Rendering, other: Reference | None
) -> dict[str, float]:
    scores = dict.fromkeys([key for key in SCORES if "_f1" in key], NAN)
    written = PitchedNotes.of(song.notes)
    if len(written.pitches):
        heard = transcriber(ours.samples)
        scores["note_f1"] = note_f1(heard, written)
        scores["note_f1_fluidsynth"] = note_f1(transcriber(song.samples), written)
        if other is not None:
            scores["note_f1_other_song"] = note_f1(heard, PitchedNotes.of(other.notes))
    if song.notes.is_drum.any():
        scores["drum_f1"] = drum_f1(ours.audio_mel, song.notes)
        scores["drum_f1_fluidsynth"] = drum_f1(song.mel, song.notes)
        if other is not None and other.notes.is_drum.any():
            scores["drum_f1_other_song"] = drum_f1(ours.audio_mel, other.notes)
    return scores


def _vocoder_scores(transcriber: Transcriber, synthesizer: Synthesizer, song: Reference) -> dict[str, float]:
    """What vocoding alone costs: FluidSynth's mel by the voice's vocoder, and by Griffin-Lim."""
    written = PitchedNotes.of(song.notes)
    sounds = {"vocoder": synthesizer.vocode(song.mel).samples, "griffin_lim": GriffinLim()(song.mel[None], 0)[0]}
    scores = {}
    for name, samples in sounds.items():
        scores[f"note_f1_{name}"] = note_f1(transcriber(samples), written) if len(written.pitches) else NAN
        scores[f"stft_{name}"] = stft_loss(samples, song.samples)
    return scores


def _mel_scores(song: Reference, ours: _Rendering, other: Reference | None, mean_mel: _Floats) -> dict[str, float]:
    return {
        "mel_error": mel_error(ours.mel, song.mel),
        "mel_error_audio": mel_error(ours.audio_mel, song.mel),
        "mel_error_mean": mel_error(np.broadcast_to(mean_mel, song.mel.shape), song.mel),
        "mel_error_other_song": mel_error(other.mel, song.mel) if other else NAN,
        "seam": seam_score([ours.mel]),
        "seam_fluidsynth": seam_score([song.mel]),
        "real_time_factor": ours.seconds / (len(song.tokens) * SEGMENT_SECONDS),
    }


def _summary(
    scores: dict[str, dict[str, float]], songs: Sequence[Reference], renderings: Sequence[_Rendering]
) -> dict[str, float]:
    """Means of the songs' scores, but seams over all joins, and what only all songs together have."""
    values = {key: [song[key] for song in scores.values() if not math.isnan(song[key])] for key in SCORES}
    summary = {key: float(np.mean(known)) if known else NAN for key, known in values.items()}
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
