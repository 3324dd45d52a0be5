"""``notewave info`` and ``notewave voices``: what is there."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import notewave
from notewave.checks import counted, shown
from notewave.cli.options import STANDARD, song_source
from notewave.files import named_descriptor
from notewave.song.codec import MAX_TOKENS, encode_notes
from notewave.song.midi import check_length, examine
from notewave.synthesizer import GRIFFIN_LIM
from notewave.voice.folder import Voice
from notewave.voice.library import bundled_voices, voices, voices_folder

SONG_SUFFIXES = (".mid", ".midi", ".rmi", ".kar")


def info(options: argparse.Namespace) -> None:
    """Say what a voice is and check its files, or what a song is."""
    lines = _song(options) if _is_song(options.what) else _voice(options.what)
    for line in list(lines):
        print(shown(line))


def list_voices(options: argparse.Namespace) -> None:
    """Say which voices have a name."""
    bundled = bundled_voices()
    for name, folder in voices().items():
        print(f"{shown(name):<20} {'bundled' if name in bundled else shown(folder)}")
    print(f"others: {shown(voices_folder())}, by notewave voices add")


def _is_song(what: str) -> bool:
    """Whether a song is meant: a file or a stream, not a folder or a name, as voices have."""
    if what == STANDARD or named_descriptor(what) is not None:
        return True
    try:
        path = Path(what)
        is_named = path.suffix.lower() in SONG_SUFFIXES and not path.is_dir()
        return is_named or (path.is_file() and what not in voices())
    except OSError:  # a name too long
        return False


def _voice(what: str) -> Iterator[str]:
    voice = Voice.load(what)
    size = sum(record.bytes for record in voice.files.values())
    yield f"{voice.name}: {voice.folder}"
    yield f"  licence     {voice.licence}"
    yield f"  provenance  {voice.provenance}"
    yield f"  networks    {voice.dimensions}"
    yield f"  tokens      {voice.dialect}"
    if voice.is_autoregressive:
        yield "  decoder     writes frame by frame"
    else:
        yield f"  diffusion   predicts {voice.prediction}; {voice.schedule}; recommended {voice.sampling}"
    yield f"  vocoder     {voice.vocoder or 'none: spectrograms, or ' + GRIFFIN_LIM}"
    yield f"  files       {len(voice.files)}, {size / 2**20:.1f} MiB, {voice.precision}; checksums agree"
    yield f"  parity      {', '.join(f'{name} {error:.1e}' for name, error in voice.parity.items())}"


def _song(options: argparse.Namespace) -> Iterator[str]:
    reading = examine(song_source(options.what), max_bytes=options.max_bytes)
    notes = reading.notes
    name = "standard input" if options.what == STANDARD else options.what
    check_length(notes, options.max_seconds)
    yield f"{name}: {notes.seconds:.2f} s, {len(notes)} notes"
    yield from _parts(notes)
    lengths = np.array([len(segment) for segment in encode_notes(notes)])
    above = int((lengths > MAX_TOKENS).sum())
    yield (
        f"  segments    {len(lengths)}, of {lengths.mean():.0f} tokens on average, {lengths.max()} at most; "
        f"{above or 'none'} above {MAX_TOKENS}"
    )
    yield f"  mended      {'; '.join(reading.mended) or 'nothing'}"


def _parts(notes: notewave.Notes) -> Iterator[str]:
    """A line for each program, and one for the drums."""
    from pretty_midi import note_number_to_name
    from pretty_midi.constants import INSTRUMENT_MAP

    key = np.where(notes.is_drum, len(INSTRUMENT_MAP), notes.program)
    for part in np.unique(key).tolist():
        pitch = notes.pitch[key == part]
        low, high = int(pitch.min()), int(pitch.max())
        is_drums = part == len(INSTRUMENT_MAP)
        span = f"keys {low} to {high}" if is_drums else f"{note_number_to_name(low)} to {note_number_to_name(high)}"
        count = counted(len(pitch), "note")
        yield f"  {'drums' if is_drums else INSTRUMENT_MAP[part]:<24} {count}, {span}"
