"""A worker's process, and the parent that forks workers off with the voices that it has opened.

Started by ``notewave.corpus.processes``. Whoever is here ends when the driver does: the parent sees its end at once and
ends the workers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NoReturn

from notewave.corpus.machine import visible_gpus
from notewave.corpus.messages import ASKED, ENDED, Group, Ready, Sung, Trial, Tried, Work
from notewave.corpus.singer import Singer
from notewave.errors import NotewaveError
from notewave.song.midi import tokenize
from notewave.synthesizer import Synthesizer

HANDS = 3  # threads of a worker on a GPU: one sings, the others write
LOOK_EVERY = 0.2  # seconds at which the parent looks for workers that have ended
MEMORY = Path("/proc/self/smaps_rollup")
TRIED = Path("songs") / "band.mid"  # in notewave.bundled
TRIED_SEGMENTS, TRIED_STEPS = 2, 4  # of it, and at most so many steps


def main(descriptor: int) -> None:
    """The parent: opens the voices, then forks a worker off for each descriptor that it is sent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=descriptor) as control:
        with Connection(os.dup(descriptor)) as first:
            work: Work = first.recv()
        opened = _open(work)
        gc.collect()
        gc.freeze()  # or its collector would copy the memory that workers share
        children: set[int] = set()
        try:
            with contextlib.suppress(OSError):  # the driver went away
                while _fork_asked(control, work, opened, children):
                    _report_ended(control, children)
        finally:
            for child in children:
                os.kill(child, signal.SIGKILL)


def _open(work: Work) -> dict[str, Synthesizer]:
    """The voices, ready to be shared; none where each worker must open its own."""
    machine = work.machine
    on_cpu = machine.backend == "cpu" or (machine.backend == "auto" and not visible_gpus())
    if sys.platform != "linux" or machine.threads != 1 or not on_cpu:
        return {}  # sessions of several threads and contexts of a GPU survive no fork, nor do macOS's libraries
    singer = Singer(work.making, work.out, dataclasses.replace(machine, backend="cpu"))
    try:
        for voice in work.voices:
            singer.synthesizer(voice)
    except NotewaveError:
        return {}  # the workers will say it
    return {voice: singer.synthesizer(voice) for voice in work.voices}


def _fork_asked(control: socket.socket, work: Work, opened: Mapping[str, Synthesizer], children: set[int]) -> bool:
    """Fork a worker if one is asked for by now; False once the driver is gone."""
    if not select.select([control], [], [], LOOK_EVERY)[0]:
        return True
    data, descriptors, _, _ = socket.recv_fds(control, ASKED.size, 1)
    if not data or not descriptors:
        return False
    child = os.fork()
    if not child:
        control.close()
        _work(descriptors[0], ASKED.unpack(data)[0], work, opened)
    os.close(descriptors[0])
    children.add(child)
    return True


def _report_ended(control: socket.socket, children: set[int]) -> None:
    while children:
        child, status = os.waitpid(-1, os.WNOHANG)
        if not child:
            return
        children.discard(child)
        control.sendall(ENDED.pack(child, status))


def _work(descriptor: int, number: int, work: Work, opened: Mapping[str, Synthesizer]) -> NoReturn:
    """A worker's life."""
    code = 1
    try:
        logging.getLogger("notewave.song").propagate = False  # what is odd in a song is in its row
        with contextlib.suppress(EOFError, OSError), Connection(descriptor) as connection:  # the driver went away
            _Worker(connection, number, work, opened).run()
        code = 0
    finally:
        os._exit(code)  # nothing of the parent's is this process's to end


class _Worker:
    def __init__(self, connection: Connection, number: int, work: Work, opened: Mapping[str, Synthesizer]) -> None:
        machine = work.machine
        if machine.backend != "cpu" and (gpus := visible_gpus()) > 1:
            options = {"device_id": number % gpus, **machine.provider_options}
            machine = dataclasses.replace(machine, provider_options=options)
        self._connection, self._work = connection, work
        self._singer = Singer(work.making, work.out, machine, opened)
        self._sending = threading.Lock()

    def run(self) -> None:
        """Take what comes until the driver goes away."""
        try:
            together = min(map(self._singer.together, self._work.voices))
        except NotewaveError as error:
            self._send(Sung(-1, error=error))
            return
        hands = 1 if together == 1 else HANDS
        self._send(Ready(os.getpid(), together, hands, _own_bytes()))
        with ThreadPoolExecutor(hands) as pool:
            while True:
                try:
                    message = self._connection.recv()
                except (EOFError, OSError):
                    os._exit(0)  # the driver went away: what is being sung is nobody's
                pool.submit(self._try if isinstance(message, Trial) else self._sing, message)

    def _sing(self, group: Group) -> None:
        try:
            self._send(Sung(group.number, self._singer.sing(group.takes)))
        except NotewaveError as error:
            self._send(Sung(group.number, error=error))
        except BaseException as error:
            self._send(Sung(group.number, lost=f"its worker failed: {type(error).__name__}: {error}"))
            os._exit(1)  # whatever that was, another process does not have it

    def _try(self, trial: Trial) -> None:
        speed = min(_speed(self._singer.synthesizer(voice), trial.seconds, self._work) for voice in self._work.voices)
        self._send(Tried(speed, _own_bytes()))

    def _send(self, message: object) -> None:
        with self._sending:
            self._connection.send(message)


def _speed(synthesizer: Synthesizer, seconds: float, work: Work) -> float:
    """Segments a second of a bundled song, sung again and again for so long, with few steps."""
    import notewave

    song = Path(notewave.__file__).parent / "bundled" / TRIED
    tokens = tokenize(song, dialect=synthesizer.voice.dialect)[:TRIED_SEGMENTS]
    most = min(work.making.steps or synthesizer.voice.sampling.steps, TRIED_STEPS)
    steps = None if synthesizer.voice.is_autoregressive else most
    start, sung = time.perf_counter(), 0
    while (taken := time.perf_counter() - start) < seconds:
        synthesizer.render(tokens, sampler=work.making.sampler, steps=steps, guidance=work.making.guidance)
        sung += len(tokens)
    return sung / taken


def _own_bytes() -> int:
    """Memory that this process shares with nobody; 0 where the system does not say."""
    try:
        lines = MEMORY.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(int(text.split()[1]) << 10 for text in lines if text.startswith(("Private_Clean", "Private_Dirty")))


if __name__ == "__main__":
    main(int(sys.argv[1]))
