"""TensorRT behind the GPU's backend: plans that fit or do not, engines that fail, what they compiled."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gpu_songs import TOLERANCE, job, opened, sung
from simulated_device import SimulatedDevice
from simulated_tensorrt import (
    DataType,
    ICudaEngine,
    IExecutionContext,
    SimulatedTensorRT,
    SimulatedTensorRTRTX,
    simulated_plan,
)

import notewave
from notewave.backends.device.plans import RECORD
from notewave.backends.device.shapes import VOCODER_BATCH
from notewave.backends.ort.backend import OrtBackend
from notewave.backends.trt import backend as trt
from notewave.backends.trt.backend import open_tensorrt
from notewave.errors import BackendError
from notewave.export.plans.build import build_plans
from notewave.inputs import FileRecord
from notewave.kernels import loader
from notewave.song.dialect import Tokens
from notewave.sound.mel import FRAMES, MELS
from notewave.voice.folder import Voice


@pytest.mark.parametrize("kind", ["tensorrt", "rtx", "rtx that cannot be captured", "no graphs"])
def test_the_samples_are_the_cpu_s(kind: str, voice: Voice, home: Path, segments: list[Tokens]) -> None:
    device = SimulatedDevice()
    trt = SimulatedTensorRT(device) if kind == "tensorrt" else SimulatedTensorRTRTX(device, "cannot" not in kind)
    backend = open_tensorrt(voice, {"graphs": kind != "no graphs"}, device=device, trt=trt)
    work = job(voice)
    np.testing.assert_allclose(
        sung(backend, work, [segments]), sung(OrtBackend(voice, 1), work, [segments]), rtol=0, atol=TOLERANCE
    )
    assert [graph.launches for graph in device.graphs] == ([1] if kind in ("tensorrt", "rtx") else [])
    if kind == "rtx that cannot be captured":  # then TensorRT-RTX captures graphs itself
        assert trt.configs[-1].cuda_graph_strategy is trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    if isinstance(trt, SimulatedTensorRTRTX):
        eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        assert all(config.dynamic_shapes_kernel_specialization_strategy is eager for config in trt.configs)


def test_limits_of_the_plans_are_named(voice: Voice, home: Path) -> None:
    backend, _ = opened(voice)
    with backend.start(job(voice)) as run, pytest.raises(BackendError, match=r"2049 tokens; the plans take 2048"):
        run.denoise([np.ones(2049, np.int32)])
    with pytest.raises(BackendError, match=r"17 songs .* plans take 16"), backend.start(job(voice, seeds=(0,) * 17)):
        pass
    with pytest.raises(BackendError, match=rf"it takes {VOCODER_BATCH} of {FRAMES + 2}"):
        backend.vocode(np.zeros((1, FRAMES + 3, MELS), np.float32), 0)
    with pytest.raises(BackendError, match=r"no option speed\. Known: precision, device_id, graphs"):
        opened(voice, speed=9)


def test_missing_plans_say_what_is_there_instead(
    voice: Voice, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        BackendError, match=r"no fp16 plans .* for precision fp32, not fp16.*notewave build .*--precision fp16"
    ):
        opened(voice, precision="fp16")
    with pytest.raises(BackendError, match=r"compute capability 12\.0 .*for capability 8\.9, not 12\.0"):
        opened(voice, SimulatedDevice(capability=(12, 0)))
    device = SimulatedDevice()
    newer = SimulatedTensorRTRTX(device)
    newer.__version__ = "1.8.0"
    with pytest.raises(BackendError, match=r"for version 1\.7\.1, not 1\.8\.0"):
        open_tensorrt(voice, {}, device=device, trt=newer)
    monkeypatch.setenv("NOTEWAVE_PLANS", str(tmp_path))
    with pytest.raises(BackendError, match="found: none at all"):
        opened(voice)


def spoil_header(folder: Path, change: Callable[[dict[str, object]], None]) -> None:
    content = json.loads((folder / RECORD).read_text())
    change(content)
    (folder / RECORD).write_text(json.dumps(content))


def spoil_plan(plan: Path) -> None:
    """Make a plan one that only TensorRT can tell from a good one."""
    plan.write_bytes(b"garbage")
    record = FileRecord.of(plan)
    spoil_header(plan.parent, lambda content: content["files"].update({plan.name: vars(record)}))


def test_damaged_stale_and_foreign_plans_are_refused_by_name(voice: Voice, spoilable: Path) -> None:
    plan = spoilable / "decoder.plan"
    whole = plan.read_bytes()
    plan.write_bytes(whole[:-100])
    with pytest.raises(BackendError, match=r"decoder\.plan has \d+ bytes where plans\.json says \d+: it was cut short"):
        opened(voice)
    plan.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(BackendError, match=r"decoder\.plan does not match its SHA-256"):
        opened(voice)
    plan.write_bytes(whole)
    opened(voice)
    spoil_header(spoilable, lambda content: content["target"].update(graphs="0" * 64))
    with pytest.raises(BackendError, match="stale: built from other graphs"):
        opened(voice)
    spoil_header(spoilable, lambda content: content["target"].update(capability="7.5"))
    with pytest.raises(BackendError, match=r"for capability 7\.5, not 8\.9"):
        opened(voice)
    (spoilable / RECORD).write_text("{")
    with pytest.raises(BackendError, match=r"plans\.json cannot be read"):
        opened(voice)


def test_a_plan_that_tensorrt_refuses_gives_its_reason(voice: Voice, spoilable: Path) -> None:
    spoil_plan(spoilable / "note_encoder.plan")
    with pytest.raises(BackendError, match=r"note_encoder\.plan.* does not load .*MALFORMED_ENGINE.*not a plan"):
        opened(voice)


def test_kernels_that_are_missing_or_of_another_source_are_compiled_again(
    voice: Voice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[bytes] = []
    monkeypatch.setenv("NOTEWAVE_PLANS", str(tmp_path))
    monkeypatch.setattr(SimulatedDevice, "kernels", lambda _, image: loaded.append(image) or {})
    monkeypatch.setattr("notewave.backends.graphs.make.compile_kernels", lambda _: b"ahead")
    monkeypatch.setattr(loader, "compile_kernels", lambda _: b"now")
    build_plans(voice, "fp32", (8, 9), trt=SimulatedTensorRTRTX(SimulatedDevice()), compile_plan=simulated_plan)
    opened(voice)
    source = loader.source
    monkeypatch.setattr(loader, "source", lambda name: source(name) + "// changed")
    opened(voice)
    assert loaded == [b"ahead", b"now"]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this machine had a GPU and TensorRT-RTX."""
    device = SimulatedDevice()
    monkeypatch.setattr(trt, "CudaDevice", lambda _: device)
    monkeypatch.setattr(trt, "tensorrt_modules", lambda: [SimulatedTensorRTRTX(device)])


