"""A denoising step by every side of ``notewave bench peer --gpu``: on the CPU, our engine on the simulated GPU."""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bench_command import parse
from simulated_device import SimulatedDevice, Stream
from simulated_onnxruntime import SimulatedOnnxRuntime

from notewave.backends.gpu.backend import GpuBackend
from notewave.backends.ort import providers
from notewave.backends.ort.executors import open_cuda
from notewave.benchmarks import peer, peer_gpu
from notewave.benchmarks.peer_gpu import Entry
from notewave.benchmarks.report import Result, Spread
from notewave.errors import ArgumentError, BackendError, ToolError
from notewave.voice.folder import Voice

torch = pytest.importorskip("torch")

from notewave.benchmarks import gpu_sides  # noqa: E402
from notewave.benchmarks.gpu_sides import Ready, Step  # noqa: E402

DATA = Path(__file__).parent / "data"
TOKENS, BUCKET, FRAMES = 60, 256, 256
ENGINE = [f"notewave cuda, {way}" for way in ("eager", "captured")]
COMPILED = [f"PyTorch {name}, compiled, captured" for name in ("autocast", "float16")]
PYTORCH = [f"PyTorch {name}, {way}" for name in ("autocast", "float16") for way in ("eager", "captured")] + COMPILED
ALONE = ["its products alone, captured", "an empty kernel, captured"]


