"""Plans that are not what they should be, and homes where none can be kept: each an error of ours, within bounds."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from simulated_device import SimulatedDevice
from simulated_onnxruntime import SimulatedOnnxRuntime

from notewave.backends.device import plans
from notewave.backends.device.cache import plans_home
from notewave.backends.device.plans import (
    FILE_MOST,
    NAMED_MOST,
    RECORD,
    RECORD_MOST,
    PlanRecord,
    Plans,
    find_plans,
    target_of,
)
from notewave.backends.graphs.make import make_plans
from notewave.backends.ort import providers
from notewave.backends.ort.executors import make_graphs, open_cuda
from notewave.cli import main
from notewave.errors import BackendError, NotewaveError, OutputError
from notewave.voice.folder import Voice

CAPABILITY = (8, 9)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NOTEWAVE_PLANS", str(tmp_path / "plans"))
    return tmp_path / "plans"


@pytest.fixture
def folder(voice: Voice, home: Path) -> Path:
    """Plans of a few bytes each: they are looked at, and not run."""
    return make_plans(voice, onnxruntime, CAPABILITY, "fp32", lambda network, contract: network.encode())


def found(voice: Voice, precision: Any = "fp32") -> Plans:
    return find_plans(voice, onnxruntime, CAPABILITY, precision)


def test_what_is_written_is_what_is_read(voice: Voice, folder: Path) -> None:
    opened = found(voice)
    assert opened.folder == folder and opened.read("decoder") == b"decoder"
    assert opened.record.target == target_of(voice, onnxruntime, CAPABILITY, "fp32")
    opened.record.save(folder)
    assert PlanRecord.load(folder) == opened.record


DEEP = 100_000
TEXTS = {
    "nothing": "",
    "no object": "[]",
    "a number": "1",
    "null": "null",
    "deep": "[" * DEEP + "]" * DEEP,
    "deep objects": '{"format":' * DEEP + "1" + "}" * DEEP,
    "too large": '{"format":"' + "x" * RECORD_MOST + '"}',
    "cut short": '{"format": 2',
    "a name of megabytes": json.dumps({"x" * 500_000: 1, "\ud800": 2}),
    "many names": json.dumps(dict.fromkeys(map(str, range(50_000)), 0)),
    "a huge number": '{"format": ' + "9" * 500_000 + "}",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_record_that_is_none_is_refused(text: str, voice: Voice, folder: Path) -> None:
    (folder / RECORD).write_text(text)
    refused(voice, rf"{folder.name}/plans\.json cannot be read \(")


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"\x00" * 100, bytes(range(256)), b'{"format": "\xed\xa0\x80"}'])
def test_a_record_of_bytes_that_are_no_text_is_refused(content: bytes, voice: Voice, folder: Path) -> None:
    (folder / RECORD).write_bytes(content)
    refused(voice, r"plans\.json cannot be read \(")


def refused(voice: Voice, message: str) -> None:
    with pytest.raises(BackendError, match=message) as caught:
        found(voice)
    said = str(caught.value)
    assert len(said) < 2000 and "notewave build" in said and said.encode(), "a message that can be shown"


WRONG = [
    None,
    True,
    -1,
    1.5,
    float("nan"),
    float("inf"),
    10**400,
    "",
    "text",
    "x" * 10_000,
    "\ud800",
    "\x1b[2J",
    [],
    [[]],
    [None],
    [-1],
    [float("nan")],
    {},
    {"": None},
    {"a": {"b": []}},
    {"\ud800": 1},
]
FIELDS = ("format", "target", "voice", "notewave", "token_buckets", "max_batch", "seconds", "files")


@pytest.mark.parametrize("name", FIELDS)
def test_a_record_with_a_field_of_another_kind_is_refused_or_of_no_matter(
    name: str, voice: Voice, folder: Path
) -> None:
    content = json.loads((folder / RECORD).read_text())
    for value in WRONG:
        written(folder, {**content, name: value})
        if name in ("format", "target", "files"):
            refused(voice, r"plans\.json (cannot be read|does not list)")
        else:  # what is only said of them, which may be text or a list
            reads_or_refuses(voice)
    written(folder, {key: value for key, value in content.items() if key != name})
    refused(voice, r"plans\.json cannot be read \(its PlanRecord's fields cannot be")


def reads_or_refuses(voice: Voice) -> None:
    try:
        record = found(voice).record
    except BackendError as error:
        assert str(error).encode()
    else:
        assert isinstance(record.voice, str) and record.notewave.isprintable()
        assert all(isinstance(bucket, int) and bucket > 0 for bucket in record.token_buckets)
        assert record.max_batch > 0 and all(0 <= seconds < 1e10 for seconds in record.seconds.values())


@pytest.mark.parametrize("name", ["graphs", "flavour", "version", "capability", "precision"])
def test_a_target_of_another_kind_is_refused(name: str, voice: Voice, folder: Path) -> None:
    content = json.loads((folder / RECORD).read_text())
    for value in WRONG:
        written(folder, {**content, "target": {**content["target"], name: value}})
        refused(voice, r"plans\.json cannot be read|the plans in .* are ")
    written(folder, {**content, "target": {**content["target"], "more": 1}})
    refused(voice, r"its Target's fields cannot be")


@pytest.mark.parametrize("field", ["bytes", "sha256"])
def test_a_file_s_record_of_another_kind_is_refused(field: str, voice: Voice, folder: Path) -> None:
    content = json.loads((folder / RECORD).read_text())
    for value in [*WRONG, FILE_MOST + 1, 10**15]:
        files = {**content["files"], "decoder.onnx": {**content["files"]["decoder.onnx"], field: value}}
        written(folder, {**content, "files": files})
        refused(voice, r"plans\.json cannot be read \(its (size|SHA-256) of decoder\.onnx cannot be")


def written(folder: Path, content: dict[str, Any]) -> None:
    (folder / RECORD).write_text(json.dumps(content))


@pytest.mark.parametrize(
    "name",
    [
        "../decoder.onnx",
        "/etc/passwd",
        "sub/decoder.onnx",
        "..",
        ".",
        "",
        ".hidden",
        "unconditional_decoder.onnx",
        "decoder.plan",
        "notes.txt",
        "plans.json",
        "kernels-000000000000.cubin",
        "kernels-zzzzzzzzzzzz.cubin",
        "x" * 200,
        "decoder.onnx\n",
    ],
)
def test_files_that_plans_do_not_have_are_refused(name: str, voice: Voice, folder: Path) -> None:
    content = json.loads((folder / RECORD).read_text())
    record = content["files"]["decoder.onnx"]
    written(folder, {**content, "files": {**content["files"], "kernels-111111111111.cubin": record, name: record}})
    refused(voice, r"plans\.json (cannot be read \(its file's name cannot be|lists )")


@pytest.mark.parametrize("missing", ["decoder.onnx", "vocoder.onnx"])
def test_a_network_that_is_not_listed_is_missed(missing: str, voice: Voice, folder: Path) -> None:
    content = json.loads((folder / RECORD).read_text())
    del content["files"][missing]
    written(folder, content)
    refused(voice, rf"plans\.json does not list {missing}\.")


def fifo(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def nowhere(path: Path) -> None:
    path.symlink_to("nowhere")


def endless(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


ODD = [fifo, device, loop, nowhere, Path.mkdir, endless]


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", [RECORD, "decoder.onnx"])
def test_what_is_no_file_is_refused_and_not_waited_for(
    name: str, odd: Callable[[Path], None], voice: Voice, folder: Path
) -> None:
    (folder / name).unlink()
    odd(folder / name)
    refused(voice, rf"{folder.name}/{name} (cannot be read|has|leads|is missing)")


@pytest.mark.parametrize("odd", ODD)
def test_onnx_runtime_s_graphs_are_made_again_in_such_a_place(
    odd: Callable[[Path], None], voice: Voice, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(providers, "_installed", lambda: {"onnxruntime-gpu": "1.31.1"})
    opened = make_graphs(voice, "fp32", CAPABILITY)
    (opened / RECORD).unlink()
    odd(opened / RECORD)
    simulated = SimulatedDevice()
    open_cuda(voice, {"precision": "fp32"}, device=simulated, runtime=SimulatedOnnxRuntime(simulated)).close()
    assert found(voice).folder == opened and list(home.iterdir()) == [opened]


def test_a_precision_that_is_none_is_refused(voice: Voice, home: Path) -> None:
    for precision in ("fp8", 5, b"fp16", ["fp16"], "../fp16", float("nan")):
        with pytest.raises(BackendError, match=r"there is no plan precision .* Choose one of fp16, bf16, fp32"):
            found(voice, precision)
        with pytest.raises(BackendError, match=r"there is no plan precision"):
            make_graphs(voice, precision, CAPABILITY)


def test_odd_things_beside_plans_are_passed_over(voice: Voice, folder: Path, home: Path) -> None:
    name = folder.name
    for index, odd in enumerate(ODD):
        odd(home / f"reference-{index}")
        inside = home / f"reference-a{index}"
        inside.mkdir()
        odd(inside / RECORD)
    (home / os.fsdecode(b"reference-\xff\x1b[2J")).mkdir()
    (home / os.fsdecode(b"reference-\xff\x1b[2J") / RECORD).write_text("{}")
    (home / "reference-closed").mkdir(0)
    with pytest.raises(
        BackendError, match=r"no fp16 plans of voice 'reference' .*for precision fp32, not fp16"
    ) as caught:
        found(voice, "fp16")
    said = str(caught.value)
    assert f"{name} is for precision fp32" in said and "reference-a0 is unreadable" in said and said.isprintable()


def test_of_hundreds_some_are_named(voice: Voice, folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = (folder / RECORD).read_text()
    for index in range(300):
        (home / f"reference-{index:04}").mkdir()
        (home / f"reference-{index:04}" / RECORD).write_text(record)
        (home / f"another-{index:04}").mkdir()
    with pytest.raises(BackendError, match=rf"reference-0000 is .*; and {301 - NAMED_MOST} more\)") as caught:
        found(voice, "fp16")
    assert str(caught.value).count(" not fp16") == NAMED_MOST
    monkeypatch.setattr(plans, "LISTED_MOST", 0)
    with pytest.raises(BackendError, match=r"found: none at all"):
        found(voice, "fp16")


HOMES: dict[str, Callable[[Path], Path]] = {
    "a file": lambda path: (path / "file").write_text("") or path / "file",
    "in a file": lambda path: (path / "file").write_text("") or path / "file" / "plans",
    "a device": lambda path: Path("/dev/null"),
    "a loop": lambda path: loop(path / "loop") or path / "loop",
    "in a loop": lambda path: loop(path / "loop") or path / "loop" / "plans",
    "a long name": lambda path: path / ("x" * 300),
    "a long path": lambda path: path / "/".join(["x" * 200] * 30),
    "no bytes of a file system": lambda path: path / "a\0b",
    "read-only": lambda path: Path("/proc/plans"),
    "a pipe": lambda path: os.mkfifo(path / "pipe") or path / "pipe",
}


@pytest.mark.parametrize("kind", HOMES)
def test_a_home_that_is_none_is_named_with_a_cure(
    kind: str, voice: Voice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = HOMES[kind](tmp_path)
    if "\0" in str(place):  # which no environment can hold
        for module in ("device.plans", "graphs.make", "ort.executors"):
            monkeypatch.setattr(f"notewave.backends.{module}.plans_home", lambda: place)
    else:
        monkeypatch.setenv("NOTEWAVE_PLANS", str(place))
    with pytest.raises(BackendError, match=r"NOTEWAVE_PLANS|\(found: none at all\)\. Build them: notewave build"):
        found(voice)
    with pytest.raises(OutputError, match=r"(?s)was not written: .*NOTEWAVE_PLANS names where plans go"):
        make_graphs(voice, "fp32", CAPABILITY)
    monkeypatch.setattr(providers, "_installed", lambda: {"onnxruntime-gpu": "1.31.1"})
    simulated = SimulatedDevice()
    with pytest.raises(BackendError, match=r"(?s)was not written: .*NOTEWAVE_PLANS names where plans go"):
        open_cuda(voice, {"precision": "fp32"}, device=simulated, runtime=SimulatedOnnxRuntime(simulated))


def test_without_a_home_of_the_user_s_a_folder_must_be_named(monkeypatch: pytest.MonkeyPatch, voice: Voice) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("NOTEWAVE_PLANS", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    for ask in (plans_home, lambda: found(voice), lambda: make_graphs(voice, "fp32", CAPABILITY)):
        with pytest.raises(NotewaveError, match=r"home directory.*Name one in NOTEWAVE_PLANS"):
            ask()


def test_the_command_says_so_in_a_line(
    voice: Voice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NOTEWAVE_PLANS", str(tmp_path / ("x" * 300)))
    options = ["--flavour", "onnxruntime", "--compute-capability", "8.9", "--precision", "fp32"]
    assert main(["build", str(voice.folder), *options]) != 0
    said = capsys.readouterr().err
    assert "NOTEWAVE_PLANS names where plans go" in said and "Traceback" not in said
