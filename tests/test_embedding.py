import shutil

import numpy as np
import pytest

from notewave.benchmarks.embedding import musicnn, read_checkpoint
from notewave.export.material.fluidsynth import SOUNDFONT, fluidsynth
from notewave.song.notes import Notes

STRINGS, DRUMS = 4, 5  # tags


def varint(number):
    groups = [number >> shift & 127 for shift in range(0, max(number.bit_length(), 1), 7)]
    return bytes([*(group | 128 for group in groups[:-1]), groups[-1]])


def block(entries):
    """A block of a table: each key shares with the one before what it can."""
    written, before = b"", b""
    for key, value in entries:
        shared = next((at for at in range(len(key)) if key[: at + 1] != before[: at + 1]), len(key))
        written += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    return written + bytes(4) + (1).to_bytes(4, "little")  # one restart, at 0


def test_a_checkpoint_is_read_without_tensorflow(tmp_path):
    weights = {"conv2d/bias": np.arange(3), "conv2d/kernel": np.arange(200 * 3).reshape(200, 3), "step": np.array(7.0)}
    numbers, entries = b"", [(b"", b"\x08\x01")]
    for name, array in weights.items():
        data = array.astype("<f4").tobytes()
        shape = b"".join(b"\x12" + bytes([len(size)]) + size for size in (b"\x08" + varint(n) for n in array.shape))
        place = b"\x12" + bytes([len(shape)]) + shape + b"\x20" + varint(len(numbers)) + b"\x28" + varint(len(data))
        entries.append((name.encode(), b"\x08\x01" + place + b"\x35sums"))
        numbers += data
    entries.append((b"steps", b"\x08\x09\x12\x00\x28\x08"))  # a whole number, which is no weight
    first = block(entries)
    second = block([(b"z", varint(0) + varint(len(first)))])
    footer = varint(0) + varint(0) + varint(len(first) + 5) + varint(len(second))
    (tmp_path / ".index").write_bytes(first + bytes(5) + second + bytes(5) + footer.ljust(48, b"\0"))
    (tmp_path / ".data-00000-of-00001").write_bytes(numbers)
    found = read_checkpoint(tmp_path)
    assert found.keys() == weights.keys()
    assert all(np.array_equal(found[name], array) for name, array in weights.items())


@pytest.mark.skipif(
    shutil.which("fluidsynth") is None or not SOUNDFONT.is_file(), reason="FluidSynth or its soundfont is not installed"
)
def test_musicnn_tells_strings_from_drums():
    for package in ("musicnn", "librosa"):
        pytest.importorskip(package)
    onsets_s, one = np.arange(0, 5.5, 0.5), np.ones(11, int)
    strings = Notes(onsets_s, onsets_s + 0.5, 60 + np.arange(11), 90 * one, 48 * one, 0 * one)
    drums = Notes(onsets_s, onsets_s + 0.1, np.resize([36, 38, 42], 11), 110 * one, 0 * one, one)
    network = musicnn()
    heard = {name: fluidsynth(notes)[:80000] for name, notes in (("strings", strings), ("drums", drums))}
    tags = {name: network.tags(samples) for name, samples in heard.items()}
    assert tags["strings"][STRINGS] > 0.3 > tags["drums"][STRINGS]
    assert tags["drums"][DRUMS] > 2 * tags["strings"][DRUMS]
    assert network(heard["strings"]).shape == (3, 200)
