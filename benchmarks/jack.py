"""Note-on to sound on a real clock without hardware: JACK's dummy driver, one client that plays MIDI and records.

For any program that reads JACK MIDI and plays to JACK, itself or through PortAudio. Two clocks are meant here: frames,
which the server counts and every client shares, and the wall's. The dummy driver keeps them together as long as it
and all clients come in time; where they don't, it waits, and the frames fall behind: by how much is in the recording.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from notewave.errors import ArgumentError, ToolError

log = logging.getLogger(__name__)

SHARED_MEMORY = Path("/dev/shm")
PATIENCE_S = 20.0  # for a server, a port or an end that should be there at once, on a busy machine
CLIENT_TIMEOUT_MS = 200  # the server waits ten times that for a client that hangs or was killed, then goes on
LOG_CHARACTERS = 2000  # of a program's log that an error quotes
MAX_PERIOD = 8192  # frames: JACK silently takes this for more
FRAME_COUNTER = 0xFFFFFFFF  # JACK's count of frames wraps around

Event = tuple[float, bytes]  # when it is due (s from the start), one whole MIDI message
Check = Callable[[], None]  # raises ToolError where what is waited for can't come any more

_numbers = itertools.count()


def load_jack() -> Any:
    """The package JACK-Client. Raises ToolError where it, or JACK's library, is missing."""
    try:
        import jack
    except (ImportError, OSError) as error:
        raise ToolError(
            f"JACK cannot be reached: {error}. Install its library and its Python package "
            "(Debian: apt install jackd2; pip install JACK-Client)."
        ) from error
    jack.set_error_function(log.debug)  # else its library writes to stderr while a server is waited for
    jack.set_info_function(log.debug)
    return jack


class Program:
    """A program that runs beside this one, with its log kept. As a context it is ended on leaving, if need be killed.

    Raises ToolError where it is not installed.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], farewell_s: float = 0.0) -> None:
        """``farewell_s``: how long it may take to end by itself when its input ends. ``environment``: beside ours."""
        self.command, self._farewell_s = [*command], farewell_s
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed by close()
        try:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,  # kept open: some programs end with their input
                stdout=self._log,
                stderr=subprocess.STDOUT,
                env=os.environ | dict(environment),
            )
        except OSError as error:
            self._log.close()
            raise ToolError(f"{self.command[0]} does not start: {error}. Install it, or name another.") from error

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def log(self) -> str:
        """The end of what it wrote to stdout and stderr."""
        self._log.flush()
        size = os.fstat(self._log.fileno()).st_size
        text = os.pread(self._log.fileno(), LOG_CHARACTERS, max(0, size - LOG_CHARACTERS))
        return text.decode(errors="replace").strip() or "(nothing)"

    def check(self) -> None:
        """Raise ToolError, with its log, where it has ended."""
        status = self._process.poll()
        if status is not None:
            raise ToolError(
                f"{' '.join(self.command)} ended early, with status {status}. Its log ends with:\n{self.log()}"
            )

    def close(self) -> int:
        """End it: with its input, as the user does with Ctrl-C, by force. Its status, below 0 after force."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        if not self._ended(self._farewell_s):
            self._process.send_signal(signal.SIGINT)
            if not self._ended(PATIENCE_S):
                self._process.kill()
        self._log.close()
        return self._process.wait()

    def _ended(self, patience: float) -> bool:
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            return False
        return True


