"""A fuzz target in a process of its own, so that a crash, a hang or a flood of memory is an answer and not the end.

The process serves: it takes an input, runs the target on it, and answers with what came of it. Where it dies instead,
its exit and what faulthandler wrote say the same.
"""

from __future__ import annotations

import faulthandler
import logging
import multiprocessing
import os
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Hashable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

from fuzz_targets import Target, load

ROOT = Path(__file__).parents[1]
MIB = 1 << 20
IN_MEMORY = "/dev/shm"  # where folders are made and removed a hundred times as fast as on a disk, on Linux
TEXT = 20_000  # characters kept of a traceback
ADDRESSES = 16  # so many times the memory: what is asked for and not used costs nothing
POLL = 0.05  # seconds between two looks at a worker's memory
START = 300.0  # seconds that a worker may take to import and prepare its target, on a busy machine


@dataclass(frozen=True)
class Limits:
    """What one input may cost."""

    seconds: float = 10.0  # of processor time
    wall_seconds: float = 60.0  # on the clock: of waiting, where the processor does nothing
    memory: int = 1536 * MIB  # bytes that a worker's memory may grow beyond what its target takes when ready


@dataclass(frozen=True)
class Outcome:
    """What came of one input."""

    finding: str  # kind of finding ("error", "crash", "hang", "memory"), or nothing
    ending: Hashable  # how it ended: of errors where they were raised; tells findings, and new ground, apart
    text: str  # the traceback of a finding
    seconds: float  # of processor time
    memory: int  # the most that the worker's memory grew up to now, bytes


@dataclass(frozen=True)
class Ready:
    """What a worker says first."""

    corpus: list[bytes]
    words: tuple[bytes, ...]


