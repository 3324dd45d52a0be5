"""Files made to cost much for little: 100 kB of any bytes take a bounded memory, and give tokens or a MidiError."""

from __future__ import annotations

import logging
import tracemalloc
from collections.abc import Iterator

import pytest
from dirty_songs import END, chunk, header, number

from notewave import MidiError, tokenize
from notewave.song.dialect import Dialect

SIZE = 100_000  # bytes
MOST = 100 << 20  # bytes of memory
TWO_HOURS = number(480 * 2 * 7190)  # as ticks
NOTE = b"\x00\x90\x3c\x40\x05\x3c\x00"
PEDALS = b"\x01\xb0\x40\x7f" + b"\x01\x40\x00\x01\x40\x7f" * 8000


def held_notes() -> bytes:
    """A note of every program and pitch there is room for, held for two hours, in running status."""
    events = b""
    for program in range(128):
        events += bytes((0, 0xC0, program, 0, 0x90, 0, 64)) + b"".join(bytes((0, pitch, 64)) for pitch in range(1, 128))
    return events[: SIZE - 100] + TWO_HOURS + b"\x80\x00\x00\x00" + END


def programs(count: int) -> Iterator[bytes]:
    return (bytes((0, 0xC0, number % 128)) for number in range(count))


FILES = {
    "notes held for hours": header(1) + chunk(held_notes()),
    "a pitch struck anew for hours": header(1) + chunk(b"\x00\x90\x3c\x40" + b"\x01\x3c\x40" * 32000 + TWO_HOURS + END),
    "a note of hours": header(1) + chunk(b"\x00\x90\x3c\x40" + TWO_HOURS + b"\x3c\x00"),
    "empty tracks": header(0xFFFF) + chunk(b"") * 12500,
    "many tracks, one pedal": header(9) + chunk(PEDALS) + chunk(NOTE) * 3400,
    "many programs, one pedal": header(1)
    + chunk(b"\x00\xe0\x00\x40" + PEDALS + b"".join(x + NOTE for x in programs(5000))),
    "many tracks, pedals and silences": header(9)
    + chunk(b"\x00\xb0\x78\x00" * 8000)
    + chunk(PEDALS)
    + chunk(NOTE) * 900,
    "tracks that are songs of their own": header(0xFFFF, 2) + b"".join(chunk(x + NOTE) for x in programs(5500)),
    "lengths too short": header(9) + chunk(NOTE, size=5) * 6600,
    "lengths too long": header(9) + chunk(NOTE, size=0x7FFFFFFF) * 6600,
    "names of tracks alone": header(9) + b"MTrk" * 25000,
    "headers alone": b"MThd" * 25000,
    "foreign chunks": header(1) + chunk(b"", b"XFIH") * 12400 + chunk(NOTE),
    "changes of tempo": header(1) + chunk(b"\x01\xff\x51\x03\x01\x02\x03\x01\xff\x51\x03\x01\x02\x04" * 7000 + NOTE),
    "numbers of zeros": header(1) + chunk((b"\x80" * 9000 + NOTE) * 11),
    "drum parts": header(1) + chunk((b"\x00\xf0\x0a\x41\x10\x42\x12\x40\x11\x15\x01\x19\xf7" + NOTE) * 5000),
    "volumes": header(1) + chunk(b"\x00\xb0\x07\x00\x00\x90\x3c\x40\x00\xb0\x07\x01\x05\x90\x3c\x00" * 6000),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_takes_a_bounded_memory(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    tracemalloc.start()
    try:
        tokenize(FILES[name][:SIZE], dialect=Dialect(127, "gm"))
    except MidiError as error:
        assert len(str(error)) < 1000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < MOST
