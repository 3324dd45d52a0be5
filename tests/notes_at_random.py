"""Songs for hypothesis: tables of notes of any kind."""

from __future__ import annotations

from hypothesis import strategies as st

from notewave import Notes

TIMES = st.one_of(st.integers(0, 3000).map(lambda n: n / 100), st.floats(0, 30, allow_subnormal=False))


@st.composite
def songs(draw: st.DrawFn, most: int = 12, low: int = 0, high: int = 127) -> Notes:
    """A song of one note to so many, on these keys."""
    key, any_number = st.integers(low, high), st.integers(0, 127)
    row = st.tuples(TIMES, TIMES, key, st.integers(1, 127), any_number, st.booleans())
    rows = draw(st.lists(row, min_size=1, max_size=most))
    onset_s, length_s, pitch, velocity, program, is_drum = zip(*rows, strict=True)
    offset_s = [onset + length for onset, length in zip(onset_s, length_s, strict=True)]
    return Notes(onset_s, offset_s, pitch, velocity, program, is_drum)


def columns(notes: Notes) -> list[tuple[object, ...]]:
    """A song's rows, for comparing."""
    return list(zip(*(column.tolist() for column in vars(notes).values()), strict=True))