@pytest.mark.usefixtures("machine")
def test_auto_falls_back_from_plans_that_do_not_load(
    voice: Voice, spoilable: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert notewave.Synthesizer(voice.folder).backend == "tensorrt"
    spoil_plan(spoilable / "vocoder.plan")
    with caplog.at_level(logging.INFO):
        assert notewave.Synthesizer(voice.folder).backend == "cpu"
    assert "not tensorrt, since" in caplog.text and "vocoder.plan" in caplog.text


@pytest.mark.usefixtures("machine", "home")
def test_threads_are_said_to_be_of_no_use_there(voice: Voice, caplog: pytest.LogCaptureFixture) -> None:
    notewave.Synthesizer(voice.folder, backend="tensorrt")
    assert not caplog.records
    notewave.Synthesizer(voice.folder, backend="tensorrt", threads=2)
    assert "threads=2 is of no use to backend tensorrt" in caplog.text


def test_every_tensorrt_that_is_installed_is_asked_for_plans(
    voice: Voice, home: Path, spoilable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = SimulatedDevice()
    modules = [SimulatedTensorRT(device), SimulatedTensorRTRTX(device)]
    monkeypatch.setattr(trt, "tensorrt_modules", lambda: modules)
    for folder in spoilable.parent.glob("*-tensorrt-*"):
        shutil.rmtree(folder)
    assert open_tensorrt(voice, {}, device=device).shared.runtime.plans.folder == spoilable
    shutil.rmtree(spoilable)
    with pytest.raises(BackendError, match=r"for tensorrt 11.* other TensorRT here: .* for tensorrt_rtx 1\.7"):
        open_tensorrt(voice, {}, device=device)


def test_a_reason_is_the_failed_call_s_own(voice: Voice, home: Path) -> None:
    backend, other = opened(voice)[0], opened(voice)[0]
    assert backend.shared.runtime._log is other.shared.runtime._log, "TensorRT keeps the first logger it is given"
    backend.shared.runtime._log.log(SimulatedTensorRT.ILogger.Severity.ERROR, "of long ago")
    with pytest.raises(BackendError, match=r"does not take mel \[1, 0, 128\] \(TensorRT gives no reason\)"):
        other.vocode(np.zeros((1, 0, MELS), np.float32), 0)


def test_what_tensorrt_rtx_compiles_is_kept_for_the_next_start(
    voice: Voice, spoilable: Path, segments: list[Tokens]
) -> None:
    sung(opened(voice)[0], job(voice), [segments[:1]])
    assert (spoilable / "decoder.runtime_cache").read_bytes() == b"compiled"
    backend, _ = opened(voice)
    sung(backend, job(voice), [segments[:1]])
    assert backend.shared.runtime._caches["decoder"].content == b"compiled"


def test_what_the_vocoder_had_compiled_is_kept_too(voice: Voice, spoilable: Path) -> None:
    backend, _ = opened(voice)
    backend.vocode(np.zeros((1, 20, MELS), np.float32), 0)
    kept = spoilable / "vocoder.runtime_cache"
    assert kept.read_bytes() == b"compiled"
    kept.unlink()
    backend.vocode(np.zeros((1, 20, MELS), np.float32), 0)
    assert not kept.exists()  # a shape that ran before is not written again
    backend.vocode(np.zeros((1, 21, MELS), np.float32), 0)
    assert kept.exists()


@pytest.mark.parametrize("network", ["decoder", "vocoder"])
def test_a_plan_that_cannot_be_run_is_named_and_leaks_nothing(
    network: str, voice: Voice, home: Path, segments: list[Tokens], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, device = opened(voice)
    engine = backend.shared.runtime[network]
    monkeypatch.setattr(engine, "create_execution_context", lambda _: None)
    with pytest.raises(BackendError, match=rf"{network}\.plan cannot be run; \d+ of \d+ MiB of GPU memory are free"):
        if network == "vocoder":
            backend.vocode(np.zeros((1, 20, MELS), np.float32), 0)
        else:
            sung(backend, job(voice), [segments[:1]])
    assert len(device.memories) == (0 if network == "vocoder" else 1), "the run's slab is kept for the next run"


def test_a_plan_of_another_type_than_its_contract_s_is_refused(
    voice: Voice, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ICudaEngine, "get_tensor_dtype", lambda self, name: DataType.HALF)
    with pytest.raises(BackendError, match=r"\.plan has float16 for \w+, where \w+ is due\..*notewave build VOICE"):
        opened(voice)


@pytest.mark.parametrize(
    ("call", "message"),
    [("set_tensor_address", r"does not take \w+ at 0x"), ("execute_async_v3", r"did not run")],
)
def test_a_plan_that_fails_in_a_run_is_named(
    call: str, message: str, voice: Voice, home: Path, segments: list[Tokens], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: IExecutionContext, *_: object) -> bool:
        backend.shared.runtime._log.log(SimulatedTensorRT.ILogger.Severity.ERROR, "its own reason")
        return False

    backend, _ = opened(voice)
    monkeypatch.setattr(IExecutionContext, call, fails)
    with pytest.raises(BackendError, match=rf"\.plan {message}.*\(its own reason\)\..*notewave build VOICE"):
        sung(backend, job(voice), [segments[:1]])


def test_what_was_compiled_for_another_gpu_is_compiled_again(
    voice: Voice, spoilable: Path, segments: list[Tokens], caplog: pytest.LogCaptureFixture
) -> None:
    kept = spoilable / "decoder.runtime_cache"
    kept.write_bytes(b"for another GPU")
    with caplog.at_level(logging.INFO):
        sung(opened(voice)[0], job(voice), [segments[:1]])
    assert "decoder.runtime_cache is of another driver or GPU; compiling again" in caplog.text
    assert kept.read_bytes() == b"compiled"


def test_a_tensorrt_that_takes_no_cache_sings_without(
    voice: Voice,
    home: Path,
    segments: list[Tokens],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = sung(opened(voice)[0], job(voice), [segments[:1]])
    monkeypatch.setattr(SimulatedTensorRTRTX.IRuntimeConfig, "set_runtime_cache", lambda self, cache: False)
    np.testing.assert_array_equal(sung(opened(voice)[0], job(voice), [segments[:1]]), expected)
    assert "takes no cache of what it compiles; each start compiles again" in caplog.text


def test_tensorrt_that_does_not_start_is_explained(voice: Voice, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(self: object, logger: object) -> None:
        logger.log(SimulatedTensorRT.ILogger.Severity.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("factory function returned nullptr")

    monkeypatch.setattr(SimulatedTensorRTRTX, "Runtime", refuses)
    with pytest.raises(
        BackendError, match=r"does not start \(CUDA init.* error: 35; driver for CUDA .*Update the driver"
    ):
        opened(voice)


def test_voices_of_8_bit_weights_are_refused(voice: Voice, home: Path) -> None:
    integers = dataclasses.replace(voice, precision="int8")
    with pytest.raises(BackendError, match=r"holds 8-bit weights, .* Export it with --precision fp32 or fp16"):
        opened(integers)


def test_a_plan_that_gives_more_than_its_contract_is_refused(
    voice: Voice, home: Path, segments: list[Tokens], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would write past its region of the slab."""
    shape = IExecutionContext.get_tensor_shape

    def longer(self: IExecutionContext, name: str) -> tuple[int, ...]:
        batch, *rest = shape(self, name)
        return (batch, 2 * rest[0], *rest[1:]) if name == "notes" else (batch, *rest)

    monkeypatch.setattr(IExecutionContext, "get_tensor_shape", longer)
    backend, _ = opened(voice)
    with pytest.raises(BackendError, match=r"note_encoder\.plan gives notes"):
        sung(backend, job(voice), [segments])
