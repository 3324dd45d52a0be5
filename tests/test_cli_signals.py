"""Signals end each command: nothing half-written, and the exit code that shells give."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from command import STOPPED, command, start, wait_until

from notewave.cli.signals import ending_on_signals
from notewave.export.plans.build import build_plans
from notewave.voice.folder import Voice

SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


@pytest.mark.parametrize(("number", "code"), SIGNALS.items())
def test_a_rendering_that_is_stopped_leaves_the_old_file(
    vocoded_voice: Path, midi_folder: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    out = tmp_path / "song.wav"
    out.write_text("what was here before")
    words = ["render", midi_folder / "piano_scale.mid", "-o", out, "--voice", vocoded_voice, "--steps", "1000"]
    with start(*words, "--sampler", "ddpm") as process:
        wait_until(process, lambda: len(list(tmp_path.iterdir())) > 1)  # its temporary file is there
        for _ in range(3):  # those that follow do not break into what the first began
            process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (code, STOPPED)
    assert [path.name for path in tmp_path.iterdir()] == ["song.wav"]
    assert out.read_text() == "what was here before"


@pytest.mark.parametrize(("number", "code"), SIGNALS.items())
def test_an_export_that_is_stopped_leaves_the_old_voice(tmp_path: Path, number: signal.Signals, code: int) -> None:
    out = tmp_path / "voice"
    with start("export", "--random", "small", "--out", out) as process:
        wait_until(process, lambda: any(tmp_path.iterdir()))
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (code, STOPPED)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("number", "code"), SIGNALS.items())
@pytest.mark.parametrize("delay_s", [0.0, 0.4])
def test_a_build_that_is_stopped_leaves_no_plans(
    tmp_path: Path, delay_s: float, number: signal.Signals, code: int
) -> None:
    pytest.importorskip("tensorrt_rtx")
    words = ["build", "band", "--compute-capability", "8.9", "--flavour", "tensorrt_rtx"]
    with start(*words, env={"NOTEWAVE_PLANS": str(tmp_path)}) as process:
        wait_until(process, lambda: any(tmp_path.iterdir()))
        time.sleep(delay_s)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (code, STOPPED)
    assert not list(tmp_path.iterdir())


def test_what_tensorrt_s_callbacks_raise_is_raised_in_the_end(
    vocoded_voice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its log is written by Python code of Polygraphy's, whose errors no frame of C++ lets through."""
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setenv("POLYGRAPHY_USE_TENSORRT_RTX", "1")  # it reads this when it is first imported
    from polygraphy.logger import G_LOGGER

    monkeypatch.setenv("NOTEWAVE_PLANS", str(tmp_path))
    for method in ("verbose", "extra_verbose", "super_verbose"):
        monkeypatch.setattr(G_LOGGER, method, lambda *words, **more: os.kill(os.getpid(), signal.SIGINT))
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        build_plans(Voice.load(vocoded_voice), "fp16", (8, 9), flavour="tensorrt_rtx")
    assert signal.getsignal(signal.SIGINT) is before
    assert not list(tmp_path.iterdir())


def test_a_second_signal_does_not_break_into_what_the_first_began() -> None:
    """Not even where another error came of it, as a clean-up may raise."""
    with ending_on_signals(for_good=False) as ending, pytest.raises(ZeroDivisionError):
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            try:
                1 / 0  # noqa: B018
            except ZeroDivisionError:
                signal.raise_signal(signal.SIGHUP)
                raise
    assert ending.given == [signal.SIGTERM, signal.SIGHUP]


def test_a_command_in_another_thread_leaves_signals_alone() -> None:
    def run() -> None:
        with ending_on_signals(for_good=True):
            seen.append(signal.getsignal(signal.SIGTERM))

    seen: list[object] = []
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]


def test_a_signal_that_an_import_swallows_ends_the_command(tmp_path: Path) -> None:
    """As those of C do, which raise ImportError in its place."""
    (tmp_path / "onnxruntime.py").write_text(
        "import os, signal\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "except KeyboardInterrupt as error:\n"
        "    raise ImportError('initialization failed') from error\n"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    song = Path(__file__).parents[1] / "engine" / "bundled" / "songs" / "demo.mid"
    code, out, errors = command("render", song, "-o", tmp_path / "a.wav", env={"PYTHONPATH": path})
    assert (code, out, errors) == (143, b"", STOPPED)


def test_a_fifo_that_nobody_reads_is_waited_for_until_a_signal(
    vocoded_voice: Path, midi_folder: Path, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "out.wav")
    for number, code in SIGNALS.items():
        words = ["render", midi_folder / "piano_scale.mid", "-o", tmp_path / "out.wav", "--voice", vocoded_voice]
        with start("-v", *words) as process:
            assert process.stderr is not None
            while process.stderr.readline() != b"notewave: backend auto: cpu\n":  # what it says last before it works
                assert process.poll() is None
            time.sleep(1.0)  # it is opening the FIFO by then
            assert process.poll() is None
            process.send_signal(number)
            _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (code, STOPPED)
    assert [path.is_fifo() for path in tmp_path.iterdir()] == [True]


def test_what_is_ignored_stays_ignored(vocoded_voice: Path, midi_folder: Path, tmp_path: Path) -> None:
    words = ["render", midi_folder / "piano_scale.mid", "-o", tmp_path / "a.wav", "--voice", vocoded_voice]
    ignore = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)}  # as nohup does
    with start(*words, "--steps", "20", **ignore) as process:
        wait_until(process, lambda: any(tmp_path.iterdir()))
        process.send_signal(signal.SIGHUP)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, b"")
