"""Plans that other processes make, replace and remove while they are opened and used."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from gpu_songs import job, sounded
from simulated_device import SimulatedDevice
from simulated_onnxruntime import CPU, SimulatedOnnxRuntime
from simulated_tensorrt import SimulatedTensorRTRTX, simulated_plan

from notewave.backends.device.plans import ATTEMPTS, RECORD, Plans, find_plans
from notewave.backends.gpu.backend import GpuBackend
from notewave.backends.graphs.make import make_plans
from notewave.backends.ort import executors, providers
from notewave.backends.ort.executors import make_graphs, open_cuda
from notewave.backends.ort.sessions import let_go_of_bytes
from notewave.backends.trt.backend import open_tensorrt
from notewave.errors import BackendError
from notewave.export.plans.build import build_plans
from notewave.files import atomic_folder
from notewave.inputs import HeldFiles
from notewave.kernels.loader import load_kernels
from notewave.song.dialect import Tokens
from notewave.voice.folder import Voice

CAPABILITY = (8, 9)
NETWORKS = ("note_encoder", "context_encoder", "cross_attention", "time_embedding", "decoder", "vocoder")

# Each takes a voice's folder. The one's plans are a voice's graphs, the other's have the same names and new bytes.
MAKES_GRAPHS = f"""
for _ in range(12):
    make_graphs(voice, "fp32", {CAPABILITY})
"""
MAKES_OTHERS = f"""
for _ in range(60):
    make_plans(voice, onnxruntime, {CAPABILITY}, "fp32", lambda network, contract: os.urandom(1 << 18))
"""
READS = f"""
print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    plans = find_plans(voice, onnxruntime, {CAPABILITY}, None)
    assert all(plans.read(network) for network in networks)
    count, kinds = count + 1, kinds | {{plans.record.files["decoder.onnx"].sha256}}
print(count, len(kinds))
"""
BEFORE = """
import os, select, sys
import onnxruntime
from notewave.backends.device.contracts import gpu_contracts
from notewave.backends.device.plans import find_plans
from notewave.backends.graphs.make import make_plans
from notewave.backends.ort.executors import make_graphs
from notewave.voice.folder import Voice
voice, count, kinds = Voice.load(sys.argv[1]), 0, set()
networks = gpu_contracts(voice, "fp32")
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NOTEWAVE_PLANS", str(tmp_path / "plans"))
    monkeypatch.setattr(providers, "_installed", lambda: {"onnxruntime-gpu": "1.31.1"})
    return tmp_path / "plans"


def process(program: str, voice: Voice) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BEFORE + program, str(voice.folder)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def test_processes_make_the_same_plans_at_once_and_others_read_them_all_the_while(voice: Voice, place: Path) -> None:
    make_graphs(voice, "fp32", CAPABILITY)
    readers = [process(READS, voice) for _ in range(2)]
    for reader in readers:
        assert reader.stdout.readline() == "ready\n"
    for writer in [process(program, voice) for program in (MAKES_GRAPHS, MAKES_OTHERS)]:
        _, errors = writer.communicate()
        assert writer.returncode == 0, errors
    for reader in readers:
        said, errors = reader.communicate("stop")
        assert reader.returncode == 0, errors
        count, kinds = map(int, said.split())
        assert count > 2 and kinds > 2, "they read between replacements"
    (folder,) = place.iterdir()
    assert find_plans(voice, onnxruntime, CAPABILITY, None).folder == folder, "nothing else is left there"


def others(voice: Voice, seed: int, engine: object = onnxruntime) -> Path:
    """Put plans of other bytes where a voice's are kept; nothing could run them."""
    noise = np.random.default_rng(seed)
    return make_plans(voice, engine, CAPABILITY, "fp32", lambda network, contract: noise.bytes(1 << 10))


def at_each_check(monkeypatch: pytest.MonkeyPatch, happens: Callable[[int], object]) -> None:
    """Let something happen before a file is checked, by the number of files that were."""
    check, count = HeldFiles.check, 0

    def checked(self: HeldFiles, name: str) -> None:
        nonlocal count
        count += 1
        happens(count)
        check(self, name)

    monkeypatch.setattr(HeldFiles, "check", checked)


def test_a_folder_that_is_replaced_while_it_is_opened_is_opened_anew(
    voice: Voice, monkeypatch: pytest.MonkeyPatch
) -> None:
    others(voice, 1)
    at_each_check(monkeypatch, lambda count: others(voice, 2) if count == 3 else None)
    plans = find_plans(voice, onnxruntime, CAPABILITY, "fp32")
    noise = np.random.default_rng(2)
    assert [plans.read(network) for network in NETWORKS] == [noise.bytes(1 << 10) for _ in NETWORKS]


def test_a_folder_that_is_replaced_for_ever_is_given_up(voice: Voice, monkeypatch: pytest.MonkeyPatch) -> None:
    others(voice, 0)
    seen = []

    def replaced(count: int) -> None:
        seen.append(count)
        others(voice, count)

    at_each_check(monkeypatch, replaced)
    with pytest.raises(BackendError, match=r"\.onnx does not match its SHA-256 in plans\.json.* notewave build VOICE"):
        find_plans(voice, onnxruntime, CAPABILITY, "fp32")
    assert ATTEMPTS <= len(seen) <= 2 * ATTEMPTS


