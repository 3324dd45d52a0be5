"""Workers on Ray: an actor for each GPU of a cluster, or for every few cores, while nodes come and go.

Songs' bytes go to an actor and rows come back; what is sung is written where it is sung. An actor has takes that it
sings and others that wait, so that it never idles. Whatever becomes of its node, each take is told of: as a row, or as
lost where it was begun; those that only waited go to another actor.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import re
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import notewave
from notewave.backends.processors import processors
from notewave.checks import quoted, shown
from notewave.corpus.ledger import ABOUT, ABOUT_MOST
from notewave.corpus.messages import Work
from notewave.corpus.pool import Outcome, sung
from notewave.corpus.processes import SEVERAL, STILLBORN
from notewave.corpus.settings import Machine
from notewave.corpus.singer import Singer
from notewave.corpus.takes import Take
from notewave.errors import BackendError, NotewaveError, OutputError
from notewave.inputs import read_regular

log = logging.getLogger(__name__)

AUTO = "auto"  # the cluster that this machine is part of, or else as LOCAL
LOCAL = "local"  # a cluster of this machine alone, which is started, and ended by close
LOOK_SECONDS = 3.0  # between two looks at what nodes there are
REACH_SECONDS = 10.0  # for a cluster's address to answer
MOST_TOLD = 300  # characters of what Ray says
MOST_DOUBLED = 5  # how often that time is doubled where actors do not get ready
HANDS_ON_GPU = 2  # groups that an actor works at: files of one are written while the other is sung
VOICE_BYTES = 2 << 30  # of memory that a published voice takes in a worker; the bundled one takes a tenth
STORE_BYTES = 256 << 20  # of the store of a cluster that is started here; only songs' bytes pass through it


class RayPool:
    """Actors on a Ray cluster that sing takes: see ``notewave.corpus.pool.Pool``."""

    def __init__(self, work: Work, address: str = AUTO) -> None:
        """Connect to a cluster, and ask for actors on it, which open the voices.

        work: whose ``out`` all nodes reach. address: a cluster's, ``AUTO`` or ``LOCAL``; where this process is in a
        cluster already, it is that. Raises BackendError where there is none.
        """
        import ray

        self._ray: Any = ray
        self._connected = _connect(address, work.machine)
        nodes, machine = self._nodes(), work.machine
        # Whoever asks for a GPU's backend gets GPUs also where nodes that have some are yet to come.
        on_gpus = machine.backend != "cpu" and (machine.backend != "auto" or any(node.get("GPU") for node in nodes))
        cores = machine.threads or (1 if on_gpus else _cores(nodes, len(work.voices)))
        self._needs = {"CPU": cores, "GPU": 1} if on_gpus else {"CPU": cores}
        self._hands = HANDS_ON_GPU if on_gpus else 1
        self._most = machine.workers or math.inf
        machine = dataclasses.replace(machine, threads=cores, backend=machine.backend if on_gpus else "cpu")
        self._told = (notewave.__version__, _about(work.out), dataclasses.replace(work, machine=machine))
        self._class = self._ray.remote(num_cpus=cores, num_gpus=int(on_gpus), max_concurrency=self._hands)(_Actor)
        self._workers: list[_Worker] = []
        self._left: deque[tuple[Take, ...]] = deque()  # that nobody has begun
        self._looks_s = self._counted_s = 0.0  # when nodes are looked at
        self._stillborn = 0  # looks in a row after which actors ended that were not ready yet
        self._is_over = self._has_warned = False
        self._look()

    @property
    def workers(self) -> int:
        """See ``Pool.workers``: actors that have opened their voices."""
        return sum(worker.group > 0 for worker in self._workers)

    def wanted(self) -> int:
        """See ``Pool.wanted``."""
        worker = self._freest()
        return 0 if worker is None or self._left else worker.group

    def give(self, takes: Sequence[Take]) -> None:
        """See ``Pool.give``."""
        self._left.append(tuple(takes))
        self._hand_out()

    def wait(self, seconds: float) -> list[Outcome]:
        """See ``Pool.wait``; nothing as soon as there is room for takes, too."""
        end = time.monotonic() + seconds
        while True:
            self._look()
            asked = {call.answer: (worker, call) for worker in self._workers for call in worker.calls}
            ready = self._ready(list(asked), min(end, self._looks_s) - time.monotonic()) if asked else []
            outcomes = [outcome for answer in ready if (outcome := self._take_in(*asked[answer])) is not None]
            self._hand_out()
            if outcomes or not asked or self.wanted() or time.monotonic() >= end:
                return outcomes

    def close(self) -> None:
        """See ``Pool.close``; leave the cluster, too, where it was joined here."""
        for worker in self._workers:
            self._kill(worker)
        self._workers.clear()
        if self._connected:
            self._ray.shutdown()
            self._connected = False

    def _nodes(self) -> list[Mapping[str, float]]:
        """What each node has for whoever asks."""
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def _look(self) -> None:
        """Now and then, ask for an actor wherever there is room for one."""
        now = time.monotonic()
        if now < self._looks_s:
            return
        self._looks_s = now + LOOK_SECONDS * 2 ** min(self._stillborn, MOST_DOUBLED)
        if self._is_over:
            return
        room = sum(min(int(node.get(kind, 0) // need) for kind, need in self._needs.items()) for node in self._nodes())
        if not room and not self._has_warned:
            need = " and ".join(f"{need} {kind}" for kind, need in self._needs.items())
            log.warning("no node of the Ray cluster has what a worker takes (%s): one that has it is waited for.", need)
            self._has_warned = True
        # One is asked for in any case: clusters that grow by themselves do so when they are asked.
        for _ in range(len(self._workers), int(min(max(room, 1), self._most))):
            actor = self._class.remote()
            self._workers.append(_Worker(actor, [_Call(actor.open.remote(*self._told))]))

    def _freest(self) -> _Worker | None:
        """The worker that has the least to do and takes another group."""
        free = [worker for worker in self._workers if worker.group and len(worker.calls) <= self._hands]
        return min(free, key=lambda worker: len(worker.calls), default=None)

    def _hand_out(self) -> None:
        while self._left and (worker := self._freest()) is not None:
            takes = self._left.popleft()
            worker.calls.append(_Call(worker.actor.sing.remote(takes), takes))

    def _ready(self, answers: list[Any], seconds: float) -> list[Any]:
        """Those of some answers that are there, as soon as one is."""
        if not self._ray.wait(answers, timeout=max(0.0, seconds))[0]:
            return []
        return list(self._ray.wait(answers, num_returns=len(answers), timeout=0)[0])

    def _take_in(self, worker: _Worker, call: _Call) -> Outcome | None:
        """Take an answer in -> what became of takes, if it says that."""
        if worker not in self._workers:  # another answer said that it is no more
            return None
        try:
            answer = self._ray.get(call.answer)
        except self._ray.exceptions.RayError as error:
            what = _told(error)
            if call.takes or not _is_raised(error):  # whatever was raised, another process does not have it
                return self._bury(worker, f"its worker on {worker.host} ended: {what}")
            cure = f"Install notewave[corpus] {notewave.__version__} on all nodes."
            answer = BackendError(f"a worker on Ray cannot start: {what}. {cure}")
        worker.calls.remove(call)
        if isinstance(answer, Outcome):
            return dataclasses.replace(answer, takes=call.takes)
        if isinstance(answer, NotewaveError):
            return self._over(answer)
        worker.host, worker.group = answer
        self._stillborn = 0
        return None

    def _bury(self, worker: _Worker, reason: str) -> Outcome | None:
        """Take a worker that is no more out. What it had begun is lost; what waited goes to others."""
        self._kill(worker)  # Ray may have lost sight of it
        self._workers.remove(worker)
        if worker.group:
            self._left.extend(call.takes for call in worker.calls[self._hands :])
            return Outcome(tuple(take for call in worker.calls[: self._hands] for take in call.takes), lost=reason)
        log.info("%s", reason)
        self._stillborn += self._counted_s != self._looks_s
        self._counted_s = self._looks_s
        if self._stillborn < STILLBORN or self.workers:
            return None
        cure = "Ray's logs on the nodes say more; they may have too little memory for the voice."
        return self._over(BackendError(f"workers on Ray end before they are ready, again and again: {reason}. {cure}"))

    def _over(self, error: NotewaveError) -> Outcome | None:
        """Say once that nothing more can be sung."""
        if self._is_over:
            return None
        self._is_over = True
        return Outcome((), error=error)

    def _kill(self, worker: _Worker) -> None:
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.kill(worker.actor)


@dataclass(frozen=True, eq=False)
class _Call:
    """What a worker was asked."""

    answer: Any  # Ray's reference to it
    takes: tuple[Take, ...] = ()  # that it was asked to sing; none where it is to get ready


@dataclass(eq=False)
class _Worker:
    """An actor, as it is seen from here."""

    actor: Any  # Ray's handle
    calls: list[_Call]  # that are not answered, in their order
    host: str = "Ray"  # the name of its node
    group: int = 0  # takes that it is best given at once; 0 until its voices are open


class _Actor:
    """A worker, where it works."""

    def open(self, version: str, about: bytes, work: Work) -> tuple[str, int] | NotewaveError:
        """Open the voices -> the node's name, and how many takes make a group; or why they cannot be sung.

        version, about: the driver's, which must be the same here.
        """
        logging.getLogger("notewave.song").propagate = False  # what is odd in a song is in its row
        try:
            if notewave.__version__ != version:
                raise BackendError(
                    f"notewave is {notewave.__version__}, but {version} where the corpus is made. Install the same."
                )
            if _about(work.out) != about:
                raise OutputError(
                    f"{shown(work.out)} is not the folder that it is where the corpus is made. Choose one that all "
                    "nodes share, or a URL."
                )
            self._singer = Singer(work.making, work.out, work.machine)
            together = min(map(self._singer.together, work.voices))
        except NotewaveError as error:
            return _placed(error)
        return socket.gethostname(), together if together == 1 else SEVERAL * together

    def sing(self, takes: tuple[Take, ...]) -> Outcome:
        """What became of takes, which are left out of it."""
        outcome = sung(self._singer, takes)
        return dataclasses.replace(outcome, takes=(), error=None if outcome.error is None else _placed(outcome.error))


def _placed(error: NotewaveError) -> NotewaveError:
    """An error that says where it was."""
    return type(error)(f"on {socket.gethostname()}: {error}")


def _about(out: str) -> bytes:
    """What the corpus in a folder says of itself, by which it is known again; nothing of one at a URL."""
    path = Path(out) / ABOUT
    return read_regular(path, ABOUT_MOST) if "://" not in out and path.is_file() else b""


def _cores(nodes: Sequence[Mapping[str, float]], voices: int) -> int:
    """How many cores a worker takes: one where there is memory for its voices beside each, which makes the most of it.

    Workers share no memory here. Where there is less, they have as many cores as come with enough: one of two threads
    in the place of two costs a fifth of the speed, measured with the bundled voice.
    """
    nodes = [node for node in nodes if node.get("CPU", 0) >= 1 and node.get("memory")]
    beside = min((node["memory"] / node["CPU"] for node in nodes), default=math.inf)  # bytes
    most = max((node["CPU"] for node in nodes), default=1)
    return max(1, min(math.ceil(voices * VOICE_BYTES / beside), int(most)))


def _connect(address: str, machine: Machine) -> bool:
    """Connect to a cluster -> whether that was needed. Raises BackendError."""
    import ray

    if ray.is_initialized():
        return False
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    is_verbose = log.isEnabledFor(logging.INFO)
    level = logging.INFO if is_verbose else logging.ERROR
    quiet: dict[str, Any] = {"log_to_driver": is_verbose, "logging_level": level}
    if address == AUTO:
        address = os.environ.get("RAY_ADDRESS") or AUTO
    with _own_signals():
        if address == LOCAL or not _join(address, quiet):
            with _on_loopback():
                cores = max(processors(), machine.threads or 1)
                ray.init(LOCAL, num_cpus=cores, include_dashboard=False, object_store_memory=STORE_BYTES, **quiet)
    ray._private.worker._worker_logs_enabled = is_verbose  # Ray has no other switch for what it says of nodes that end
    return True


def _join(address: str, quiet: Mapping[str, Any]) -> bool:
    """Connect to a cluster that is there; False where none was named and none is. Raises BackendError."""
    import ray
    from ray._private.services import canonicalize_bootstrap_address

    try:
        where = str(canonicalize_bootstrap_address(AUTO)) if address == AUTO else address
        host, _, port = where.rpartition("/")[2].rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), REACH_SECONDS).close()  # Ray itself tries for minutes
        ray.init(address, **quiet)
    except (OSError, ImportError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        if address == AUTO and isinstance(error, OSError):
            return False
        reason = shown(" ".join(str(error).split())[:MOST_TOLD]).rstrip(".")
        raise BackendError(
            f"there is no way to the Ray cluster at {quoted(address)}: {reason}. Check the address, as host:6379, and "
            "that Python and Ray are the same there as here."
        ) from error
    return True


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Have SIGTERM do what it did before the block: Ray changes that."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """Have a cluster that is started in the block listen to this machine only, as it does on macOS and Windows."""
    from ray._private import ray_constants

    name, before = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, ray_constants.ENABLE_RAY_CLUSTER
    said = os.environ.get(name)
    ray_constants.ENABLE_RAY_CLUSTER, os.environ[name] = False, "0"  # for this process, and for those that it starts
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        if said is None:
            del os.environ[name]
        else:
            os.environ[name] = said


def _is_raised(error: Exception) -> bool:
    """Whether Ray tells of what a worker raised, not of its end."""
    import ray

    return isinstance(error, ray.exceptions.RayTaskError) or getattr(error, "actor_init_failed", False)


def _told(error: Exception) -> str:
    """What Ray says has happened, in short: the last line of a traceback, or a sentence among headings and details."""
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("\t")]
    if _is_raised(error):
        return shown(lines[-1])
    line = next((line for line in lines if not line.endswith("before finishing this task.")), type(error).__name__)
    kind = re.search(r"exit type: (\w+)", line)
    return shown(line.partition(". ")[0].rstrip(".")) + (f" ({kind[1]})" if kind else "")
