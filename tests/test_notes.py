"""The table of notes: what it takes, what it makes of it, and that it refuses the rest plainly."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import pytest

from notewave import MidiError
from notewave.song.codec import encode_notes
from notewave.song.notes import Notes

COLUMNS: dict[str, Any] = {
    "onset_s": [0, 1],
    "offset_s": [0.5, 1],
    "pitch": [60, 127.0],
    "velocity": [1, 127],
    "program": [0, 127],
    "is_drum": [False, True],
}


def test_columns_are_converted() -> None:
    notes = Notes(**COLUMNS)
    kinds = {name: column.dtype for name, column in vars(notes).items()}
    assert kinds == {
        **dict.fromkeys(["onset_s", "offset_s"], np.float64),
        **dict.fromkeys(["pitch", "velocity", "program"], np.int64),
        "is_drum": np.bool_,
    }
    assert {name: column.tolist() for name, column in vars(notes).items()} == COLUMNS
    assert (len(notes), notes.seconds) == (2, 1.0)


@pytest.mark.parametrize("dtype", [np.float16, np.longdouble, np.uint8, np.int16])
def test_any_number_will_do(dtype: type[np.generic]) -> None:
    notes = Notes(*(np.ones(3, dtype) for _ in COLUMNS))
    assert (notes.seconds, notes.pitch.tolist(), notes.is_drum.tolist()) == (1.0, [1] * 3, [True] * 3)


def test_no_notes_are_a_table() -> None:
    notes = Notes(*([] for _ in COLUMNS))
    assert (len(notes), notes.seconds, notes.pitch.dtype) == (0, 0.0, np.int64)


def test_what_was_checked_stays_so() -> None:
    pitch = np.array([60, 62])
    notes = Notes(**{**COLUMNS, "pitch": pitch})
    pitch[0] = 300
    assert notes.pitch.tolist() == [60, 62]
    with pytest.raises(ValueError, match="read-only"):
        notes.pitch[0] = 300
    with pytest.raises(dataclasses.FrozenInstanceError):
        notes.pitch = pitch  # type: ignore[misc]


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize(
    "value",
    [
        None, 7, "ab", ["a", "b"], [None, 1], [1j, 0], [[0, 1]], np.zeros((2, 1)), [[0], [0, 1]], {0, 1}, object(),
        np.array([0, 1], "M8[s]"), np.array([0, 1], object), [10**400, 0], b"ab", np.array(1.0),
    ],
    ids=repr,
)  # fmt: skip
def test_columns_that_are_no_list_of_numbers_are_refused(name: str, value: Any) -> None:
    with pytest.raises(MidiError, match=f"A note table's {name} is .*: a column has one number of each note"):
        Notes(**{**COLUMNS, name: value})


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize(
    "value", [np.nan, np.inf, -np.inf, -1, -(2**63), -1e300, np.finfo(np.longdouble).max], ids=repr
)
def test_values_that_no_note_has_are_refused(name: str, value: float) -> None:
    with pytest.raises(MidiError, match=r"A note (has|starts)"):
        Notes(**{**COLUMNS, name: np.array([0, value])})


@pytest.mark.parametrize("name", ["pitch", "velocity", "program", "is_drum"])
@pytest.mark.parametrize("value", [128, 2**63, 2**64 - 1, 0.5, np.nextafter(1, 0)], ids=repr)
def test_whole_numbers_are_whole_and_in_range(name: str, value: float) -> None:
    with pytest.raises(MidiError, match=f"A note has a {name}"):
        Notes(**{**COLUMNS, name: np.array([0, value])})


@pytest.mark.parametrize("name", ["pitch", "velocity", "program", "onset_s", "offset_s"])
def test_truth_is_no_number(name: str) -> None:
    with pytest.raises(MidiError, match=re.escape(f"{name} is [True, True]")):
        Notes(**{**COLUMNS, name: [True, True]})


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("values", [[], [1.0], [1.0] * 3], ids=len)
def test_columns_have_one_length(name: str, values: list[float]) -> None:
    with pytest.raises(MidiError, match="differ in length"):
        Notes(**{**COLUMNS, name: values})


def test_velocity_0_ends_what_sounds_on_its_pitch() -> None:
    def tokens(velocity: int) -> list[int]:
        notes = Notes([0, 0.5], [1, 1.5], [60, 60], [90, velocity], [0, 0], [False, False])  # type: ignore[arg-type]
        return encode_notes(notes)[0].tolist()

    # tie; 0 s: program, on, pitch; 0.5 s: on or off; 1 s: off; 1.5 s: off; EOS
    assert tokens(90) == [1134, 1135, 1133, 1064, 53, 1064, 103, 1132, 1064, 153, 1064, 1]
    assert tokens(0) == [1134, 1135, 1133, 1064, 53, 1132, 1064, 103, 1064, 153, 1064, 1]