def test_a_folder_that_is_damaged_and_stays_so_is_read_once(voice: Voice, monkeypatch: pytest.MonkeyPatch) -> None:
    (others(voice, 0) / "decoder.onnx").write_bytes(bytes(1 << 10))
    seen = []
    at_each_check(monkeypatch, seen.append)
    with pytest.raises(BackendError, match=r"decoder\.onnx does not match its SHA-256"):
        find_plans(voice, onnxruntime, CAPABILITY, "fp32")
    assert len(seen) < 10


def test_what_was_opened_is_read_when_the_folder_is_another_or_gone(voice: Voice) -> None:
    folder = others(voice, 1)
    plans = find_plans(voice, onnxruntime, CAPABILITY, "fp32")
    before = contents(plans)
    others(voice, 2)
    assert contents(plans) == before and contents(find_plans(voice, onnxruntime, CAPABILITY, "fp32")) != before
    shutil.rmtree(folder)
    assert contents(plans) == before


def contents(plans: Plans) -> list[bytes]:
    return [load_kernels(plans.files, CAPABILITY), *map(plans.read, NETWORKS)]


def test_plans_that_are_rewritten_in_place_after_they_were_opened_are_refused(voice: Voice) -> None:
    folder = others(voice, 1)
    plans = find_plans(voice, onnxruntime, CAPABILITY, "fp32")
    (folder / "decoder.onnx").write_bytes(bytes(1 << 10))
    with pytest.raises(BackendError, match=r"decoder\.onnx does not match its SHA-256.* notewave build VOICE"):
        plans.read("decoder")


def on_tensorrt(voice: Voice) -> GpuBackend:
    device = SimulatedDevice()
    trt = SimulatedTensorRTRTX(device)
    build_plans(voice, "fp32", CAPABILITY, trt=trt, compile_plan=simulated_plan)
    return open_tensorrt(voice, {"precision": "fp32"}, device=device, trt=trt)


def on_onnxruntime(voice: Voice) -> GpuBackend:
    device = SimulatedDevice()
    return open_cuda(voice, {"precision": "fp32"}, device=device, runtime=SimulatedOnnxRuntime(device))


@pytest.mark.parametrize("opened", [on_tensorrt, on_onnxruntime])
@pytest.mark.parametrize("what", ["replaced", "removed"])
def test_a_voice_that_is_open_sings_on_when_its_plans_are_gone(
    opened: Callable[[Voice], GpuBackend], what: str, voice: Voice, place: Path, segments: list[Tokens]
) -> None:
    """Some of its networks are opened later, and again on other streams."""
    expected = sounded(opened(voice), job(voice), segments[:2])
    backend = opened(voice)
    (folder,) = place.iterdir()
    if what == "replaced":
        with atomic_folder(folder) as another:
            for path in folder.iterdir():
                (another / path.name).write_bytes(b"of another")
    else:
        shutil.rmtree(folder)
    np.testing.assert_array_equal(sounded(backend, job(voice), segments[:2]), expected)
    with backend.start(job(voice)) as one, backend.start(job(voice)) as two:
        for run in (one, two):
            run.denoise([segments[0]])


def test_a_session_holds_no_bytes_of_its_graph(voice: Voice, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[bytes] = []
    make = SimulatedOnnxRuntime.InferenceSession

    def seen(self: SimulatedOnnxRuntime, graph: bytes, *given: object, **named: object) -> object:
        graphs.append(graph)
        return make(self, graph, *given, **named)

    monkeypatch.setattr(SimulatedOnnxRuntime, "InferenceSession", seen)
    backend = on_onnxruntime(voice)
    assert len(graphs) >= 5 and backend.name == "cuda"
    held = [sys.getrefcount(graphs[index]) for index in range(len(graphs))]
    assert set(held) == {2}, "by this test's list, and by the question"


def test_onnx_runtime_s_own_sessions_run_without_the_bytes_that_they_keep(voice: Voice) -> None:
    graph = (make_graphs(voice, "fp32", CAPABILITY) / "vocoder.onnx").read_bytes()
    session = onnxruntime.InferenceSession(graph, providers=[CPU])
    kept = sys.getrefcount(graph)
    let_go_of_bytes(session)
    assert sys.getrefcount(graph) == kept - 1
    mel, frame = np.zeros((1, 4, 128), np.float32), np.zeros(1, np.int64)
    assert session.run(None, {"mel": mel, "frame": frame})[0].shape[0] == 1


def test_graphs_that_are_no_graphs_are_named(voice: Voice, monkeypatch: pytest.MonkeyPatch) -> None:
    others(voice, 1, SimulatedOnnxRuntime(SimulatedDevice()))
    monkeypatch.setattr(executors, "make_graphs", lambda *_: pytest.fail("their checksums are right"))
    with pytest.raises(BackendError, match=r"note_encoder\.onnx is no ONNX graph .* notewave build VOICE"):
        on_onnxruntime(voice)


def test_a_runtime_cache_that_is_no_file_is_passed_over(voice: Voice, segments: list[Tokens]) -> None:
    backend = on_tensorrt(voice)
    folder = backend.shared.runtime.plans.folder
    os.mkfifo(folder / "decoder.runtime_cache")
    (folder / "note_encoder.runtime_cache").mkdir()
    sounded(backend, job(voice), segments[:1])
    assert (folder / "context_encoder.runtime_cache").read_bytes() == b"compiled"
    assert (folder / "decoder.runtime_cache").is_fifo() and (folder / RECORD).is_file()
