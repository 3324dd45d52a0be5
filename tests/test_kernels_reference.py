"""The NumPy twins against published vectors and plain definitions."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from notewave.kernels.reference import bounded, mel_to_context, philox, philox_normal
from notewave.sound.audio import Audio, pcm16


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # philox4x32 with 10 rounds, from the known-answer file of Random123 (Salmon et al., SC 2011)
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (1 << 64) - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x299F31D0_A4093822,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_words(counter: tuple[int, ...], key: int, expected: tuple[int, ...]) -> None:
    words = philox((np.array([counter[0]], np.uint64), *counter[1:]), key)
    assert tuple(int(word[0]) for word in words) == expected


def test_normals_are_standard_and_depend_on_seed_segment_and_draw() -> None:
    def drawn(seed: int, segment: int, draw: int) -> np.ndarray:
        out = np.empty(1 << 18, np.float32)
        philox_normal(seed, segment, draw, out)
        return out

    base = drawn(1, 2, 3)
    assert abs(base.mean()) < 0.01 and abs(base.std() - 1.0) < 0.01
    assert abs((base**4).mean() - 3.0) < 0.1 and np.abs(base).max() > 4.0
    np.testing.assert_array_equal(base, drawn(1, 2, 3))
    for other in (drawn(2, 2, 3), drawn(1, 3, 3), drawn(1, 2, 4), drawn(1 + (1 << 32), 2, 3)):
        assert abs(np.corrcoef(base, other)[0, 1]) < 0.01


def test_a_longer_draw_begins_with_the_shorter() -> None:
    long, short = np.empty(1003, np.float32), np.empty(17, np.float32)
    philox_normal(5, 0, 0, long)
    philox_normal(5, 0, 0, short)
    np.testing.assert_array_equal(long[:17], short)


def test_mel_to_context_clips() -> None:
    np.testing.assert_array_equal(mel_to_context(np.array([-9.0, 0.0, 0.25, 9.0], np.float32)), [-1, 0, 0.25, 1])


@pytest.mark.filterwarnings("error")
def test_bounded_is_a_clip_bit_for_bit_but_of_what_is_no_finite_number() -> None:
    bits = np.random.default_rng(0).integers(0, 1 << 32, 1 << 16, np.uint32)
    values = np.concatenate([bits.view(np.float32), np.float32([0.0, -0.0, 1.0, -1.0, np.nan, np.inf, -np.inf])])
    finite = np.isfinite(values)
    expected = np.where(finite, np.clip(values, -1.0, 1.0), np.float32(np.nan))
    assert np.isnan(bounded(values)).tolist() == (~finite).tolist()
    np.testing.assert_array_equal(bounded(values)[finite].view(np.uint32), expected[finite].view(np.uint32))


def test_pcm16_rounds_to_even_and_clips() -> None:
    samples = np.array([0.0, 1.0, -1.0, 2.0, -2.0, 1.5 / 32768, 2.5 / 32768], np.float32)
    assert pcm16(samples).tolist() == [0, 32767, -32768, 32767, -32768, 2, 2]


def test_pcm16_undoes_the_division_of_readers() -> None:
    levels = np.arange(-32768, 32768, dtype=np.int16)
    np.testing.assert_array_equal(pcm16(levels.astype(np.float32) / 32768), levels)


@pytest.mark.parametrize("suffix", ["wav", "flac", "aiff"])
def test_16_bit_files_hold_what_the_twin_gives(tmp_path: Path, suffix: str) -> None:
    samples = np.append(np.random.default_rng(0).uniform(-1, 1, 100_000), [1, -1, 1.5]).astype(np.float32)
    Audio(samples).save(tmp_path / f"ours.{suffix}")
    soundfile.write(tmp_path / f"theirs.{suffix}", samples, 16000, "PCM_16")  # truncates in some formats
    ours, theirs = (soundfile.read(tmp_path / f"{whose}.{suffix}", dtype="int16")[0] for whose in ("ours", "theirs"))
    np.testing.assert_array_equal(ours, pcm16(samples))
    assert np.abs(ours.astype(int) - theirs).max() <= 1
