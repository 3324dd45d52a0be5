"""How a machine's processors are shared out: few workers of many threads, or many of few, by what is measured."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence

from notewave.backends.processors import processors
from notewave.checks import counted
from notewave.corpus.machine import free_memory, visible_gpus
from notewave.corpus.messages import Work
from notewave.corpus.pool import Here, Pool
from notewave.corpus.processes import Processes
from notewave.corpus.settings import Machine, Making
from notewave.corpus.singer import Singer

log = logging.getLogger(__name__)

TRIAL_SECONDS = 1.5  # in which every worker of a trial sings
WORTH_TRYING = 4  # songs for each processor, from which on trials pay
MEMORY_SHARE = 0.8  # of what is free, that workers may take


def open_pool(making: Making, out: str, machine: Machine, voices: Sequence[str], takes: int) -> Pool:
    """Workers on this machine for so many takes, as many and of as many threads as is said, or as pays.

    Raises BackendError, VoiceError where none can be had.
    """
    if machine.workers == 0 or not hasattr(os, "fork"):
        return Here(Singer(making, out, machine))
    work = Work(making, out, machine, tuple(voices))
    if machine.backend != "cpu" and (gpus := visible_gpus()):
        return Processes(work, machine.workers or gpus)
    cpus = processors()
    splits = splits_of(cpus, machine)
    if len(splits) > 1 and takes < WORTH_TRYING * cpus:
        workers = max(1, min(takes, cpus))
        splits = [(workers, cpus // workers)]
    if len(splits) == 1:
        workers, threads = splits[0]
        return _open(work, threads, min(workers, max(takes, 1)))
    return _fastest(work, splits)


def splits_of(cpus: int, machine: Machine) -> list[tuple[int, int]]:
    """The workers and their threads that may share so many processors, many workers first."""
    if machine.workers is not None:
        return [(machine.workers, machine.threads or max(1, cpus // machine.workers))]
    if machine.threads is not None:
        return [(max(1, cpus // machine.threads), machine.threads)]
    return [(cpus // threads, threads) for power in range(cpus.bit_length()) if (threads := 1 << power) <= cpus]


def _fastest(work: Work, splits: Sequence[tuple[int, int]]) -> Processes:
    """Workers in the way of these that sings most; the search ends where more threads gain nothing."""
    best: Processes | None = None
    most = 0.0
    for workers, threads in splits:
        pool = _open(work, threads, workers)
        try:
            speed = pool.speed(TRIAL_SECONDS)
        except BaseException:
            pool.close()
            if best is not None:
                best.close()
            raise
        log.info("%s of %s: %.2f segments a second", counted(pool.workers, "worker"), counted(threads, "thread"), speed)
        worse = pool if speed <= most else best
        best, most = (best, most) if worse is pool else (pool, speed)
        if worse is not None:
            worse.close()
        if worse is pool:
            break
    assert best is not None, "there are splits"
    return best


def _open(work: Work, threads: int, workers: int) -> Processes:
    """So many workers, or as many as there is memory for, which the first of them says."""
    pool = Processes(dataclasses.replace(work, machine=dataclasses.replace(work.machine, threads=threads)))
    try:
        pool.until_ready()
        free, own = free_memory(), pool.own_bytes
        room = 1 + int(MEMORY_SHARE * free) // own if free and own else workers
        if room < workers:
            log.warning("there is memory for %s of %d: each takes %d MiB.", counted(room, "worker"), workers, own >> 20)
        pool.grow(min(workers, room))
    except BaseException:
        pool.close()
        raise
    return pool
