"""ONNX Runtime's GPU providers, as far as they can be looked at without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from notewave import ort_backend
from notewave.errors import BackendError
from notewave.mel import MELS
from notewave.ort_backend import OrtBackend, execution_providers
from notewave.voice import Voice


@pytest.fixture(scope="module")
def voice(vocoded_voice: Path) -> Voice:
    return Voice.load(vocoded_voice)


@pytest.fixture
def seemingly_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort_backend, "usable_devices", lambda: ["cpu", "cuda"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)


def test_providers_and_their_options() -> None:
    assert execution_providers("cpu", {}) == [("CPUExecutionProvider", {})]
    assert execution_providers("cuda", {"device_id": 1}) == [
        ("CUDAExecutionProvider", {"use_tf32": "0", "device_id": 1}),
        ("CPUExecutionProvider", {}),
    ]
    assert execution_providers("cuda", {"use_tf32": "1", "trt_fp16_enable": True, "device_id": 1}) == [
        ("TensorrtExecutionProvider", {"trt_fp16_enable": True, "device_id": 1}),
        ("CUDAExecutionProvider", {"use_tf32": "1", "device_id": 1}),
        ("CPUExecutionProvider", {}),
    ]


@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.usefixtures("seemingly_usable")
def test_a_provider_that_onnx_runtime_passes_over_is_no_silent_cpu(
    voice: Voice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ort_backend.PROVIDERS, "cuda", "ExecutionProviderThatIsNotHere")
    with pytest.raises(BackendError, match=r"cannot load its .* took CPUExecutionProvider.*\[cuda,cudnn\]"):
        OrtBackend(voice, "cuda", None, {})


@pytest.mark.usefixtures("seemingly_usable")
def test_a_gpu_session_that_fails_leaves_the_cpu_to_auto(voice: Voice, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, providers: list[tuple[str, Any]]) -> None:
        raise RuntimeError("CUDA failure 2: out of memory")

    monkeypatch.setattr(onnxruntime, "InferenceSession", fails)
    with pytest.raises(BackendError, match=r"CUDAExecutionProvider \(CUDA failure 2: out of memory\)"):
        OrtBackend(voice, "cuda", None, {"gpu_mem_limit": 1})


def test_what_onnx_runtime_raises_on_a_gpu_is_a_backend_error(voice: Voice) -> None:
    backend = OrtBackend(voice, "cpu", 1, {})
    wrong = np.zeros((1, 20, MELS + 1), np.float32)
    with pytest.raises(Exception, match="Got: 129 Expected: 128") as raised:
        backend.vocode(wrong, 0)
    assert not isinstance(raised.value, BackendError)
    backend.name = "cuda"
    with pytest.raises(BackendError, match=r"(?s)failed on the GPU \(.*Got: 129 Expected: 128"):
        backend.vocode(wrong, 0)
