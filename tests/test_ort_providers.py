"""ONNX Runtime's GPU providers, as far as they can be looked at without a GPU."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from notewave.backends.ort import backend as ort_backend
from notewave.backends.ort import providers
from notewave.backends.ort.backend import OrtBackend
from notewave.backends.ort.providers import execution_providers, tensorrt_options
from notewave.errors import BackendError, VoiceError
from notewave.sound.mel import FRAMES, MELS
from notewave.voice.folder import Voice


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


def test_tensorrt_is_told_shapes_and_a_cache_for_each_network(
    voice: Voice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTEWAVE_PLANS", str(tmp_path))
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.15"))
    known = voice.contracts()
    assert tensorrt_options(voice, known["decoder"], {"device_id": 1}) == {"device_id": 1}
    options = tensorrt_options(voice, known["cross_attention"], {"trt_fp16_enable": True})
    width, longest = voice.dimensions.width, voice.dimensions.max_tokens
    assert options["trt_fp16_enable"] and options["trt_engine_cache_enable"] and options["trt_timing_cache_enable"]
    assert options["trt_profile_min_shapes"] == f"notes:1x1x{width},context:1x0x{width}"  # a first segment has none
    assert options["trt_profile_max_shapes"] == f"notes:4x{longest}x{width},context:4x{FRAMES}x{width}"
    cache = Path(options["trt_engine_cache_path"])
    assert cache.is_dir() and cache.name.startswith(f"onnxruntime-{onnxruntime.__version__}-10.15-")
    decoder = tensorrt_options(voice, known["decoder"], {"trt_fp16_enable": True})["trt_profile_opt_shapes"]
    assert "mask:1x1x1x768," in decoder and "film" not in decoder, "its shape does not vary"
    own = {"trt_engine_cache_enable": False, "trt_profile_min_shapes": "x:1"}
    chosen = tensorrt_options(voice, known["decoder"], own)
    assert chosen.items() >= own.items() and "trt_profile_max_shapes" not in chosen
    monkeypatch.setenv("NOTEWAVE_PLANS", __file__)
    with pytest.raises(BackendError, match=r"cannot be made .*Set NOTEWAVE_PLANS"):
        tensorrt_options(voice, known["decoder"], own)


@pytest.mark.usefixtures("seemingly_usable")
def test_tensorrt_s_libraries_are_found_before_a_session_asks_for_them(
    voice: Voice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTEWAVE_PLANS", str(tmp_path))
    asked: list[str] = []

    def session(*_: object, providers: list[tuple[str, dict[str, Any]]]) -> None:
        asked.append("tensorrt" if "tensorrt" in loaded else "too early")
        assert "trt_profile_min_shapes" in dict(providers)["TensorrtExecutionProvider"]
        raise RuntimeError("no GPU")

    loaded: list[str] = []
    monkeypatch.setattr(providers, "_tensorrt_version", lambda: loaded.append("tensorrt") or "10.15")
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    with pytest.raises(BackendError, match="no GPU"):
        OrtBackend(voice, "cuda", None, {"trt_fp16_enable": True})
    assert asked == ["tensorrt"]


@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.usefixtures("seemingly_usable")
def test_a_provider_that_onnx_runtime_passes_over_is_no_silent_cpu(
    voice: Voice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(providers.PROVIDERS, "cuda", "ExecutionProviderThatIsNotHere")
    with pytest.raises(BackendError, match=r"cannot load its .* took CPUExecutionProvider.*\[cuda,cudnn\]"):
        OrtBackend(voice, "cuda", None, {})


@pytest.mark.usefixtures("seemingly_usable")
def test_a_gpu_session_that_fails_leaves_the_cpu_to_auto(voice: Voice, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, providers: list[tuple[str, Any]]) -> None:
        raise RuntimeError("CUDA failure 2: out of memory")

    monkeypatch.setattr(onnxruntime, "InferenceSession", fails)
    with pytest.raises(BackendError, match=r"CUDAExecutionProvider \(CUDA failure 2: out of memory\)"):
        OrtBackend(voice, "cuda", None, {"gpu_mem_limit": 1})


def test_what_onnx_runtime_raises_is_the_voice_s_fault_or_the_gpu_s(voice: Voice) -> None:
    backend = OrtBackend(voice, "cpu", 1, {})
    wrong = np.zeros((1, 20, MELS + 1), np.float32)
    with pytest.raises(VoiceError, match=r"(?s)cannot run the voice's graphs \(.*Got: 129 Expected: 128"):
        backend.vocode(wrong, 0)
    backend.name = "cuda"
    with pytest.raises(BackendError, match=r"(?s)failed on the GPU \(.*Got: 129 Expected: 128"):
        backend.vocode(wrong, 0)