class HostMeter:
    """Times on the CPU, and calls again where a GPU would launch a graph."""

    device, runtime = "cpu", "no CUDA"

    def seconds(self, call: Callable[[], object], repeats: int, stream: Stream | None = None) -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        if stream is not None:
            stream.synchronize()
        return (time.perf_counter() - start) / repeats

    def graph(self, call: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
        kept = call().clone()
        return lambda: kept.copy_(call()), kept


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few calls, and what torch.compile traces run as it is."""
    monkeypatch.setattr(peer_gpu, "FEWEST", 1)
    monkeypatch.setattr(peer_gpu, "ROUND_S", 0.0)
    monkeypatch.setattr(gpu_sides, "EMPTY_KERNELS", 5)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plans")


@pytest.fixture
def gpu(plans: Path, monkeypatch: pytest.MonkeyPatch) -> SimulatedDevice:
    """A simulated GPU with ONNX Runtime and no TensorRT."""
    device = SimulatedDevice()
    monkeypatch.setenv("NOTEWAVE_PLANS", str(plans))
    monkeypatch.setattr(providers, "_installed", lambda: {"onnxruntime-gpu": "1.31.1"})

    def open_backend(name: str, voice: Voice, threads: None, options: dict[str, Any]) -> GpuBackend:
        if name != "cuda":
            raise BackendError("TensorRT is not installed.")
        return open_cuda(voice, options, device=device, runtime=SimulatedOnnxRuntime(device))

    monkeypatch.setattr(peer_gpu, "open_backend", open_backend)
    return device


@pytest.fixture(scope="module")
def restored(reference_voice: Path) -> Any:
    return peer_gpu.restored_decoder(Voice.load(reference_voice))


@pytest.fixture
def decoder(restored: Any) -> Any:
    """The voice's, to be spoiled: the engine takes the voice's own."""
    return copy.deepcopy(restored)


def measured(voice: Path, decoder: Any) -> dict[str, dict[str, Spread]]:
    """Figures by side of two songs in two rounds."""
    loaded = Voice.load(voice)
    step = Step.of(decoder, loaded.dimensions, TOKENS, 2)
    with contextlib.ExitStack() as stack:
        left_out = peer_gpu.LeftOut()
        engines = peer_gpu.open_engines(loaded, stack, left_out)
        found = peer_gpu.measure(engines, decoder, step, 2, HostMeter(), left_out)
    return {str(case.settings["side"]): case.figures for case in found}


def test_every_side_makes_the_step(
    gpu: SimulatedDevice,
    reference_voice: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(peer_gpu, "cuda_meter", HostMeter)
    asked = ["--checkpoint", str(reference_voice), "--tokens", str(TOKENS), "--batch", "1", "2", "--repeat", "2"]
    options = parse("peer", "--gpu", *asked, "--json", str(tmp_path / "g.json"), "--plot", str(tmp_path / "g.png"))
    with caplog.at_level(logging.INFO):
        options.run(options)
    assert all(any(line.startswith(f"{name}: ") for line in caplog.messages) for name in (*ENGINE, *PYTORCH, *ALONE))
    result = Result.load(tmp_path / "g.json")
    assert result.machine["PyTorch"] == "for no CUDA" and [*result.voices] == ["reference fp32"]
    assert [(case.settings["batch"], case.settings["side"]) for case in result.cases] == [
        (batch, name)
        for batch in (1, 2)
        for name in [*ENGINE, *PYTORCH[:2], COMPILED[0], *PYTORCH[2:4], COMPILED[1], *ALONE]
    ]
    for case in result.cases:
        name, figures = case.settings["side"], case.figures
        assert figures["launch_s" if name == ALONE[1] else "step_s"].repeats == 2, name
        if name not in ALONE:
            assert 0 < figures["relative_error"].median < 2e-2, name
            assert case.settings["keys"] == (BUCKET if name in ENGINE else TOKENS) + FRAMES
        assert ("launches" in figures) == (name == ENGINE[1])
        assert ("speedup_over_pytorch" in figures) == (name != ALONE[1])
    assert (line := "notewave tensorrt is left out: BackendError: TensorRT is not installed.") in caplog.text
    assert caplog.text.count("left out") == 1
    printed = capsys.readouterr().out
    assert "speedup over pytorch" in printed and printed.splitlines()[-1] == line
    assert (tmp_path / "g.png").read_bytes().startswith(b"\x89PNG")
    assert not gpu.memories and not gpu.leaked and not gpu.freed_early and not gpu.streams, "all was given back"


@pytest.mark.usefixtures("gpu")
def test_a_wrong_step_is_noticed(reference_voice: Path, decoder: Any, caplog: pytest.LogCaptureFixture) -> None:
    decoder.output.weight.mul_(-1.0)
    found = measured(reference_voice, decoder)
    assert all(found[name]["relative_error"].median > 1.5 for name in ENGINE)
    assert all(found[name]["relative_error"].median < 2e-2 for name in PYTORCH)
    assert caplog.text.count("its time means nothing") == len(ENGINE)


@pytest.mark.usefixtures("gpu")
def test_numbers_beyond_float16_are_named_and_left_out(
    reference_voice: Path, decoder: Any, caplog: pytest.LogCaptureFixture
) -> None:
    decoder.output.weight.mul_(1e8)
    found = measured(reference_voice, decoder)
    assert found.keys() == {*ENGINE, *ALONE}
    for name in PYTORCH:
        assert f"{name}, batch 2 is left out: ToolError: it predicts what are no numbers" in caplog.text


@pytest.mark.usefixtures("gpu")
def test_a_side_that_fails_leaves_the_rest(
    reference_voice: Path, decoder: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler\nwas found")

    seconds, rounds = HostMeter.seconds, []

    def failing_late(meter: HostMeter, call: Callable[[], object], repeats: int, stream: Stream | None = None) -> float:
        rounds.append(stream)
        if (
            stream is not None and rounds.count(stream) > 5
        ):  # in the rounds: both of the engine's sides were called twice before
            raise RuntimeError("the GPU is lost")
        return seconds(meter, call, repeats, stream)

    monkeypatch.setattr(torch, "compile", fails)
    monkeypatch.setattr(HostMeter, "seconds", failing_late)
    found = measured(reference_voice, decoder)
    assert found.keys() == {*PYTORCH, *ALONE} - {*COMPILED}
    for name in COMPILED:
        assert f"{name}, batch 2 is left out: RuntimeError: no compiler was found" in caplog.text
    for name in ENGINE:
        assert f"{name}, batch 2 is left out: RuntimeError: the GPU is lost" in caplog.text


def test_the_ratio_is_to_the_fastest_of_pytorch_that_is_right() -> None:
    def entry(seconds: list[float], error: float | None = 0.0, **given: Any) -> Entry:
        return Entry(Ready(lambda: None, **given), 1, 0.5, error, seconds)

    entries = {
        "ours": entry([1.0, 2.0], launches=7),
        "slow": entry([4.0, 9.0], pytorch=True),
        "fast": entry([2.0, 8.0], pytorch=True),
        "wrong": entry([0.1, 0.1], 0.5, pytorch=True),
        "launch": entry([1e-6, 1e-6], None, figure="launch_s"),
    }
    found = {case.settings["side"]: case for case in peer_gpu.cases(entries, 4)}
    assert found["ours"].figures["speedup_over_pytorch"] == Spread.of([2.0, 4.0])
    assert found["fast"].figures["speedup_over_pytorch"] == Spread(1, 1, 1, 2)
    assert found["ours"].figures["launches"] == Spread(7, 7, 7, 1)
    assert found["launch"].figures.keys() == {"launch_s", "ready_s"}
    alone = peer_gpu.cases({"ours": entries["ours"], "wrong": entries["wrong"]}, 4)
    assert not any("speedup_over_pytorch" in case.figures for case in alone)


def test_no_engine_is_an_error_with_each_reason(reference_voice: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, *_: object) -> None:
        raise BackendError(f"there is no {name}, for a test.")

    monkeypatch.setattr(peer_gpu, "open_backend", refuse)
    with contextlib.ExitStack() as stack, pytest.raises(BackendError, match=r"there is no tensorrt.* there is no cuda"):
        peer_gpu.open_engines(Voice.load(reference_voice), stack, peer_gpu.LeftOut())


@pytest.mark.usefixtures("gpu")
def test_where_no_side_runs_there_is_no_table(reference_voice: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(HostMeter):
        def seconds(self, *_: object) -> float:
            raise RuntimeError("the GPU is lost")

    monkeypatch.setattr(peer_gpu, "cuda_meter", Broken)
    options = parse("peer", "--gpu", "--checkpoint", str(reference_voice), "--tokens", str(TOKENS), "--batch", "1")
    with pytest.raises(
        ToolError, match=r"no side made a step\..* empty kernel, captured, batch 1 is left out: Runtime"
    ):
        options.run(options)


def test_without_a_gpu_in_pytorch_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    options = parse("peer", "--gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ToolError, match=r"finds no GPU: it is made without CUDA\. Run this on a machine with"):
        options.run(options)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(ToolError, match=r"finds no GPU: CUDA 13\.0 of it sees none here\."):
        options.run(options)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ToolError, match=r"PyTorch does not import .* Install it with CUDA"):
        options.run(options)


def test_counts_that_measure_nothing_are_refused_before_anything_is_made(
    reference_voice: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_gpu, "cuda_meter", HostMeter)
    for option, message in (("--repeat", "0 repeats"), ("--tokens", "0 tokens"), ("--batch", "0 songs side by side")):
        with pytest.raises(ArgumentError, match=message):
            (options := parse("peer", "--gpu", option, "0")).run(options)
    with pytest.raises(ArgumentError, match=r"--tokens is 9999; voice 'reference' takes 2048"):
        (options := parse("peer", "--gpu", "--checkpoint", str(reference_voice), "--tokens", "9999")).run(options)


def test_weights_are_a_voice_s_a_checkpoint_s_or_made(
    reference_voice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[object, ...]] = []

    def export_checkpoint(source: Path | None, out: Path, **options: str) -> Voice:
        made.append((source, out, options))
        out.symlink_to(reference_voice)
        return Voice.load(out)

    monkeypatch.setattr("notewave.export.convert.export_checkpoint", export_checkpoint)
    monkeypatch.setattr(peer_gpu, "exported", lambda *given: given)
    assert peer_gpu.given_voice(reference_voice).folder == reference_voice
    assert peer_gpu.given_voice(Path("band")).name == "band"
    checkpoint = DATA / "reference" / "checkpoint"
    assert peer_gpu.given_voice(checkpoint) == (checkpoint, "fp32")
    for _ in range(2):
        assert peer_gpu.given_voice(tmp_path / "cache" / "base").folder == tmp_path / "cache" / "base-voice"
    assert made == [(None, tmp_path / "cache" / "base-voice", {"random": "base"})], "once"


def test_the_step_without_a_gpu_is_still_the_comparison_with_diffusers() -> None:
    assert parse("peer").run is peer.run and parse("peer", "--gpu").run is peer_gpu.run
    assert parse("peer").batch == [1, 4, 16]
