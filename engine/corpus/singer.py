"""Sings takes into a corpus: the same in a process beside the driver's and on another machine."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from notewave.corpus.layouts import LAYOUTS
from notewave.corpus.loudness import loudness, peak
from notewave.corpus.rows import SUNG, Row
from notewave.corpus.settings import Machine, Making
from notewave.corpus.store import open_store
from notewave.corpus.takes import Take, failure, row_of
from notewave.errors import MidiError, NotewaveError, OutputError
from notewave.inputs import BLOCK
from notewave.sampling.options import SamplingOptions
from notewave.song.dialect import Tokens
from notewave.song.editing import Edits
from notewave.song.midi import examine, heed, tokenize
from notewave.song.notes import Notes
from notewave.song.parts import parts
from notewave.song.writing import to_midi
from notewave.sound.audio import audio_file
from notewave.sound.mel import HOP, SAMPLE_RATE, FloatArray
from notewave.sound.part import fitted
from notewave.sound.resample import Resampler
from notewave.stems import stem_tokens, sum_error
from notewave.synthesizer import Synthesizer

SONGS = logging.getLogger("notewave.song")


def voice_name(voice: str) -> str:
    """What rows call a voice that is given by its name or its folder."""
    return Path(voice).name


class Singer:
    """Voices that sing takes and put what comes of them into a corpus; may be called from several threads.

    One song, or group of songs, is sung at a time; meanwhile other threads write the files of those before it.
    """

    def __init__(
        self, making: Making, out: str, machine: Machine, opened: Mapping[str, Synthesizer] | None = None
    ) -> None:
        """out: the corpus, as ``open_store`` takes it. opened: voices that are ready to sing."""
        self._making, self._machine, self._store = making, machine, open_store(out)
        self._layout, self._edits = LAYOUTS[making.layout], Edits.parse(dict(making.edits))
        self._opened = dict(opened or {})
        self._singing, self._opening = threading.Lock(), threading.Lock()

    def together(self, voice: str) -> int:
        """How many songs a voice sings side by side. Raises VoiceError, BackendError where it cannot be opened."""
        return self._machine.together or self.synthesizer(voice).side_by_side

    def synthesizer(self, voice: str) -> Synthesizer:
        """A voice, opened when it is first asked for, and tried. Errors as Synthesizer's, and those of its options."""
        with self._opening:
            if voice not in self._opened:
                machine = self._machine
                opened = Synthesizer(
                    voice,
                    backend=machine.backend,
                    threads=machine.threads,
                    vocoder=self._making.vocoder,
                    provider_options=machine.provider_options,
                )
                # A segment of silence: what is computed once is then there, and what keeps it from singing is said.
                opened.render([opened.voice.dialect.silence], **self._sampling())
                self._opened[voice] = opened
            return self._opened[voice]

    def _sampling(self) -> SamplingOptions:
        making = self._making
        return {"sampler": making.sampler, "steps": making.steps, "guidance": making.guidance}

    def sing(self, takes: Sequence[Take]) -> list[Row]:
        """Sing takes -> the row of each, in their order; a take that cannot be sung has a row, too.

        Its files are there when this returns. Raises OutputError where they cannot be written, VoiceError and
        BackendError where a voice cannot be opened.
        """
        rows: list[Row | None] = [None] * len(takes)
        told: list[_Told] = []
        with contextlib.ExitStack() as stack:
            for place, take in enumerate(takes):
                synthesizer = self.synthesizer(take.voice)
                try:
                    song = _tell(take, place, synthesizer, self._making, self._edits)
                except NotewaveError as error:
                    rows[place] = failure(take, voice_name(take.voice), error)
                else:
                    song.folder = stack.enter_context(self._store.staging())
                    told.append(song)
            for voice in dict.fromkeys(song.take.voice for song in told):
                self._sing_voice(voice, [song for song in told if song.take.voice == voice])
            for song in told:
                rows[song.place] = self._finish(song)
        return [row for row in rows if row is not None]

    def _sing_voice(self, voice: str, songs: Sequence[_Told]) -> None:
        """Sing songs, and their parts, in groups of like length, and write each as soon as it is sung."""
        synthesizer, together = self.synthesizer(voice), self.together(voice)
        lines = [line for song in songs for line in song.lines]
        if together > 1:
            lines.sort(key=lambda line: -len(line.tokens))
        waiting = [lines[start : start + together] for start in reversed(range(0, len(lines), together))]
        while waiting:
            group = [line for line in waiting.pop() if line.song.error is None]
            try:
                if group:
                    self._sing_group(synthesizer, group)
            except OutputError:
                raise
            except NotewaveError as error:
                if len(group) > 1:  # one of them, or too many at once: alone each says it for itself
                    waiting += [[line] for line in reversed(group)]
                else:
                    group[0].song.error = error

    def _sing_group(self, synthesizer: Synthesizer, lines: Sequence[_Line]) -> None:
        making, mels = self._making, [list[FloatArray]() for _ in lines]
        with self._singing:
            start = time.perf_counter()
            sung = synthesizer.render_batch(
                [line.tokens for line in lines],
                seeds=[line.song.take.seed for line in lines],
                on_mel=(lambda place, mel: mels[place].append(mel.copy())) if making.mels else None,
                **self._sampling(),
            )
            share = (time.perf_counter() - start) / len(lines)
        for line, audio, mel in zip(lines, sung, mels, strict=True):
            start = time.perf_counter()
            self._write(line, audio.samples, mel)
            line.song.taken += share + time.perf_counter() - start

    def _write(self, line: _Line, samples: FloatArray, mel: Sequence[FloatArray]) -> None:
        """Write what was sung of a song or of a part of it."""
        song, making = line.song, self._making
        fit = functools.partial(fitted, seconds=self._edits.seconds, is_filled=song.is_filled)
        samples = np.concatenate([*fit([samples]), np.empty(0, np.float32)])
        resampler = Resampler(SAMPLE_RATE, making.rate)
        heard = resampler.push(samples, last=True)
        if not len(heard):
            song.error = MidiError("nothing of it is left to be heard. Leave more of it (--start, --end).")
            return
        kind = "audio" if line.part is None else "stem"
        path = self._path(song, kind, line)
        with audio_file(song.file(path), making.rate) as file:
            file.write(heard)
        song.add(kind, line.part, path)
        if line.part is not None:
            song.total = samples if song.total is None else song.total + samples
            return
        song.mix = samples if making.stems else None
        song.said |= {
            "audio": path,
            "sample_rate": making.rate,
            "frames": len(heard),
            "seconds": round(len(heard) / making.rate, 6),
            "peak": peak(heard),
            "loudness": loudness(heard, making.rate),
        }
        if making.mels:
            path = self._path(song, "mel", line)
            np.save(song.file(path), np.concatenate(mel)[: -(-len(samples) // HOP)], allow_pickle=False)
            song.add("mel", None, path)

    def _finish(self, song: _Told) -> Row:
        """What else belongs to a take; and all of its files to their places, the sound last."""
        name = voice_name(song.take.voice)
        if song.error is not None:
            return failure(song.take, name, song.error)
        if self._making.midi:
            self._write_midi(song)
        if song.total is not None and song.mix is not None:
            song.said["stems_error"] = sum_error(song.total, song.mix)
        row = row_of(song.take, name, SUNG, **song.said, files=song.files)
        for path, content in self._layout.beside(row, song.programs).items():
            song.file(path).write_bytes(content)
            song.add("other", None, path)
        for file in sorted(song.files, key=lambda file: file["kind"] == "audio"):
            self._store.put(song.file(file["path"]), file["path"])
        row["sha256"] = next(file["sha256"] for file in song.files if file["kind"] == "audio")
        return row | {"taken": round(song.taken, 3)}

    def _write_midi(self, song: _Told) -> None:
        """The notes as they were sung, and each part's where parts are sung."""
        whole = song.lines[0]
        told = [("midi", whole, song.notes)]
        if self._making.stems:
            each = parts(song.notes)
            told += [("stem-midi", line, each[line.part]) for line in song.lines if line.part is not None]
        for kind, line, notes in told:
            path = self._path(song, kind, line)
            song.file(path).write_bytes(to_midi(notes))
            song.add(kind, line.part, path)

    def _path(self, song: _Told, kind: str, line: _Line) -> str:
        suffix = {"mel": ".npy", "midi": ".mid", "stem-midi": ".mid"}.get(kind, f".{self._making.form}")
        return self._layout.path(kind, song.take.name, song.take.split, line.part, line.index, suffix)


@dataclass
class _Line:
    """What is to be sung at once: a song, or a part of it."""

    song: _Told = field(repr=False)
    part: str | None
    index: int  # of the part
    tokens: list[Tokens]


@dataclass
class _Told:
    """A take whose notes are read, and what has come of it by now."""

    take: Take
    place: int  # in the group
    notes: Notes
    is_filled: bool
    said: dict[str, Any]
    programs: dict[str, int | None]  # of each part
    lines: list[_Line] = field(default_factory=list)
    files: list[dict[str, Any]] = field(default_factory=list)
    folder: Path = Path()
    mix: FloatArray | None = None
    total: FloatArray | None = None  # of all parts
    error: NotewaveError | None = None
    taken: float = 0.0  # s

    def file(self, path: str) -> Path:
        """Where a file of the corpus is made."""
        folder = self.folder / hashlib.sha256(path.encode()).hexdigest()[:24]  # some layouts use a name twice
        folder.mkdir(exist_ok=True)
        return folder / Path(path).name

    def add(self, kind: str, part: str | None, path: str) -> None:
        """Say of a file that it is made."""
        digest, size = hashlib.sha256(), 0
        with self.file(path).open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
                size += len(block)
        record = {"kind": kind, "part": part, "path": path, "bytes": size, "sha256": digest.hexdigest()}
        self.files.append(record)


def _tell(take: Take, place: int, synthesizer: Synthesizer, making: Making, edits: Edits) -> _Told:
    """Read a take's notes, and what is to be sung of them. Raises MidiError, ArgumentError for what cannot be sung."""
    dialect = synthesizer.voice.dialect
    reading = examine(take.data, max_bytes=making.max_bytes)
    with _heard() as said:
        whole = heed(reading, making.strict)
        said.clear()  # what it warns of, the reading has
        notes = edits.change(whole, reading.beats)
        tokens = tokenize(notes, strict=making.strict, max_seconds=making.max_seconds, dialect=dialect)
        told = stem_tokens(notes, tokens, dialect, making.max_seconds) if making.stems else {}
    sampling = synthesizer.voice.sampling
    song = _Told(
        take,
        place,
        notes,
        edits.is_filled(whole),
        {
            "notes": len(notes),
            "parts": list(parts(notes)),
            "mended": [*reading.mended, *said],
            **{
                name: value if (value := getattr(making, name)) is not None else getattr(sampling, name)
                for name in ("sampler", "steps", "guidance")
            },
        },
        {name: None if rows.is_drum[0] else int(rows.program[0]) for name, rows in parts(notes).items()},
    )
    song.lines = [_Line(song, None, 0, tokens)]
    song.lines += [_Line(song, part, index, tokens) for index, (part, tokens) in enumerate(told.items())]
    return song


@contextlib.contextmanager
def _heard() -> Iterator[list[str]]:
    """What is warned of in this thread while a song is read."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    thread = threading.get_ident()
    handler.addFilter(lambda record: record.thread == thread)
    SONGS.addHandler(handler)
    try:
        yield said
    finally:
        SONGS.removeHandler(handler)
