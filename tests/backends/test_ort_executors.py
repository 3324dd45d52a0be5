"""ONNX Runtime behind the executor seam, on the simulated GPU: the CPU's samples, and what it asks of the engine."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from simulated_device import SimulatedDevice
from simulated_onnxruntime import CPU, CUDA, InferenceSession, RuntimeException, SimulatedOnnxRuntime

import notewave
from notewave.backends.device.plans import PlanRecord
from notewave.backends.executor import Capture
from notewave.backends.gpu.backend import KEPT_DENOISERS, GpuBackend
from notewave.backends.ort import executors, providers
from notewave.backends.ort.executors import make_graphs, open_cuda
from notewave.backends.ort.providers import check_provider
from notewave.errors import BackendError, VoiceError
from notewave.export.plans.build import build_plans
from notewave.sampling.job import Job
from notewave.sampling.samplers import sampler_table
from notewave.song.dialect import EOS, Tokens
from notewave.sound.mel import FRAMES, MELS
from notewave.voice.folder import Voice

STEPS = 3


@pytest.fixture(scope="module")
def song(midi_folder: Path) -> list[Tokens]:
    """Four segments of one bucket of token lengths."""
    first, second = notewave.tokenize(midi_folder / "ensemble.mid")[:2]
    return [np.append(tokens[:200], EOS).astype(np.int32) for tokens in (first, second)] * 2


@pytest.fixture(scope="module")
def made(voice: Voice, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home with the float32 graphs of the voice."""
    home = tmp_path_factory.mktemp("graphs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NOTEWAVE_PLANS", str(home))
        make_graphs(voice, "fp32", (8, 9))
    yield home


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if onnxruntime-gpu, and it alone, were installed."""
    monkeypatch.setattr(providers, "_installed", lambda: {"onnxruntime-gpu": "1.31.1"})


@pytest.fixture
def home(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NOTEWAVE_PLANS", str(made))
    return made


def opened(
    voice: Voice, device: SimulatedDevice | None = None, **options: object
) -> tuple[GpuBackend, SimulatedOnnxRuntime]:
    device = device or SimulatedDevice()
    runtime = SimulatedOnnxRuntime(device)
    return open_cuda(voice, {"precision": "fp32", **options}, device=device, runtime=runtime), runtime


def job(voice: Voice, guidance: float = 1.0, seeds: tuple[int, ...] = (7,)) -> Job:
    return Job(sampler_table("ddpm", STEPS, voice.schedule, voice.prediction), guidance, seeds, None)


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_it_gives_the_cpu_s_samples(
    guidance: float, voice: Voice, song: list[Tokens], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"sampler": "ddpm", "steps": STEPS, "guidance": guidance, "seed": 3}
    expected = notewave.Synthesizer(voice.folder, backend="cpu", threads=1).render(song, **options).samples
    backend, _ = opened(voice)
    monkeypatch.setattr("notewave.synthesizer.open_backend", lambda *_: backend)
    singer = notewave.Synthesizer(voice.folder)
    assert singer.backend == "cuda"
    np.testing.assert_allclose(singer.render(song, **options).samples, expected, rtol=0, atol=1e-3)


@pytest.mark.usefixtures("home")
def test_a_shape_is_captured_after_two_runs(voice: Voice, song: list[Tokens]) -> None:
    backend, _ = opened(voice)
    device = backend.shared.device
    with backend.start(job(voice)) as run:
        launched = []
        for tokens in song:
            run.denoise([tokens])
            launched.append(sum(graph.launches for graph in device.graphs))
    assert launched == [0, 0, 1, 2]
    facts = backend.device_facts()
    before_and_after = 3 + 1 + 1  # encoders, noise, context for the next segment
    assert facts.launches == {STEPS: before_and_after + 3 * STEPS}, "FiLM, the decoder and the sampler are a step"
    assert facts.name == device.name and 0 < facts.memory == sum(memory.bytes.size for memory in device.memories)


@pytest.mark.usefixtures("home")
def test_a_capture_that_is_refused_is_said_and_launched_without(
    voice: Voice, song: list[Tokens], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    backend, _ = opened(voice)
    monkeypatch.setattr(executors.Sessions, "warm_runs", 0)  # too early: sessions still allocate
    expected, _ = opened(voice, graphs=False)
    with backend.start(job(voice)) as run, expected.start(job(voice)) as eager:
        for tokens in song:
            np.testing.assert_array_equal(run.denoise([tokens]), eager.denoise([tokens]))
    assert not backend.shared.device.graphs and backend.shared.recorder.capture is Capture.ENGINE
    assert "launching without CUDA graphs: ONNX Runtime failed on simulated GPU running note_encoder" in caplog.text


@pytest.mark.usefixtures("home")
def test_sessions_belong_to_a_stream_and_are_found_open_by_the_next_run(voice: Voice, song: list[Tokens]) -> None:
    backend, runtime = opened(voice)
    device = backend.shared.device
    shapes = [(seeds, guidance) for seeds in ((1,), (1, 2), (1, 2, 3)) for guidance in (1.0, 2.0)]
    for seeds, guidance in shapes:
        with backend.start(job(voice, guidance, seeds)) as run:
            run.denoise([song[0]] * len(seeds))
    assert len(shapes) > KEPT_DENOISERS + 1
    backend.vocode(np.zeros((1, 4, MELS), np.float32), 0)
    count = Counter(output for output, _ in runtime.sessions)
    assert count["prediction"] == KEPT_DENOISERS + 1, "one for each run that is kept, and one to go on with"
    assert count["audio"] == 1
    assert len({stream for output, stream in runtime.sessions if output == "prediction"}) == KEPT_DENOISERS + 1
    backend.close()
    assert not device.memories and not device.leaked and not device.freed_early and not device.streams


@pytest.mark.usefixtures("home")
def test_sessions_of_many_streams_are_not_kept(voice: Voice, song: list[Tokens]) -> None:
    backend, _ = opened(voice)
    device, kept = backend.shared.device, 2 * KEPT_DENOISERS
    sessions: executors.Sessions = backend.shared.runtime

    def decoders() -> int:
        return sum(network == "decoder" for network, _ in sessions._open)

    with contextlib.ExitStack() as runs:
        for _ in range(kept + 3):
            runs.enter_context(backend.start(job(voice))).denoise([song[0]])
        assert decoders() == kept + 3
    assert decoders() == kept, "as many idle runs as are kept, and as many spare streams"
    assert {handle for _, handle in sessions._open} <= set(device.streams)
    backend.close()
    assert not device.memories and not device.leaked and not device.freed_early and not device.streams


@pytest.mark.usefixtures("home")
def test_weights_are_on_the_gpu_once_however_many_streams_there_are(voice: Voice, song: list[Tokens]) -> None:
    backend, runtime = opened(voice)
    device = backend.shared.device

    def weights() -> int:
        sessions: executors.Sessions = backend.shared.runtime
        return sum(value.size for kept in sessions._weights.values() for value in kept.values.values())

    one = weights()
    with backend.start(job(voice)) as first, backend.start(job(voice, 2.0)) as second:
        for run in (first, second):
            run.denoise([song[0]])
    assert Counter(output for output, _ in runtime.sessions)["prediction"] == 2
    assert weights() == one > 1 << 20
    assert device.memory()[0] > 0


@pytest.mark.usefixtures("home")
def test_guided_songs_need_no_second_decoder(voice: Voice, song: list[Tokens]) -> None:
    backend, runtime = opened(voice, graphs=False)
    launched = []
    for guidance in (1.0, 2.0):
        with backend.start(job(voice, guidance)) as run:
            run.denoise([song[0]])
            backend.shared.device.launches.clear()
            run.denoise([song[1]])
            launched.append(backend.shared.device.launches.count("network"))
    assert launched[0] == launched[1] == 3 + STEPS
    count = Counter(output for output, _ in runtime.sessions)
    assert count["prediction"] == count["notes"], "a decoder for each encoder"


def test_graphs_are_made_when_a_voice_is_first_opened_and_found_later(
    voice: Voice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTEWAVE_PLANS", str(tmp_path))
    opened(voice)
    (folder,) = tmp_path.iterdir()
    assert folder.name.endswith("-sm89-fp32") and "-onnxruntime-" in folder.name
    before = (folder / "decoder.onnx").stat().st_mtime_ns
    opened(voice)
    assert (folder / "decoder.onnx").stat().st_mtime_ns == before
    (folder / "decoder.onnx").write_bytes(b"damaged")
    opened(voice)
    assert "making the graphs again" in caplog.text and (folder / "decoder.onnx").stat().st_size > 1 << 10


def test_build_makes_the_graphs_that_are_found(voice: Voice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTEWAVE_PLANS", str(tmp_path))
    folder = build_plans(voice, "fp16", (8, 9), flavour="onnxruntime")
    record = json.loads((folder / "plans.json").read_text())
    assert record["target"]["flavour"] == "onnxruntime" and "decoder.onnx" in record["files"]
    with monkeypatch.context() as patch:
        patch.setattr(executors, "make_graphs", lambda *_: pytest.fail("they are there"))
        opened(voice, precision="fp16")


def test_what_cannot_be_made_is_refused_with_a_cure(
    voice: Voice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTEWAVE_PLANS", str(tmp_path))
    with pytest.raises(BackendError, match=r"no plan precision 'fp8'.*fp16, bf16, fp32"):
        opened(voice, precision="fp8")
    with pytest.raises(BackendError, match=r"7\.5 has no bfloat16\. Ask for --precision fp16"):
        opened(voice, SimulatedDevice((7, 5)), precision="bf16")
    monkeypatch.setenv("NOTEWAVE_PLANS", __file__)
    with pytest.raises(BackendError, match=r"NOTEWAVE_PLANS names where plans go"):
        opened(voice)
    integers = dataclasses.replace(voice, precision="int8")
    with pytest.raises(VoiceError, match=r"8-bit weights"):
        make_graphs(integers, "fp16", (8, 9))
    with pytest.raises(BackendError, match=r"8-bit weights"):
        opened(integers)


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("option", ["user_compute_stream", "enable_cuda_graph"])
def test_options_that_the_engine_sets_itself_are_refused(option: str, voice: Voice) -> None:
    with pytest.raises(BackendError, match=rf"sets {option} .* itself\. Leave that out"):
        opened(voice, **{option: 1})


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("given", [-1, 100, "first", 1.5, "١"])
def test_a_gpu_s_number_is_one(given: object, voice: Voice) -> None:
    with pytest.raises(BackendError, match=r"device_id is .*from 0 to 99"):
        opened(voice, device_id=given)


@pytest.mark.usefixtures("home")
class TestWhatIsMissing:
    """Each says fact, reason and cure, and leaves other backends to auto."""

    def test_a_wheel_without_cuda(self) -> None:
        without = SimulatedOnnxRuntime(SimulatedDevice(), (CPU,))
        with pytest.raises(BackendError, match=r"the onnxruntime here .* no CUDA provider\..*'onnxruntime-gpu"):
            check_provider(without)

    def test_two_packages_in_one_folder(self, monkeypatch: pytest.MonkeyPatch) -> None:
        both = {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"}
        monkeypatch.setattr(providers, "_installed", lambda: both)
        with pytest.raises(BackendError, match=r"onnxruntime 1\.32\.0 and onnxruntime-gpu 1\.31\.1 .* over each other"):
            check_provider(SimulatedOnnxRuntime(SimulatedDevice()))
        both["onnxruntime"] = "1.31.1"
        with pytest.raises(BackendError, match=r"of the two packages .* no CUDA provider"):
            check_provider(SimulatedOnnxRuntime(SimulatedDevice(), (CPU,)))
        check_provider(SimulatedOnnxRuntime(SimulatedDevice()))  # that of CUDA was the last

    def test_an_old_driver(self, voice: Voice) -> None:
        device = SimulatedDevice()
        device.driver = "12.4"
        with pytest.raises(BackendError, match=r"made for CUDA 13\.0, .*is for CUDA 12\.4\. Update the driver"):
            opened(voice, device)

    def test_libraries_that_the_provider_needs(self, voice: Voice) -> None:
        device = SimulatedDevice()
        runtime = SimulatedOnnxRuntime(device)
        runtime.taken = {CPU}
        with pytest.raises(BackendError, match=rf"cannot load its {CUDA} and took {CPU}.*\[cuda,cudnn\]"):
            open_cuda(voice, {"precision": "fp32"}, device=device, runtime=runtime)

    @pytest.mark.parametrize(
        ("reason", "cure"),
        [
            (
                "cudaErrorNoKernelImageForDevice: no kernel image is available",
                r"no machine code for .* 8\.9\. .*TensorRT",
            ),
            (
                "Failed to allocate memory for requested buffer of size 9",
                r"of 1048576 MiB of its memory are free: close",
            ),
            ("cuDNN is unavailable or disabled", r"Install cuDNN: pip install"),
            ("CUDA failure 35", r"Update the driver"),
        ],
    )
    def test_a_first_run_that_fails_says_why(
        self, reason: str, cure: str, voice: Voice, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fails(*_: object) -> None:
            raise RuntimeException(reason)

        monkeypatch.setattr(InferenceSession, "run", fails)
        device = SimulatedDevice()
        with pytest.raises(BackendError, match=rf"(?s){reason}.*{cure}"):
            opened(voice, device)
        assert not device.memories and not device.leaked, "all was given back"

    def test_no_memory_for_the_weights(self, voice: Voice) -> None:
        with pytest.raises(BackendError, match=r"out of GPU memory: the weights of .*note_encoder\.onnx needs"):
            opened(voice, SimulatedDevice(total=1 << 10))


@pytest.mark.usefixtures("home")
def test_a_graph_that_is_not_its_contract_s_is_refused(
    voice: Voice, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(home, copy)
    monkeypatch.setenv("NOTEWAVE_PLANS", str(copy))
    (folder,) = copy.iterdir()
    record = PlanRecord.load(folder)
    shutil.copy(folder / "context_encoder.onnx", folder / "decoder.onnx")
    files = {**record.files, "decoder.onnx": record.files["context_encoder.onnx"]}
    dataclasses.replace(record, files=files).save(folder)
    with pytest.raises(VoiceError, match=r"decoder\.onnx has the inputs mel, where x, film_0"):
        opened(voice)


@pytest.mark.usefixtures("home")
def test_an_output_of_another_size_than_was_bound_is_refused(voice: Voice) -> None:
    backend, _ = opened(voice, graphs=False)
    sessions: executors.Sessions = backend.shared.runtime
    with backend.shared.device:
        stream = backend.shared.device.stream()
        memory = backend.shared.device.allocate(1 << 20, "a test")
        backend.shared.device.clear(int(memory), 1 << 20, stream)
        executor = sessions.open("context_encoder", stream, None, Capture.NOBODY)
        executor.bind({"mel": int(memory), "context": int(memory) + (1 << 19)})
        executor.reshape({"B": 1, "C": FRAMES - 1})
        executor.launch()
        with pytest.raises(Exception, match=r"invalid dimensions for output: context"):
            stream.synchronize()
        stream.queue.clear()


def test_the_log_names_the_folder(voice: Voice, home: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        opened(voice)
    assert f"graphs of {home}" in caplog.text
