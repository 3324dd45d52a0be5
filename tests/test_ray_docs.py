"""What docs/ray.md says works as it stands there: its blocks are run, each in a process of its own."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from serving import song

import notewave

pytest.importorskip("ray")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (Path(__file__).parents[1] / "docs" / "ray.md").read_text(), re.DOTALL)
PATIENCE_S = 100.0
READ = """
print([list(map(float, row["audio"])) for row in ray.data.read_parquet("music").sort("path").iter_rows()][:2])
"""
ASK = """
import json, sys
from pathlib import Path
import httpx, ray, singing
import psutil  # which Ray brings

address = f"http://localhost:{sys.argv[1]}"
ray.init(include_dashboard=False, num_cpus=2, object_store_memory=80 << 20)
singing.serve.start(http_options={"port": int(sys.argv[1])})
singing.serve.run(singing.app)
(replica,) = [child for child in psutil.Process().children(recursive=True) if "ServeReplica" in child.name()]
told = [httpx.get(f"{address}/{path}").status_code for path in ("", "health", "openapi.json")]
answer = httpx.post(f"{address}/render?seed=3", content=Path("songs/2.mid").read_bytes(), timeout=60)
Path("answer.wav").write_bytes(answer.content)
singing.serve.shutdown()
replica.wait(60)
print(json.dumps([*told, answer.status_code]))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with songs of two lengths."""
    (tmp_path / "songs").mkdir()
    for segments in (1, 2):
        (tmp_path / "songs" / f"{segments}.mid").write_bytes(song(segments))
    return tmp_path


def block(kind: str, word: str) -> str:
    """The one block of a kind in which a word is."""
    (found,) = [text for name, text in BLOCKS if name == kind and word in text]
    return found


def run(words: list[str], folder: Path) -> str:
    """Standard output of a program in a folder, on a Ray cluster of its own."""
    environment = os.environ | {"RAY_ADDRESS": "local", "HOME": str(folder), "RAY_DATA_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def test_a_corpus(folder: Path) -> None:
    (line,) = [line for line in block("bash", "notewave corpus").splitlines() if line.startswith("notewave")]
    command = line.replace("notewave", f"{sys.executable} -m notewave", 1).replace("/shared", str(folder))
    assert "2 songs sung" in run(command.split(), folder)
    rows = [json.loads(text) for text in (folder / "music" / "manifest.jsonl").read_text().splitlines()]
    assert [(row["source"], row["status"]) for row in rows] == [("1.mid", "sung"), ("2.mid", "sung")]
    assert all((folder / "music" / row["audio"]).is_file() for row in rows)


def test_a_dataset(folder: Path) -> None:
    out = run([sys.executable, "-c", block("python", "Sing") + READ], folder)
    synthesizer = notewave.Synthesizer("band", backend="cpu", threads=1)
    for segments, samples in enumerate(json.loads(out.strip().splitlines()[-1]), 1):
        assert np.array_equal(np.float32(samples), synthesizer.render(song(segments)).samples)


def test_a_server_on_ray_serve(folder: Path) -> None:
    pytest.importorskip("ray.serve")
    (folder / "singing.py").write_text(block("python", "serve.ingress"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    out = run([sys.executable, "-c", ASK, str(port)], folder)
    assert json.loads(out.strip().splitlines()[-1]) == [200] * 4
    notewave.Synthesizer("band", backend="cpu").render(song(2), seed=3).save(folder / "expected.wav")
    assert (folder / "answer.wav").read_bytes() == (folder / "expected.wav").read_bytes()