class JackServer:
    """A JACK server of its own name on the dummy driver, as a context; several may run side by side.

    It runs without realtime scheduling, and synchronously: a cycle ends when every client has answered, so no client
    loses frames to another that is late. On leaving, nothing of it is left in shared memory. Raises ToolError where
    jackd is missing or does not start.
    """

    def __init__(self, rate: int = 48000, period: int = 256, heir_of: str = "") -> None:
        """``rate`` in Hz, ``period`` in frames: below 5 ms a busy machine's clock falls behind by some percent.

        ``heir_of``: the name of a server that was killed, to clean up after it.
        """
        if rate <= 0 or not 1 <= period <= MAX_PERIOD:
            raise ArgumentError(f"JACK has no {rate} Hz with periods of {period} frames: ask for 1 to {MAX_PERIOD}.")
        self.rate, self.period = rate, period
        self._heir, self.name = bool(heir_of), heir_of or f"notewave-{os.getpid()}-{next(_numbers)}"
        self.environment = {"JACK_DEFAULT_SERVER": self.name, "JACK_NO_START_SERVER": "1"}  # of programs to reach it
        self._program: Program | None = None

    def __enter__(self) -> JackServer:
        jack = load_jack()
        command = ["jackd", "--name", self.name, "--no-realtime", "--sync", "--timeout", str(CLIENT_TIMEOUT_MS)]
        command += ["-d", "dummy", "--rate", str(self.rate), "--period", str(self.period)]
        self._program = Program(command, {})
        try:
            for _ in waiting(lambda: f"the server {self.name}", self.check):
                with contextlib.suppress(jack.JackError):
                    jack.Client("probe", no_start_server=True, servername=self.name).close()
                    return self
            raise AssertionError("waiting() ends with an error")
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    def check(self) -> None:
        """Raise ToolError, with the server's log, where it does not run."""
        if self._program is None:
            raise ToolError("The JACK server was not started, or has ended. Open it with a `with` statement.")
        self._program.check()

    def close(self) -> None:
        """End the server. Does nothing where it has ended."""
        if self._program is None:
            return
        status = self._program.close()
        self._program = None
        for path in SHARED_MEMORY.glob(f"jack_sem.{os.getuid()}_{self.name}_*"):  # of clients that were killed
            path.unlink(missing_ok=True)
        if status < 0 and not self._heir:
            # Its memory, and its place among the eight that JACK has, are freed only by a server of the same name.
            with contextlib.suppress(ToolError), JackServer(self.rate, self.period, self.name):
                pass


def waiting(what: Callable[[], str], check: Check, patience: float = PATIENCE_S) -> Iterator[None]:
    """Ask again and again until the loop is left. Raises what ``check`` raises, and ToolError when time is up."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        check()
        yield
        time.sleep(0.02)
    raise ToolError(f"JACK: not there after {patience:g} s: {what()}. Look at what runs, and how busy the machine is.")


@dataclass(frozen=True)
class Recording:
    """What a program played, and when it was sent what. T frames, C channels, E events, K cycles."""

    audio: NDArray[np.float32]  # [C, T]: column t is what the program wrote for frame t
    rate: int  # Hz
    sent: NDArray[np.int64]  # [E] frame of each event, by time due; later than due only where frames were lost
    xruns: int  # that JACK told of: each a cycle that came late, if only by microseconds
    lost: int  # frames of cycles that never ran; silent in ``audio``
    cycles: NDArray[np.int64]  # [K] first frame of each cycle
    behind: NDArray[np.float64]  # [K] seconds by which the frames had fallen behind the wall's clock: never falls

    def wall_s(self, frame: float) -> float:
        """When the frame was due on the wall's clock, in seconds from the first."""
        cycle = int(np.searchsorted(self.cycles, frame, side="right")) - 1
        return frame / self.rate + float(self.behind[max(0, cycle)])


