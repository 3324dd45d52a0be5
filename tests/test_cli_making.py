"""Commands that make voices and plans, whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from notewave import Voice
from notewave.cli import main

CHECKPOINT = Path(__file__).parent / "data" / "reference" / "checkpoint"


def test_a_checkpoint_becomes_a_voice_and_the_voice_plans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NOTEWAVE_PLANS", str(tmp_path / "plans"))
    assert main(["export", str(CHECKPOINT), "--out", str(tmp_path / "voice"), "--precision", "fp32"]) == 0
    voice = Voice.load(tmp_path / "voice")
    first, *errors = capsys.readouterr().out.splitlines()
    assert first == f"{voice.folder}: voice {voice.name!r}, fp32; largest relative errors against PyTorch:"
    told = {name: float(error) for name, error in (line.split() for line in errors)}
    assert told.keys() == voice.parity.keys() and max(told.values()) < 1e-4

    build = ["build", str(tmp_path / "voice"), "--flavour", "onnxruntime", "--compute-capability", "8.9"]
    assert main(build) == 0
    (folder,) = (tmp_path / "plans").iterdir()
    graphs = list(folder.glob("*.onnx"))
    size = sum(graph.stat().st_size for graph in graphs) / 2**20
    assert capsys.readouterr().out == f"{folder}: {len(graphs)} plans, {size:.1f} MiB\n" and graphs