class Worker:
    """A target's process, started again whenever it died."""

    def __init__(self, name: str, limits: Limits) -> None:
        self._name, self._limits = name, limits
        self._process: Any = None
        place = IN_MEMORY if os.access(IN_MEMORY, os.W_OK) else None
        self._folder = tempfile.TemporaryDirectory(prefix="notewave-fuzz-", dir=place)
        self._errors = Path(self._folder.name) / "stderr"

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()
        self._folder.cleanup()

    def start(self) -> Ready:
        """Start the process anew; what its target begins with. Raises RuntimeError where it cannot be prepared."""
        self._stop()
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        scratch = Path(self._folder.name) / "scratch"
        arguments = (theirs, self._name, self._limits, self._errors, scratch)
        self._process = context.Process(target=serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        try:
            ready: Ready = self._connection.recv() if self._connection.poll(START) else None
        except EOFError:
            ready = None
        if ready is None:
            self._stop()
            raise RuntimeError(f"target {self._name} cannot be prepared:\n{self._stderr()}")
        self._base = _resident(self._process.pid)
        return ready

    def run(self, content: bytes) -> Outcome:
        """What comes of an input."""
        if self._process is None:
            self.start()
        flood, begin = False, time.monotonic()
        try:
            self._connection.send_bytes(content)
            while not self._connection.poll(POLL):
                if _resident(self._process.pid) - self._base > self._limits.memory:
                    flood = True
                    self._process.kill()
                elif time.monotonic() - begin > self._limits.wall_seconds:
                    os.kill(self._process.pid, signal.SIGPROF)
            outcome: Outcome = self._connection.recv()
        except (EOFError, ConnectionError):
            return self._autopsy(flood)
        if outcome.finding == "memory":
            self._stop()  # its memory may stay as large
        return outcome

    def _autopsy(self, flood: bool) -> Outcome:
        self._process.join()
        code, text = self._process.exitcode, self._stderr()
        self._process = None
        if flood:
            return Outcome(
                "memory", "memory", "killed when its memory had grown over the limit", 0.0, self._limits.memory
            )
        if code == -signal.SIGPROF:
            return Outcome("hang", ("hang", *_functions(text)[:1]), text, self._limits.seconds, 0)
        name = signal.Signals(-code).name if code < 0 else f"exit {code}"
        return Outcome("crash", (name, *_functions(text)[:2]), f"{name}\n{text}", 0.0, 0)

    def _stderr(self) -> str:
        return self._errors.read_text(errors="replace")[-TEXT:] if self._errors.exists() else ""

    def _stop(self) -> None:
        if self._process is not None:
            self._connection.close()
            self._process.kill()
            self._process.join()
            self._process = None


def serve(connection: Connection, name: str, limits: Limits, errors: Path, scratch: Path) -> None:
    """The worker's process."""
    descriptor = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to act on
    faulthandler.enable()
    faulthandler.register(signal.SIGPROF, chain=True)  # says where, and dies
    warnings.simplefilter("ignore")
    logging.basicConfig(handlers=[_Formatting()], level=logging.DEBUG)
    scratch.mkdir(exist_ok=True)
    target = load(name, scratch)
    connection.send(Ready(target.corpus(), tuple(target.words)))
    base = _peak()
    _bound_addresses(ADDRESSES * limits.memory)
    while True:
        try:
            content = connection.recv_bytes()
        except EOFError:
            os._exit(0)
        os.ftruncate(descriptor, 0)
        signal.setitimer(signal.ITIMER_PROF, limits.seconds)
        outcome = _run(target, content, base, limits)
        signal.setitimer(signal.ITIMER_PROF, 0)
        connection.send(outcome)


class _Formatting(logging.Handler):
    """Makes every record's message, as a log file would."""

    def emit(self, record: logging.LogRecord) -> None:
        record.getMessage()


def _run(target: Target, content: bytes, base: int, limits: Limits) -> Outcome:
    finding, text, begin = "", "", time.process_time()
    ending: Hashable
    try:
        ending = ("fine", target.run(content))
    except Exception as error:
        ending = _ending(error)
        chain = _chain(error)
        if any(isinstance(link, MemoryError) for link in chain):
            finding, ending = "memory", ("memory", ending)
        elif not isinstance(error, target.expected):
            finding = "error"
        if finding:
            text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
            text = text if len(text) <= TEXT else f"{text[: TEXT // 2]}\n[...]\n{text[-TEXT // 2 :]}"
    seconds, memory = time.process_time() - begin, _peak() - base
    if not finding and memory > limits.memory:
        finding, ending, text = "memory", "memory", f"its memory grew by {memory} bytes"
    return Outcome(finding, ending, text, seconds, memory)


def _chain(error: BaseException) -> list[BaseException]:
    """An error, what it was raised from, what that was raised from, and so on."""
    chain, link = [], error
    while link is not None and link not in chain and len(chain) < 20:
        chain.append(link)
        link = link.__cause__ or link.__context__
    return chain


def _ending(error: BaseException) -> Hashable:
    """The kinds of an error and of its causes, and where each was raised."""
    return tuple((type(link).__name__, *_raised(link)) for link in _chain(error)[:3])


def _raised(error: BaseException) -> tuple[str, ...]:
    """The last lines of code on the way to where an error was raised; of too deep recursion, the file alone."""
    frames: list[str] = []
    link: TracebackType | None = error.__traceback__
    while link is not None:
        frames.append(f"{link.tb_frame.f_code.co_filename}:{link.tb_lineno}")
        link = link.tb_next
    if isinstance(error, RecursionError):
        return (frames[-1].rpartition(":")[0],)
    return tuple(frames[-2:])


def _functions(text: str) -> list[tuple[str, str]]:
    """Functions of our own code that faulthandler names, the innermost first."""
    return re.findall(rf'File "({re.escape(str(ROOT))}.*)", line \d+ in (.*)', text)


def _bound_addresses(more: int) -> None:
    """Let this process have so many more bytes of addresses, so that what asks for far too many fails at once."""
    try:
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return  # a system that does not tell
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + more, most))


def _resident(process: int) -> int:
    """Bytes of memory that a process holds now; 0 where the system does not tell."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, IndexError):
        return 0


def _peak() -> int:
    """Bytes of memory that this process has held at most."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024
