"""Workers beside the driver: processes of one parent that has opened the voices, whose memory they share."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait

from notewave.corpus.messages import ASKED, ENDED, Group, Ready, Sung, Trial, Tried, Work
from notewave.corpus.pool import Outcome
from notewave.corpus.takes import Take
from notewave.errors import BackendError

AHEAD = 1  # groups that a worker has beside those it works at: one is there when another is done
SEVERAL = 2  # times as many songs to a group as are sung side by side, so that some are of like length
REPORTED = 2.0  # seconds for the parent to say how a worker ended
STILLBORN = 3  # workers one after another that end before they are ready: then no other will be


@dataclass
class _Worker:
    number: int
    process: int | None = None  # known once it is ready
    together: int = 1
    hands: int = 1
    groups: dict[int, tuple[Take, ...]] = field(default_factory=dict)  # those begun first

    @property
    def group(self) -> int:
        """How many takes it takes at once."""
        return self.together if self.together == 1 else SEVERAL * self.together


class Processes:
    """A pool of worker processes on this machine (see ``notewave.corpus.pool.Pool``); Linux and macOS.

    One parent process opens the voices and forks the workers off, which so share the voices' memory where each sings
    with one thread on a CPU; where they use more, or a GPU, each opens its own. A worker that ends is replaced, and so
    is the parent.
    """

    def __init__(self, work: Work, workers: int = 1) -> None:
        """Raises BackendError where no process can be started."""
        self._work, self._due = work, workers
        self._workers: dict[Connection, _Worker] = {}
        self._ended: dict[int, int] = {}  # how processes ended
        self._left = deque[tuple[Take, ...]]()  # that nobody has begun, of workers that are no more
        self._stillborn, self._groups = 0, 0
        self._parent, self._control = self._start()
        self._tried: list[Tried] = []
        self.own_bytes = 0  # the most memory that a worker was seen to have for itself
        self._fill()

    @property
    def workers(self) -> int:
        """See ``Pool.workers``."""
        return len(self._workers)

    def grow(self, workers: int) -> None:
        """Have so many workers from now on, if more."""
        self._due = max(self._due, workers)
        self._fill()

    def until_ready(self) -> None:
        """Wait for all workers to have opened their voices. Raises what keeps them from it."""
        while any(worker.process is None for worker in self._workers.values()):
            self._raise(self.wait(1.0))

    def speed(self, seconds: float) -> float:
        """Segments a second that all workers sing together, tried for so long. Errors as ``until_ready``."""
        self.until_ready()
        self._tried.clear()
        asked = set(self._workers)
        for connection in asked:
            connection.send(Trial(seconds))
        while len(self._tried) < len(asked & self._workers.keys()):  # others take the places of those that end
            self._raise(self.wait(1.0))
        return sum(tried.speed for tried in self._tried)

    def wanted(self) -> int:
        """See ``Pool.wanted``."""
        connection = self._freest()
        return 0 if connection is None or self._left else self._workers[connection].group

    def give(self, takes: Sequence[Take]) -> None:
        """See ``Pool.give``."""
        self._left.append(tuple(takes))
        self._hand_out()

    def wait(self, seconds: float) -> list[Outcome]:
        """See ``Pool.wait``."""
        outcomes = []
        for connection in wait(list(self._workers), seconds):
            assert isinstance(connection, Connection)
            worker = self._workers[connection]
            try:
                message = connection.recv()
            except (EOFError, OSError):
                outcomes += self._bury(connection)
                continue
            if isinstance(message, Ready):
                worker.process, worker.together, worker.hands = message.process, message.together, message.hands
                self._stillborn = 0
                self.own_bytes = max(self.own_bytes, message.own_bytes)
            elif isinstance(message, Tried):
                self._tried.append(message)
                self.own_bytes = max(self.own_bytes, message.own_bytes)
            elif isinstance(message, Sung):
                takes = worker.groups.pop(message.number, ())
                outcomes.append(Outcome(takes, message.rows, message.lost, message.error))
        self._fill()
        self._hand_out()
        return outcomes

    def close(self) -> None:
        """See ``Pool.close``."""
        for connection, worker in self._workers.items():
            if worker.process is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.process, signal.SIGKILL)
            connection.close()
        self._workers.clear()
        self._control.close()  # by which the parent ends, and those that it knows
        try:
            self._parent.wait(5.0)
        except subprocess.TimeoutExpired:
            self._parent.kill()
            self._parent.wait()

    def _freest(self) -> Connection | None:
        """The ready worker that has the fewest groups; none where all have enough."""
        room = {
            connection: len(worker.groups)
            for connection, worker in self._workers.items()
            if worker.process and len(worker.groups) < worker.hands + AHEAD
        }
        return min(room, key=room.__getitem__, default=None)

    def _hand_out(self) -> None:
        while self._left and (connection := self._freest()) is not None:
            group = Group(self._groups, self._left.popleft())
            self._groups += 1
            self._workers[connection].groups[group.number] = group.takes
            with contextlib.suppress(OSError):  # it has ended: wait will see it
                connection.send(group)

    def _fill(self) -> None:
        """Have as many workers as are due."""
        numbers = {worker.number for worker in self._workers.values()}
        for number in range(self._due):
            if number not in numbers and self._stillborn < STILLBORN:
                self._add(number)

    def _add(self, number: int) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            try:
                socket.send_fds(self._control, [ASKED.pack(number)], [theirs.fileno()])
            except OSError:  # the parent is no more
                self._control.close()
                self._parent.kill()
                self._parent.wait()
                self._parent, self._control = self._start()
                socket.send_fds(self._control, [ASKED.pack(number)], [theirs.fileno()])
            self._workers[Connection(ours.detach())] = _Worker(number)

    def _start(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        """The parent, and what it is spoken to by."""
        ours, theirs = socket.socketpair()
        threads = (
            {}
            if self._work.machine.threads is None
            else {name: str(self._work.machine.threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        )
        with theirs:
            try:
                parent = subprocess.Popen(
                    [sys.executable, "-P", "-m", "notewave.corpus.worker", str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **threads},
                    start_new_session=True,  # Ctrl-C is the driver's
                )
            except OSError as error:
                ours.close()
                raise BackendError(
                    f"no worker process can be started: {error.strerror or error}. Free memory or processes, or sing "
                    "in this one (--workers 0)."
                ) from error
        with Connection(os.dup(ours.fileno())) as first:
            first.send(self._work)
        return parent, ours

    def _bury(self, connection: Connection) -> list[Outcome]:
        """A worker has ended: what it had begun is lost, what waited goes to others."""
        worker = self._workers.pop(connection)
        connection.close()
        if worker.process is None:
            self._stillborn += 1
            if self._stillborn >= STILLBORN:
                error = BackendError(
                    "worker processes end before they are ready, one after another. See what they say above, free "
                    "memory, or sing in this process (--workers 0)."
                )
                return [Outcome((), error=error)]
        reason, groups = f"its worker was ended{self._how_ended(worker.process)}", list(worker.groups.values())
        self._left.extend(groups[worker.hands :])
        return [Outcome(takes, lost=reason) for takes in groups[: worker.hands]]

    def _how_ended(self, process: int | None) -> str:
        """How a worker ended, in words that follow: what its parent says of it within a moment."""
        deadline = time.monotonic() + REPORTED
        while process is not None and process not in self._ended:
            left = deadline - time.monotonic()
            if left < 0 or not select.select([self._control], [], [], left)[0]:
                return ""
            data = self._control.recv(ENDED.size, socket.MSG_WAITALL)
            if len(data) < ENDED.size:
                return ""
            ended, status = ENDED.unpack(data)
            self._ended[ended] = status
        if process is None:
            return ""
        code = os.waitstatus_to_exitcode(self._ended.pop(process))
        if code >= 0:
            return f", with code {code}"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return f" by {name}" + (", as for want of memory" if name == "SIGKILL" else "")

    @staticmethod
    def _raise(outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            if outcome.error is not None:
                raise outcome.error
