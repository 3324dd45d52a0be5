"""Plans built by the installed TensorRT-RTX, without a GPU."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from pathlib import Path

import pytest
from default_voice import default_voice
from simulated_device import SimulatedDevice
from simulated_tensorrt import SimulatedTensorRT, SimulatedTensorRTRTX, simulated_plan
from sounding_voice import sounding_voice

from notewave.backends.device.cache import plans_home
from notewave.backends.device.contracts import gpu_contracts
from notewave.backends.device.plans import RECORD, PlanRecord, find_plans, open_plans, target_of
from notewave.backends.graphs import make
from notewave.backends.trt import modules
from notewave.errors import BackendError, VoiceError
from notewave.export.plans.build import build_plans, timing_cache
from notewave.kernels import loader
from notewave.voice.folder import Voice

GENERATIONS = [(7, 5), (8, 0), (8, 9), (12, 0)]


@pytest.fixture(scope="module")
def voice(reference_voice: Path, tmp_path_factory: pytest.TempPathFactory) -> Voice:
    return sounding_voice(reference_voice, tmp_path_factory.mktemp("voices") / "sounding")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NOTEWAVE_PLANS", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("capability", GENERATIONS)
def test_all_plans_of_the_reference_voice_build_for_every_generation(capability: tuple[int, int], voice: Voice) -> None:
    check_built(voice, capability)


@pytest.mark.parametrize("capability", GENERATIONS)
def test_all_plans_of_the_bundled_voice_build_for_every_generation(
    capability: tuple[int, int], vocoded_voice: Path
) -> None:
    check_built(default_voice(Voice.load(vocoded_voice)), capability)


def check_built(voice: Voice, capability: tuple[int, int]) -> None:
    """Build float16 plans with the installed TensorRT-RTX and look at what is there."""
    trt = pytest.importorskip("tensorrt_rtx")
    folder = build_plans(voice, "fp16", capability)
    assert find_plans(voice, trt, capability, None).folder == folder
    content = json.loads((folder / RECORD).read_text())
    networks = ["note_encoder", "context_encoder", "cross_attention", "time_embedding", "decoder"]
    networks += ["vocoder"]
    assert list(content["seconds"]) == networks and set(content["files"]) >= {f"{name}.plan" for name in networks}
    assert min(record["bytes"] for record in content["files"].values()) > 1000
    assert content["target"]["capability"] == "{}.{}".format(*capability)
    assert content["target"]["version"] == trt.__version__
    assert not list(plans_home().glob(".*")), "nothing temporary is left"


def test_voices_of_8_bit_weights_are_refused(voice: Voice, home: Path) -> None:
    integers = dataclasses.replace(voice, precision="int8")
    with pytest.raises(VoiceError, match=r"'reference' holds 8-bit weights, .* --precision fp32 or fp16"):
        build_plans(integers, "fp16", (8, 9), trt=SimulatedTensorRTRTX(SimulatedDevice()), compile_plan=simulated_plan)
    assert not list(home.iterdir())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_other_precisions_build(precision: str, voice: Voice, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr(make, "gpu_contracts", lambda *given: {"decoder": gpu_contracts(*given)["decoder"]})
    folder = build_plans(voice, precision, (8, 9))
    assert (folder / "decoder.plan").stat().st_size > 100_000


def test_a_graph_that_tensorrt_refuses_gives_its_reason(
    voice: Voice, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr("notewave.export.plans.build._Compiler._allow_unfused_attention", lambda *_: None)
    with pytest.raises(
        BackendError, match=r"cannot build a fp32 plan for compute capability 8\.9: .*Attention.*not supported"
    ):
        build_plans(voice, "fp32", (8, 9))
    assert not list(home.iterdir()), "nothing half-built is left"


def test_what_cannot_be_built_is_refused_with_a_cure(voice: Voice) -> None:
    trt = SimulatedTensorRTRTX(SimulatedDevice())
    for precision, capability, message in (
        ("fp8", (8, 9), r"no plan precision 'fp8'.*fp16, bf16, fp32"),
        ("bf16", (7, 5), r"builds no bf16 plans for compute capability 7\.5 \(Turing\)\. Ask for --precision fp16\."),
        ("fp16", (9, 0), r"does not build for compute capability 9\.0; it knows 7\.5, 8\.9.*notewave\[gpu\]"),
    ):
        with pytest.raises(BackendError, match=message):
            build_plans(voice, precision, capability, trt=trt, compile_plan=simulated_plan)


def test_without_a_gpu_the_capability_must_be_named(voice: Voice) -> None:
    pytest.importorskip("tensorrt_rtx")
    try:
        import pycuda.driver  # noqa: F401
    except ImportError:
        with pytest.raises(BackendError, match=r"PyCUDA .*--compute-capability 8\.9"):
            build_plans(voice)
    else:
        pytest.skip("there may be a GPU here")


def test_tensorrt_builds_only_for_the_gpu_at_hand(voice: Voice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("notewave.export.plans.build._local_capability", lambda: (8, 6))
    trt = SimulatedTensorRT(SimulatedDevice())
    with pytest.raises(BackendError, match=r"builds only for the GPU of this machine.*not of compute capability 8\.9"):
        build_plans(voice, "fp16", (8, 9), trt=trt, compile_plan=simulated_plan)
    assert build_plans(voice, "fp16", trt=trt, compile_plan=simulated_plan).name.endswith("tensorrt-11.0.0-sm86-fp16")


def test_of_two_tensorrts_the_one_that_can_builds_unless_one_is_named(
    voice: Voice, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = SimulatedDevice()
    installed = {"tensorrt": SimulatedTensorRT(device), "tensorrt_rtx": SimulatedTensorRTRTX(device)}
    for name, trt in installed.items():
        trt.Builder = object
        monkeypatch.setitem(sys.modules, name, trt)
    monkeypatch.setattr("notewave.export.plans.build._local_capability", lambda: (7, 5))

    def built(precision: str, capability: tuple[int, int] | None, flavour: str | None = None) -> str:
        folder = build_plans(voice, precision, capability, flavour=flavour, compile_plan=simulated_plan)
        return PlanRecord.load(folder).target.flavour

    assert built("fp16", (8, 9)) == "tensorrt_rtx", "TensorRT builds only for the GPU here"
    assert built("fp32", None) == "tensorrt", "TensorRT-RTX builds no fp32 for Turing"
    assert [built("fp16", None, flavour) for flavour in (None, *installed)] == ["tensorrt", *installed]
    with pytest.raises(BackendError, match=r"tensorrt builds only for the GPU .*tensorrt_rtx 1\.7.* capability 9\.0"):
        built("fp16", (9, 0))
    with pytest.raises(BackendError, match=r"^tensorrt builds only for the GPU of this machine((?!rtx 1).)*$"):
        built("fp16", (8, 9), "tensorrt")


def test_a_new_build_leaves_no_kernels_of_an_older_source(voice: Voice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("notewave.backends.graphs.make.compile_kernels", lambda _: b"a cubin")
    trt, source, names = SimulatedTensorRTRTX(SimulatedDevice()), loader.source, []
    for change in ("", "// changed"):
        monkeypatch.setattr(loader, "source", lambda name=loader.SOURCE, change=change: source(name) + change)
        folder = build_plans(voice, "fp16", (8, 9), trt=trt, compile_plan=simulated_plan)
        open_plans(folder, target_of(voice, trt, (8, 9), "fp16"), voice)
        names.append([path.name for path in folder.glob("*.cubin")])
    assert len(names[0]) == len(names[1]) == 1 and names[0] != names[1]


def test_kernels_that_cannot_be_compiled_are_left_to_the_gpu_s_machine(
    voice: Voice, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(capability: tuple[int, int]) -> bytes:
        raise BackendError("neither NVRTC nor nvcc is here")

    monkeypatch.setattr("notewave.backends.graphs.make.compile_kernels", fails)
    trt = SimulatedTensorRTRTX(SimulatedDevice())
    with caplog.at_level(logging.INFO):
        folder = build_plans(voice, "fp16", (8, 9), trt=trt, compile_plan=simulated_plan)
    assert "left to be compiled on the GPU's machine: neither NVRTC nor nvcc is here" in caplog.text
    assert not list(folder.glob("*.cubin"))
    open_plans(folder, target_of(voice, trt, (8, 9), "fp16"), voice)


def test_a_build_that_fails_leaves_older_plans_alone(voice: Voice) -> None:
    trt = SimulatedTensorRTRTX(SimulatedDevice())
    folder = build_plans(voice, "fp16", (8, 9), trt=trt, compile_plan=simulated_plan)
    target = target_of(voice, trt, (8, 9), "fp16")
    open_plans(folder, target, voice)

    def fails(*_: object) -> bytes:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_plans(voice, "fp16", (8, 9), trt=trt, compile_plan=fails)
    open_plans(folder, target, voice)


def test_tensorrt_itself_builds_float32_for_turing_too(voice: Voice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("notewave.export.plans.build._local_capability", lambda: (7, 5))
    trt, built = SimulatedTensorRT(SimulatedDevice()), []

    def compile_plan(graph: bytes, shapes: object, precision: str) -> bytes:
        built.append(precision)
        return graph

    for precision in ("fp32", "fp16"):
        build_plans(voice, precision, trt=trt, compile_plan=compile_plan)
    assert built == ["fp32"] * 6 + ["fp16"] * 5 + ["fp32"], "the vocoder stays in float32"
    with pytest.raises(BackendError, match=r"no bf16 plans .*7\.5 \(Turing\)\. Ask for --precision fp16 or fp32"):
        build_plans(voice, "bf16", trt=trt, compile_plan=compile_plan)


def test_what_was_timed_is_kept_for_one_tensorrt_and_one_gpu(home: Path) -> None:
    trt = SimulatedTensorRT(SimulatedDevice())
    assert timing_cache(trt, (8, 6)) == home / "timing-tensorrt-11.0.0-sm86.cache"
    assert timing_cache(trt, (8, 9)) != timing_cache(trt, (8, 6))
    assert timing_cache(SimulatedTensorRTRTX(SimulatedDevice()), (8, 9)) is None, "it times on the target"


def test_turing_s_vocoder_is_float16_and_elsewhere_float32(voice: Voice, caplog: pytest.LogCaptureFixture) -> None:
    trt = SimulatedTensorRTRTX(SimulatedDevice())
    built: dict[tuple[int, int], list[str]] = {(7, 5): [], (8, 9): []}

    def compile_plan(graph: bytes, shapes: object, precision: str) -> bytes:
        built[capability].append(precision)
        return graph

    with caplog.at_level(logging.INFO):
        for capability in built:
            build_plans(voice, "fp16", capability, trt=trt, compile_plan=compile_plan)
    assert built == {(7, 5): ["fp16"] * 6, (8, 9): ["fp16"] * 5 + ["fp32"]}
    assert "decoder built for compute capability 8.9" in caplog.text


def test_no_tensorrt_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modules, "TENSORRTS", ("tensorrt_of_no_kind",))
    with pytest.raises(BackendError, match=r"TensorRT is not installed .*notewave\[rtx\].*notewave\[gpu\]"):
        modules.tensorrt_modules()
