"""Whatever stands where a command looks for something to read or to write into, the answer is an error of ours."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from notewave import NotewaveError
from notewave.benchmarks.report import Result, new_figure, save_plot
from notewave.export.convert import export_checkpoint
from notewave.export.material.songs import Data, make_data
from notewave.export.training.config import load_config
from notewave.export.vocoders import load_vocoder


def fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


ODD: dict[str, Callable[[Path], Any]] = {
    "circle": lambda path: (path.symlink_to(path.name), path)[1],
    "long": lambda path: path.with_name("a" * 300 + path.suffix),
    "zero byte": lambda path: path.with_name("a\0b" + path.suffix),
    "half a character": lambda path: path.with_name("a\ud800" + path.suffix),
    "device": lambda path: (path.symlink_to("/dev/zero"), path)[1],
    "fifo": fifo,
}


@pytest.mark.parametrize("kind", ODD)
def test_what_is_read(kind: str, tmp_path: Path) -> None:
    for suffix, read in (
        (".json", load_config),
        (".json", Result.load),
        (".json", _vocoder),
        (".safetensors", _weights),
    ):
        folder = tmp_path / read.__qualname__
        folder.mkdir()
        with pytest.raises(NotewaveError):
            read(ODD[kind](folder / f"odd{suffix}"))


def _vocoder(path: Path) -> Any:
    return load_vocoder(path.with_suffix(""))


def _weights(path: Path) -> Any:
    if path.name.startswith("odd"):
        path.with_suffix(".json").write_text('{"vocoder": "Tonewheel", "arguments": {"width": 32, "blocks": 1}}')
    return load_vocoder(path.with_suffix(""))


@pytest.mark.parametrize("kind", ["circle", "long", "zero byte", "half a character"])
def test_what_is_written_into(kind: str, tmp_path: Path) -> None:
    out = ODD[kind](tmp_path / "out")
    with pytest.raises(NotewaveError, match="was not written"):
        export_checkpoint(None, out, random="small")
    with pytest.raises(NotewaveError, match="was not made"):
        make_data(out, Data(songs=0, held_out_songs=0))


def test_names_with_signs_of_mathematics_are_drawn_as_they_are(tmp_path: Path) -> None:
    figure = new_figure(3, 2)
    axis = figure.subplots()
    axis.barh(["a$b^{_$"], [1.0], label="$^$")
    axis.set_title("$\\frac$")
    axis.legend()
    save_plot(figure, tmp_path / "drawn.png")
    assert (tmp_path / "drawn.png").stat().st_size
