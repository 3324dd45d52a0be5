"""Pictures of mels: refused before the work they would be of, small however long the song."""

from __future__ import annotations

import io
import warnings
import xml.dom.minidom
from pathlib import Path
from typing import Any

import matplotlib.axes
import numpy as np
import pytest

from notewave import OutputError
from notewave.sound.mel import MELS
from notewave.sound.plot import MAX_COLUMNS, SUFFIXES, check_picture, save_mel_picture


def test_pictures_that_cannot_be_drawn_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_picture(tmp_path / "mel.png")
    for path, reason in ((tmp_path / "no" / "mel.png", "No such file"), (tmp_path / "mel.mp4", r"Use \.png")):
        with pytest.raises(OutputError, match=reason):
            check_picture(path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(OutputError, match=r"Install notewave\[plot\]"):
        check_picture(tmp_path / "mel.png")


@pytest.mark.parametrize("frames", [1, MAX_COLUMNS, MAX_COLUMNS + 1, 30 * 60 * 50])
def test_long_songs_are_drawn_from_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frames: int) -> None:
    drawn = []
    imshow = matplotlib.axes.Axes.imshow

    def watched(axis: matplotlib.axes.Axes, image: np.ndarray, **options: object) -> object:
        drawn.append(image)
        return imshow(axis, image, **options)

    monkeypatch.setattr(matplotlib.axes.Axes, "imshow", watched)
    mel = np.linspace(-8, 4, frames, dtype=np.float32)[:, None].repeat(MELS, axis=1)
    save_mel_picture({"a ramp": mel}, tmp_path / "mel.png")
    (image,) = drawn
    assert image.shape[1] <= MAX_COLUMNS
    if frames <= MAX_COLUMNS:
        np.testing.assert_array_equal(image, mel.T)
    ramp = np.interp(np.linspace(0, 1, image.shape[1]), np.linspace(0, 1, frames), mel[:, 0])
    np.testing.assert_allclose(image[0], ramp, atol=0.01)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_any_title_is_drawn_as_it_is(tmp_path: Path, suffix: str) -> None:
    """None of it is mathematics, a terminal's escape, or a byte that no font and no XML has."""
    titles = ("a$b^{_$.mid", "\x1b[2J\n\udce9.mid", "日本.mid")
    path = tmp_path / f"\udce9$^{suffix}"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_mel_picture({title: np.zeros((10, MELS), np.float32) for title in titles}, path)
    if suffix == ".svg":
        xml.dom.minidom.parse(io.BytesIO(path.read_bytes()))


NO_MELS = {
    "none": {},
    "empty": {"a": np.zeros((0, MELS), np.float32)},
    "flat": {"a": np.zeros(9)},
    "list": {"a": [[1.0]]},
    "objects": {"\udce9$": np.full((9, 9), None)},
}


@pytest.mark.parametrize("mels", NO_MELS.values(), ids=NO_MELS)
def test_what_is_no_mel_is_refused(tmp_path: Path, mels: Any) -> None:
    with pytest.raises(OutputError, match=r"mel\.png was not drawn: .* Give ") as caught:
        save_mel_picture(mels, tmp_path / "mel.png")
    assert str(caught.value).isascii()
    assert not list(tmp_path.iterdir())
