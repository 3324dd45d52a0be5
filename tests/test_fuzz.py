"""A short fuzzing of every target, the same each time; and that fuzzing finds faults that are there."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import random
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import fuzz
import numpy as np
import pytest
import safetensors.numpy
from fuzz_campaign import Campaign, Tally
from fuzz_mutators import Mutator, archives
from fuzz_smaller import smaller
from fuzz_targets import CORPUS, TARGETS
from fuzz_targets.planted import FAULTY
from fuzz_targets.tiny import voice_files
from fuzz_worker import MIB, Limits
from google.protobuf.message import DecodeError
from onnx import ModelProto

from notewave import tokenize

INPUTS = dict.fromkeys(TARGETS, 300) | {"shapes": 100, "t5x": 100}  # of each target, beside its corpus
SIDE_BY_SIDE = 2
INPUTS_OF_FAULTS = 12  # many of which have the fault
SEED = 15  # by which the first inputs of every planted target have its fault, and few of them
SONG = Path(__file__).parent / "data" / "midi" / "piano_scale.mid"
BRIEF = Limits(seconds=0.5, wall_seconds=2.0, memory=256 * MIB)


@pytest.fixture(scope="module")
def tallies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Tally]]]:
    out = tmp_path_factory.mktemp("found")
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        yield {
            name: pool.submit(Campaign(name, out, seed=1, learns=False).run, inputs=INPUTS[name]) for name in TARGETS
        }


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_is_found(name: str, tallies: dict[str, Future[Tally]]) -> None:
    tally = tallies[name].result()
    assert not tally.findings, "\n\n".join(f"{finding.content!r}\n{finding.text}" for finding in tally.findings)
    assert tally.inputs > INPUTS[name]
    assert len(tally.endings) > 5, "inputs come to different places"


def test_the_corpus_is_small() -> None:
    files = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert {path.parent.name for path in files} <= TARGETS.keys()
    assert sum(path.stat().st_size for path in files) < 200_000


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("planted-error", "error", "KeyError: 'planted'"),
        ("planted-family", "error", "MidiError"),
        ("planted-hang", "hang", "in fault"),
        ("planted-wait", "hang", "in fault"),
        ("planted-flood", "memory", "memory"),
        ("planted-shortage", "memory", "MemoryError"),
        ("planted-abort", "crash", "SIGABRT"),
        ("planted-fault", "crash", "SIGSEGV"),
    ],
)
def test_each_kind_of_fault_is_found_and_fuzzing_goes_on(name: str, kind: str, words: str, tmp_path: Path) -> None:
    tally = Campaign(name, tmp_path, seed=SEED, limits=BRIEF, trials=1).run(inputs=INPUTS_OF_FAULTS)
    assert tally.inputs > INPUTS_OF_FAULTS
    (finding,) = tally.findings
    assert (finding.kind, FAULTY in finding.content) == (kind, True)
    assert words in finding.text
    assert finding.path.read_bytes() == finding.content
    assert finding.text in finding.path.with_suffix(".txt").read_text()


def test_a_finding_is_made_as_small_as_it_can_be_and_can_be_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tally = Campaign("planted-error", tmp_path, seed=SEED).run(inputs=200)
    assert [finding.content for finding in tally.findings] == [bytes([FAULTY])]
    again = ["--target", "planted-error", "--out", str(tmp_path), "--input"]
    assert fuzz.main([*again, str(tally.findings[0].path)]) == 1
    (tmp_path / "harmless").write_bytes(b"even")
    assert fuzz.main([*again, str(tmp_path / "harmless")]) == 0
    assert "KeyError: 'planted'" in capsys.readouterr().out


def test_the_command_fails_where_something_was_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, status in (("planted-error", 1), ("description", 0)):
        options = ["--minutes", "0.02", "--seed", str(SEED), "--out", str(tmp_path), "--target", name]
        assert fuzz.main(options) == status
    out = capsys.readouterr().out
    assert "planted-error: " in out
    assert "findings 1" in out
    assert "description: " in out
    assert len(list(tmp_path.iterdir())) == 2  # the input and what it did


def test_a_walker_that_tags_above_32_bits_fool_is_found_out(tmp_path: Path) -> None:
    tally = Campaign("planted-walker", tmp_path, seed=1, learns=False).run(inputs=1000)
    assert any("assert theirs == set(_named(content))" in finding.text for finding in tally.findings)


def archive(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as opened:
        for name, content in files.items():
            opened.writestr(zipfile.ZipInfo(name), content)
    return stream.getvalue()


def unarchived(content: bytes) -> list[bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as opened:
        return [opened.read(name) for name in opened.namelist()]


SAMPLES: dict[str, tuple[bytes, Callable[[bytes], object], float]] = {  # a reader, and how often it takes a change
    "json": (b'{"a": [1, {"b": null}], "c": "text", "d": {"e": 2.5}}', json.loads, 0.5),
    "protobuf": (voice_files()["time_embedding.onnx"], ModelProto.FromString, 0.3),
    "zip": (archive({"a/data.pkl": b"\x80\x02}.", "a/data/0": bytes(64)}), unarchived, 0.3),
    "safetensors": (safetensors.numpy.save({"a": np.zeros((2, 3)), "b": np.ones(4)}), safetensors.numpy.load, 0.05),
    "midi": (SONG.read_bytes(), tokenize, 0.3),
    "gzip": (gzip.compress(b"numbers" * 10), gzip.decompress, 0.4),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_changes_keep_the_form_often_and_are_the_same_for_a_seed(name: str) -> None:
    content, read, share = SAMPLES[name]
    made = [Mutator(random.Random(f"{name} {seed}"), [content], [b"word"]).make() for seed in range(300)]
    assert made == [Mutator(random.Random(f"{name} {seed}"), [content], [b"word"]).make() for seed in range(300)]
    assert len(set(made) - {content}) > 200
    taken = 0
    for changed in set(made) - {content}:
        with contextlib.suppress(Exception):
            read(changed)
            taken += 1
    assert share < taken / len(set(made)) < 0.98


def test_fields_and_files_that_a_finding_does_not_need_are_left_out() -> None:
    graph = voice_files()["decoder.onnx"]
    folder = archives.pack({"one/graph.onnx": graph, "two": b"text"})

    def holds(content: bytes) -> bool:
        with contextlib.suppress(DecodeError):
            return any(ModelProto.FromString(body).graph.node for body in archives.unpack(content).values())
        return False

    node = b"\x3a\x02\x0a\x00"  # a graph of one empty node
    assert len(smaller(folder, holds)) == len(archives.FILE + b"o\n" + node)
