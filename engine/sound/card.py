"""Sound cards, found and played live: sound is asked for just before it is heard. Needs sounddevice."""

from __future__ import annotations

import atexit
import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from notewave.checks import quoted, shown
from notewave.errors import ArgumentError, NotewaveError, ToolError
from notewave.sound.audio import MAX_SAMPLE_RATE
from notewave.sound.mel import FRAME_RATE, SAMPLE_RATE

COMMON_RATES = (48000, 44100, SAMPLE_RATE)  # Hz, tried where the device's own is of no use
STALL_SECONDS = 2.0  # a card that asks for no sound so long has gone
CONNECTED = "Check that it is still connected."


@dataclass(frozen=True)
class Output:
    """A device that plays sound."""

    number: int  # PortAudio's
    name: str  # with that of the system it belongs to: "default, ALSA"
    channels: int  # 1 or 2, all of which mono sound goes to
    own_rate: int  # Hz, that it has by default
    is_default: bool


class LiveCard:
    """Plays on a device what is read, block by block, in PortAudio's thread; a context, whose end stops the sound.

    What fails there is raised by ``check`` and ``wait``; until then silence is heard.
    """

    def __init__(self, output: Output, sample_rate: int, read: Callable[[], NDArray[np.float32]]) -> None:
        """read: gives the next samples [n] in [-1, 1] at sample_rate Hz, at once; n is at least 1.

        Raises ToolError where the device cannot be opened.
        """
        self.output, self.sample_rate = output, sample_rate
        self.gaps = 0  # times that the device had no sound to play
        self._read = read
        self._rest: NDArray[np.float32] = np.empty(0, np.float32)  # what was read last
        self._used = 0  # samples of it that were played
        self._failure: Exception | None = None
        self._failed = threading.Event()
        self._is_open = True
        self._asked_s = time.monotonic()
        self._delay_s = 0.0  # from PortAudio's last call to when its block is heard
        self._stream = open_output(
            output, sample_rate, latency="low", callback=self._fill, finished_callback=self._finish
        )

    @property
    def latency(self) -> float:
        """Seconds from the reading of a sample to its sound, as PortAudio reports them: on JACK only once it plays."""
        return max(float(self._stream.latency), self._delay_s)

    def __enter__(self) -> LiveCard:
        self._asked_s = time.monotonic()
        try:
            self._stream.start()
        except Exception as error:  # PortAudio's
            self._stream.close()
            raise ToolError(
                f"Sound cannot be played: {shown(self.output.name)} does not start ({error}). {CONNECTED}"
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_open = False
        is_well = kind is None and self._failure is None
        closing = threading.Thread(target=self._close, args=(is_well,), name="notewave card", daemon=True)
        closing.start()
        closing.join(STALL_SECONDS)
        if closing.is_alive():  # PortAudio waits for a device that has gone, and would once more as the process ends
            atexit.unregister(getattr(load_sounddevice(), "_exit_handler", None))  # type: ignore[arg-type]

    def wait(self, seconds: float) -> None:
        """Let sound play for so long. Raises as ``check``, as soon as there is something to raise."""
        self._failed.wait(seconds)
        self.check()

    def check(self) -> None:
        """Raise ToolError where the sound stopped: what was read failed, or the device; NotewaveErrors as they are."""
        if isinstance(self._failure, NotewaveError):
            raise self._failure
        if self._failure is not None:
            raise ToolError(
                f"The sound stopped: making it failed ({type(self._failure).__name__}: {self._failure}). Begin anew."
            ) from self._failure
        if self._failed.is_set():
            raise ToolError(f"The sound stopped: {shown(self.output.name)} ended it. {CONNECTED}")
        if time.monotonic() - self._asked_s > STALL_SECONDS:
            raise ToolError(
                f"The sound stopped: {shown(self.output.name)} asked for none for {STALL_SECONDS:g} s. {CONNECTED}"
            )

    def _fill(self, out: NDArray[np.float32], frames: int, clock: Any, status: Any) -> None:
        """PortAudio's call for the next frames [frames, channels]. Nothing may leave it but sound."""
        self._asked_s = time.monotonic()
        self.gaps += bool(status.output_underflow)
        self._delay_s = min(max(clock.outputBufferDacTime - clock.currentTime, 0.0), STALL_SECONDS)
        filled = 0
        if self._failure is None:
            try:
                while filled < frames:
                    filled += self._copy(out[filled:])
            except Exception as error:
                self._failure = error
                self._failed.set()
        out[filled:] = 0.0

    def _copy(self, out: NDArray[np.float32]) -> int:
        """Fill out [n, channels] as far as what is at hand goes; how far that is."""
        if self._used == len(self._rest):
            self._rest, self._used = self._read(), 0
            if not len(self._rest):
                raise ValueError("no samples")
        count = min(len(out), len(self._rest) - self._used)
        out[:count] = self._rest[self._used : self._used + count, None]
        self._used += count
        return count

    def _close(self, is_well: bool) -> None:
        with contextlib.suppress(Exception):  # PortAudio's, of a device that has gone: it was told, or is of no use
            if is_well:
                self._stream.stop()  # waits until the last block is heard
            else:
                self._stream.abort()
        with contextlib.suppress(Exception):
            self._stream.close()

    def _finish(self) -> None:
        """PortAudio's call when the stream has ended, by whomever."""
        if self._is_open:
            self._failed.set()


def sound_devices() -> list[Output]:
    """All devices that play sound. Raises ToolError where sounddevice or PortAudio is missing."""
    sounddevice = load_sounddevice()
    systems = [system["name"] for system in sounddevice.query_hostapis()]
    default = _default(sounddevice)
    return [
        Output(
            device["index"],
            f"{device['name']}, {systems[device['hostapi']]}",
            min(device["max_output_channels"], 2),
            round(device["default_samplerate"]),
            device["index"] == default,
        )
        for device in sounddevice.query_devices()
        if device["max_output_channels"] > 0
    ]


def find_output(wanted: str | None) -> Output:
    """The device of a name, a part of one or a number; None is the default one.

    Raises ArgumentError where there is none such, ToolError where there is none at all.
    """
    outputs = {output.number: output for output in sound_devices()}
    if not outputs:
        raise ToolError("Sound cannot be played: there is no sound card. Connect one, or start the system's sound.")
    if wanted is None:
        return next((output for output in outputs.values() if output.is_default), next(iter(outputs.values())))
    return outputs[pick(wanted, {number: output.name for number, output in outputs.items()}, "sound card")]


def pick(wanted: str, names: Mapping[int, str], what: str) -> int:
    """The number of what is wanted: given by it, by a name, whole or up to its comma, or by a part that one name has.

    Raises ArgumentError, which says the names, where none or several are meant.
    """
    if wanted.isascii() and wanted.isdigit() and len(wanted) < 9 and int(wanted) in names:
        return int(wanted)
    part = wanted.casefold()
    rules: tuple[Callable[[str], bool], ...] = (
        lambda name: name == wanted,
        lambda name: name.rpartition(", ")[0] == wanted,
        lambda name: part in name.casefold(),
    )
    for rule in rules:
        meant = [number for number, name in names.items() if rule(name)]
        if len(meant) == 1:
            return meant[0]
        if meant:
            break
    listed = "; ".join(f"{number} {shown(names[number])}" for number in (meant or names))
    fact = f"{quoted(wanted)} is {len(meant)} {what}s" if meant else f"there is no {what} {quoted(wanted)}"
    raise ArgumentError(f"{fact}. Name one of these by its number or name: {listed}.")


def live_rate(output: Output) -> int:
    """The rate in Hz for live sound on a device: its own, if that is a multiple of FRAME_RATE, or a common one.

    Raises ToolError where it takes none of them.
    """
    for rate in (output.own_rate, *COMMON_RATES):
        if rate % FRAME_RATE == 0 and 0 < rate <= MAX_SAMPLE_RATE and takes(output, rate):
            return rate
    rates = ", ".join(map(str, COMMON_RATES))
    raise ToolError(
        f"Sound cannot be played: {shown(output.name)} takes none of the rates {rates} Hz. Name another sound card."
    )


def takes(output: Output, sample_rate: int, channels: int | None = None) -> bool:
    """Whether a device plays sound of a rate in Hz, on as many channels as it is played on live or on others."""
    sounddevice = load_sounddevice()
    try:
        sounddevice.check_output_settings(output.number, channels or output.channels, "float32", samplerate=sample_rate)
    except (sounddevice.PortAudioError, ValueError):
        return False
    return True


def open_output(output: Output | None, sample_rate: int, channels: int | None = None, **options: Any) -> Any:
    """A device, by default the system's default, as a ``sounddevice.OutputStream`` of float32.

    channels: those of the device, or others. options: more of the stream's. Raises ToolError.
    """
    sounddevice = load_sounddevice()
    count = channels or (output.channels if output else 1)
    try:
        return sounddevice.OutputStream(
            sample_rate, device=output and output.number, channels=count, dtype="float32", **options
        )
    except (sounddevice.PortAudioError, ValueError) as error:
        if output is None:
            who, cure = "no sound card takes", "Connect one, or try 44100 or 48000 Hz."
        else:
            who, cure = f"{shown(output.name)} does not take", "Try 44100 or 48000 Hz, or name another sound card."
        kind = "mono sound" if count == 1 else "sound"
        raise ToolError(f"Sound cannot be played: {who} {kind} of {sample_rate} Hz ({error}). {cure}") from error


def load_sounddevice() -> Any:
    """The package sounddevice. Raises ToolError where it or PortAudio is missing."""
    try:
        import sounddevice
    except ImportError as error:
        raise ToolError(
            "Sound cannot be played: the package sounddevice is not installed. Install notewave[live]."
        ) from error
    except Exception as error:  # OSError without PortAudio; its own, whose type cannot be had, where it does not start
        raise ToolError(
            f"Sound cannot be played: sounddevice needs PortAudio, which does not load ({error}). Install it "
            "(Debian: apt install libportaudio2)."
        ) from error
    return sounddevice


def _default(sounddevice: Any) -> int:
    """The number of the device that plays by default, -1 where there is none."""
    try:
        return int(sounddevice.query_devices(kind="output")["index"])
    except (sounddevice.PortAudioError, ValueError):
        return -1