class Take:
    """A recording while it is made: all room is there from the start."""

    def __init__(self, events: Sequence[Event], seconds: float, rate: int, period: int, channels: int) -> None:
        self.frames, self.rate = round(seconds * rate), rate
        ordered = sorted(events, key=lambda event: event[0])
        self.due, self.messages = [round(when * rate) for when, _ in ordered], [message for _, message in ordered]
        if self.due and not 0 <= self.due[0] <= self.due[-1] < self.frames:
            raise ArgumentError(f"Events are due outside the {seconds:g} s that are recorded. Record for longer.")
        self.sent: list[int] = []
        self.audio = np.zeros((channels, self.frames), np.float32)
        self.clock = np.zeros((self.frames // period + 4, 2))  # first frame of a cycle, and the wall's time (s)
        self.cycles = self.heard = self.xruns = self.start = 0
        self.before: int | None = None
        self.done = False

    def cycle(self, now: int, midi: Any, ports: Sequence[Any], echo: bool) -> None:
        """Send what is due and record. ``echo``: the ports still hold what was played in the cycle before."""
        if not self.cycles:
            self.start = now
        position, frames = (now - self.start) & FRAME_COUNTER, len(ports[0].get_array())
        self.clock[self.cycles] = position, time.monotonic()
        self.cycles += 1
        while len(self.sent) < len(self.due) and self.due[len(self.sent)] < position:
            frame = max(position, self.due[len(self.sent)] + frames)  # a cycle after it is due: see Player.play
            midi.write_midi_event(frame - position, self.messages[len(self.sent)])
            self.sent.append(frame - frames)
        first = self.before if echo else position
        self.before = position
        if first is None:
            return
        count = max(0, min(frames, self.frames - first))
        for channel, port in zip(self.audio, ports, strict=True):
            channel[first : first + count] = port.get_array()[:count]
        self.heard += count
        self.done = first + frames >= self.frames and len(self.sent) == len(self.due)

    def recording(self) -> Recording:
        """What was recorded. Wall times are taken late or in time, never early: the earliest that follow are right."""
        cycles, walls = self.clock[: self.cycles].T
        behind = np.minimum.accumulate((walls - cycles / self.rate)[::-1])[::-1]
        return Recording(
            self.audio,
            self.rate,
            np.array(self.sent, np.int64),
            self.xruns,
            self.frames - self.heard,
            cycles.astype(np.int64),
            behind - behind[0],
        )


class Player:
    """A client that sends MIDI and records in one process callback, so that both share one clock. A context.

    Raises ToolError where the server does not answer.
    """

    def __init__(self, server: JackServer, name: str = "harness") -> None:
        self._server, jack = server, load_jack()
        server.check()
        try:
            self._client = jack.Client(name, no_start_server=True, servername=server.name)
        except jack.JackError as error:
            raise ToolError(f"The JACK server {server.name} takes no client: {error}. Start it anew.") from error
        self._midi = self._client.midi_outports.register("midi")
        self._ports: list[Any] = []
        self._echo = False
        self._take: Take | None = None
        self._failure: Exception | None = None
        self._client.set_process_callback(self._process)
        self._client.set_xrun_callback(self._count_xrun)
        self._client.activate()

    def __enter__(self) -> Player:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(load_jack().JackError):  # of a server that has ended
            self._client.deactivate()
        self._client.close()

    def connect(
        self, midi: str, audio: str, channels: int = 2, check: Check = lambda: None, patience: float = PATIENCE_S
    ) -> None:
        """Connect, once, to the first ports whose names match: a MIDI input, that many audio outputs, waited for (s).

        A client that reads MIDI and plays makes a circle with this one. JACK runs the members of a circle in the order
        of their connections and hands on along the last one a cycle later: here that is the sound, known to be so.
        Raises what ``check`` raises while waiting, and ToolError where ports are missing or the connection fails.
        """
        ports: list[str] = []
        for _ in waiting(lambda: f"MIDI in {midi} and {channels} x audio out {audio} among {ports}", check, patience):
            self._server.check()
            inputs = self._find(midi, is_midi=True, is_input=True)
            outputs = self._find(audio, is_audio=True, is_output=True)
            if inputs and len(outputs) >= channels:
                break
            ports[:] = (port.name for port in self._find(""))
        try:
            own = [self._client.inports.register(f"audio_{channel + 1}") for channel in range(channels)]
            if not self._midi.is_connected_to(inputs[0]):  # by the program itself
                self._client.connect(self._midi, inputs[0])
            for output, port in zip(outputs[:channels], own, strict=True):
                self._client.connect(output, port)
        except load_jack().JackError as error:
            raise ToolError(f"JACK does not connect {inputs[0].name}: {error}. Look whether it still runs.") from error
        self._echo = inputs[0].name.partition(":")[0] == outputs[0].name.partition(":")[0]
        self._ports = own

    def _find(self, pattern: str, **kinds: bool) -> list[Any]:
        return [port for port in self._client.get_ports(**kinds) if re.search(pattern, port.name)]

    def play(self, events: Sequence[Event], seconds: float, check: Check = lambda: None) -> Recording:
        """Send the events, each at its frame, and record that long. Call ``connect`` first.

        JACK tells a program at a cycle's start what falls into the whole cycle. No key can be known before it is
        pressed, so an event goes into the cycle after the one in which it is due, at the same place, as drivers of
        real keyboards do it: a program that plays at the frame it is told comes one period after the event.

        Python's other threads should rest meanwhile. Raises what ``check`` raises while waiting, ArgumentError for
        events outside the recording, and ToolError where the server ends, stands still, or takes no event.
        """
        assert self._ports, "connect() comes first"
        take = Take(events, seconds, self._server.rate, self._server.period, len(self._ports))
        self._take = take
        for _ in waiting(lambda: "the recording's end", check, 2 * seconds + PATIENCE_S):
            self._server.check()
            if self._failure:
                raise ToolError(f"The recording broke off: {self._failure!r}. Send fewer events at once.")
            if take.done:
                return take.recording()
        raise AssertionError("waiting() ends with an error")

    def _process(self, frames: int) -> None:
        try:
            self._midi.clear_buffer()
            if self._take is not None and not self._take.done:
                self._take.cycle(self._client.last_frame_time, self._midi, self._ports, self._echo)
        except Exception as error:  # one that left here would end the client, and its silence would look like truth
            self._failure, self._take = error, None

    def _count_xrun(self, _: float) -> None:
        if self._take is not None:
            self._take.xruns += 1
