"""Damaged MIDI bytes give tokens or a MidiError, and nothing else."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from notewave import MidiError, tokenize
from notewave.song.codec import MAX_TOKENS
from notewave.song.dialect import EOS, PUBLISHED

FILES = sorted((Path(__file__).parent / "data" / "midi").glob("*.mid"))


def damaged(data: bytes, seed: int) -> bytes:
    """One to eight changes; for even seeds such as leave most of the file's structure whole, to reach deeper."""
    rng = random.Random(seed)
    song = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(song))
        size = rng.choice([1, 1, 2, 4, 50])
        piece = song[at : at + size]
        change = rng.choice(
            ["data", "event"] if seed % 2 == 0 else ["set", "flip", "drop", "double", "fill", "cut", "header"]
        )
        if change == "data" and song[at] < 0x80:
            song[at] = rng.randrange(0x80)
        elif change == "event" and 0x80 <= song[at] < 0xF0:
            song[at] = rng.choice([0x80, 0x90, 0xB0, 0xE0]) + rng.randrange(16)
        elif change == "set":
            song[at : at + size] = rng.randbytes(len(piece))
        elif change == "flip":
            song[at] ^= 1 << rng.randrange(8)
        elif change == "drop":
            del song[at : at + size]
        elif change == "double":
            song[at:at] = piece
        elif change == "fill":
            song[at : at + size] = bytes([rng.choice([0x00, 0x7F, 0x80, 0xFF])]) * len(piece)
        elif change == "cut":
            del song[max(at, 30) :]
        elif change == "header":
            song[rng.randrange(min(30, len(song)))] = rng.randrange(256)
    return bytes(song)


def outcome(data: bytes) -> str:
    """Tokenize and check what comes of it."""
    try:
        segments = tokenize(data, max_seconds=600)
    except MidiError as error:
        return str(error)
    assert segments
    for tokens in segments:
        assert tokens.dtype == np.int32
        assert 2 <= len(tokens) <= MAX_TOKENS
        assert tokens[-1] == EOS
        assert (tokens == PUBLISHED.tie).sum() == 1
        assert tokens.max() < PUBLISHED.end
    return "tokens"


def test_damaged_files_give_tokens_or_a_midi_error() -> None:
    outcomes = Counter(outcome(damaged(path.read_bytes(), seed)) for path in FILES for seed in range(40))
    assert outcomes["tokens"] > 40  # the damage is neither always fatal
    assert len(outcomes) > 20  # nor always of one kind


@pytest.mark.parametrize("path", FILES[1:4], ids=lambda path: path.stem)
def test_a_file_cut_anywhere_is_mended_and_refused_where_nothing_may_be_lost(path: Path) -> None:
    data = path.read_bytes()
    for size in range(0, len(data), max(1, len(data) // 100)):
        outcome(data[:size])
        with pytest.raises(MidiError, match=r"is incomplete|no MIDI header|no notes"):
            tokenize(data[:size], strict=True)
    assert outcome(data[: len(data) * 3 // 4]) == "tokens"


@settings(deadline=None)
@given(st.binary(max_size=200), st.integers(-(1 << 15), (1 << 15) - 1))
def test_any_track_gives_tokens_or_a_midi_error(track: bytes, division: int) -> None:
    outcome(
        b"MThd\x00\x00\x00\x06\x00\x01\x00\x01"
        + division.to_bytes(2, "big", signed=True)
        + b"MTrk"
        + len(track).to_bytes(4, "big")
        + track
    )


@settings(deadline=None)
@given(st.binary(max_size=100))
def test_any_bytes_give_tokens_or_a_midi_error(data: bytes) -> None:
    assert outcome(data) != "tokens"
    assert outcome(b"MThd" + data)
