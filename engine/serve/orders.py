"""What a request asks for, made ready: its song read and edited, and the work that makes its sound."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from notewave.sampling.options import SamplingOptions
from notewave.serve.encode import FORMATS, Encoder
from notewave.serve.query import edit_words
from notewave.serve.refusal import Refusal
from notewave.serve.spool import Spool
from notewave.song.dialect import Tokens
from notewave.song.editing import Edits
from notewave.song.midi import examine, heed, tokenize
from notewave.song.notes import Notes
from notewave.song.parts import DRUMS, part_name, parts, titles
from notewave.song.writing import to_midi
from notewave.sound.audio import Audio
from notewave.sound.mel import FRAMES, HOP, SAMPLE_RATE
from notewave.sound.part import fitted
from notewave.synthesizer import Synthesizer

Steps: TypeAlias = "Generator[float, None, float]"  # work, as ``notewave.serve.workshop`` does it
_CHOSEN = ("sampler", "steps", "guidance", "seed")


@dataclass(frozen=True, eq=False)
class Score:
    """A song, as it was sent and as it is to be sung."""

    whole: Notes  # as it was sent
    notes: Notes  # edited
    mended: tuple[str, ...]  # what was mended of its file
    seconds: float | None  # that it is to sound at most, where its end was said
    is_filled: bool  # whether it is to sound so long, with silence at its end

    @classmethod
    def of(cls, data: bytes, values: Mapping[str, Any], most_seconds: float) -> Score:
        """Read a song. Raises MidiError, ArgumentError; Refusal for one that is too long."""
        edits, reading = Edits.parse(edit_words(values)), examine(data)
        notes = edits.change(heed(reading, values["strict"]), reading.beats)
        seconds = edits.seconds
        longest = max(notes.seconds, seconds or 0.0)
        if longest > most_seconds:
            raise Refusal(
                413,
                f"the song lasts {longest:.0f} s: {most_seconds:g} s are the most that is sung here. Cut it by end.",
            )
        return cls(reading.notes, notes, tuple(reading.mended), seconds, edits.is_filled(reading.notes))

    def samples(self, segments: int) -> int:
        """How many its sound has, at 16 kHz, of which so many segments are made. Raises Refusal where it has none."""
        made = segments * FRAMES * HOP
        if self.seconds is None:
            return made
        due = round(self.seconds * SAMPLE_RATE)
        if due == 0:
            raise Refusal(400, "nothing is left to be heard: the part ends where it begins. Give a later end.")
        return due if self.is_filled else min(due, made)

    def described(self) -> dict[str, Any]:
        """The song as the page draws it: its parts as sent, then those that edits made; and its notes as edited."""
        sent, sung = parts(self.whole), parts(self.notes)
        described: list[dict[str, Any]] = []
        for name, notes in {**sung, **sent}.items():
            program, is_drum = int(notes.program[0]), name == DRUMS
            title = DRUMS.title() if is_drum else titles()[program]
            count = len(sent.get(name, ()))
            described.append(
                {
                    "name": name,
                    "title": title,
                    "program": None if is_drum else program,
                    "is_drum": is_drum,
                    "notes": count,
                }
            )
        described.sort(key=lambda part: (part["notes"] == 0, part["is_drum"], part["program"]))
        return {
            "seconds": self.notes.seconds,
            "parts": described,
            "notes": self._rows({part["name"]: place for place, part in enumerate(described)}),
            "mended": list(self.mended),
        }

    def _rows(self, places: Mapping[str, int]) -> list[list[float]]:
        """Onset and offset in seconds, pitch, part and velocity of each note."""
        notes, names = self.notes, {}
        for is_drum, program in set(zip(self.notes.is_drum.tolist(), self.notes.program.tolist(), strict=True)):
            names[is_drum, program] = places[part_name(program, is_drum)]
        return [
            [round(onset, 4), round(offset, 4), pitch, names[is_drum, program], velocity]
            for onset, offset, pitch, velocity, program, is_drum in zip(
                *(column.tolist() for column in vars(notes).values()), strict=True
            )
        ]

    def file(self) -> bytes:
        """The edited song as a MIDI file."""
        return to_midi(self.notes)


@dataclass(frozen=True, eq=False)
class Rendering:
    """A song whose sound is ordered."""

    steps: Steps  # its work
    count: int  # of the steps
    samples: int  # of its sound, at 16 kHz
    size: int  # bytes that it comes to, at most
    is_exact: bool  # whether it comes to exactly that
    kind: str  # of the answer
    filename: str  # for whoever keeps it


def rendering(
    data: bytes, values: Mapping[str, Any], singer: Synthesizer, most_seconds: float, spool: Spool
) -> Rendering:
    """A song to one file of sound, written to a spool. Errors as ``Score.of`` and ``Synthesizer.stream``."""
    score = Score.of(data, values, most_seconds)
    tokens = sung_tokens(score.notes, singer, values["strict"])
    samples = score.samples(len(tokens))
    form, rate = FORMATS[values["format"]], values["rate"]
    sung = singer.stream(tokens, **sampling(values, spool))
    steps = written(sung, score, samples, form.encoder(samples, rate), spool.write)
    filename = f"song.{values['format']}"
    return Rendering(steps, len(tokens), samples, form.size(samples, rate), form.is_exact, form.kind, filename)


def sung_tokens(notes: Notes, singer: Synthesizer, is_strict: bool) -> list[Tokens]:
    """A song's tokens, as a voice reads them."""
    return tokenize(notes, strict=is_strict, dialect=singer.voice.dialect)


def sampling(values: Mapping[str, Any], spool: Spool) -> SamplingOptions:
    """Those of a query's values that choose how a song is sampled, which stops when nobody wants the spool's sound."""
    return cast(SamplingOptions, {name: values[name] for name in _CHOSEN if name in values} | {"on_step": spool.check})


def written(
    sung: Iterator[Audio], score: Score, samples: int, encoder: Encoder, put: Callable[[bytes], object]
) -> Steps:
    """Put a song's sound somewhere, as long as its score says, which is so many samples; a step a chunk.

    Each step gives the seconds that it made; the last one returns them, so that nobody waits for an end that is there.
    """
    left, made_s = samples, 0.0
    with contextlib.closing(cast("Generator[Audio]", sung)):
        for part in fitted((audio.samples for audio in sung), score.seconds, score.is_filled):
            left, made_s = left - len(part), len(part) / SAMPLE_RATE
            put(encoder.push(part))
            if not left:
                break
            yield made_s
    put(encoder.finish())
    return made_s
