"""Commands that make voices, from a checkpoint or from songs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from notewave import Voice
from notewave.cli import main
from notewave.export.material.ensembles import PIANO
from notewave.export.material.pieces import compose
from notewave.export.material.songs import Song, save_song
from notewave.song.codec import encode_notes
from notewave.sound.mel import FRAMES, MELS

CHECKPOINT = Path(__file__).parent / "data" / "reference" / "checkpoint"


def test_a_checkpoint_becomes_a_voice_and_the_voice_plans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NOTEWAVE_PLANS", str(tmp_path / "plans"))
    assert main(["export", str(CHECKPOINT), "--out", str(tmp_path / "voice"), "--precision", "fp32"]) == 0
    voice = Voice.load(tmp_path / "voice")
    first, *errors = capsys.readouterr().out.splitlines()
    assert first == (f"{tmp_path / 'voice'}: voice {voice.name!r}, fp32; largest relative errors against PyTorch:")
    told = {name: float(error) for name, error in (line.split() for line in errors)}
    assert told.keys() == voice.parity.keys() and max(told.values()) < 1e-4

    build = ["build", str(tmp_path / "voice"), "--flavour", "onnxruntime", "--compute-capability", "8.9"]
    assert main(build) == 0
    (folder,) = (tmp_path / "plans").iterdir()
    graphs = list(folder.glob("*.onnx"))
    size = sum(graph.stat().st_size for graph in graphs) / 2**20
    assert capsys.readouterr().out == f"{folder}: {len(graphs)} plans, {size:.1f} MiB\n" and graphs


def test_songs_become_a_pack_and_the_pack_a_voice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Songs that are already rendered, so that FluidSynth is not needed."""
    (tmp_path / "data").mkdir()
    for index, name in enumerate(["train-00000", "train-00001", "heldout-00000"]):
        notes = compose(np.random.default_rng(index), PIANO, 14.0)
        mel = np.full((len(encode_notes(notes)), FRAMES, MELS), 90, np.uint8)
        save_song(Song(np.zeros(0, np.int16), mel, notes), tmp_path / "data" / f"{name}.npz")
    settings = {
        "name": "tiny",
        "dimensions": {
            "width": 32, "heads": 2, "head_width": 16, "feed_forward": 48,
            "note_encoder_layers": 2, "context_encoder_layers": 1, "decoder_layers": 3,
        },
        "symbolic": [{"steps": 1, "segments": 4, "tokens": 1800, "frames": 32}],
        "mel": [{"steps": 1, "segments": 2, "frames": 48}],
        "data": {"songs": 2, "held_out_songs": 1},
        "structured": False,
    }  # fmt: skip
    (tmp_path / "tiny.json").write_text(json.dumps(settings))
    pack = tmp_path / "songs.pack"
    train = ["train", "--config", str(tmp_path / "tiny.json")]
    assert main([*train, "--data", str(tmp_path / "data"), "--pack", str(pack)]) == 0
    assert re.fullmatch(rf"{pack}: 3 songs, \d+\.\d MiB\n", capsys.readouterr().out)
    out = tmp_path / "voice"
    assert main([*train, "--data", str(pack), "--out", str(out), "--precision", "fp32"]) == 0
    assert capsys.readouterr().out == f"{out}: a voice\n"
    assert Voice.load(out).precision == "fp32"
