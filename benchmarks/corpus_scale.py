"""Many workers, simulated: they wait for the driver, which does one thing at a time, and for the disk.

It does as ``notewave.corpus.corpus.make_corpus`` and ``notewave.corpus.processes.Processes`` do: who has room is given
a take first, then what is done is settled. Songs take as long as was measured of one worker by itself: that cores
disturb each other is not in it.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from notewave.corpus.processes import AHEAD


@dataclass(frozen=True)
class Costs:
    """Of a take, in seconds."""

    give_s: float  # of the driver, before it is sung
    settle_s: float  # and after it
    write_s: float  # of the disk, by itself
    sing_s: Sequence[float]  # of the worker: one of these


def efficiency(workers: int, costs: Costs, takes: int, seed: int = 0) -> float:
    """The share of their time that so many workers sing, from the first of so many takes to the last."""
    chance = random.Random(seed)
    songs = [chance.choice(costs.sing_s) for _ in range(takes)]
    left = deque(songs)
    held = [deque[float]() for _ in range(workers)]  # songs that each has and has not begun
    held_by = [0] * workers  # begun or not
    is_idle = [True] * workers
    events: list[tuple[float, int, bool]] = []  # when a worker has sung, or its sound is written
    done: deque[int] = deque()  # workers of whose takes the driver is to hear
    now = disk = 0.0  # until when the driver is busy, and the disk

    def advance(until: float) -> None:
        """Let happen what happens up to a time."""
        nonlocal disk
        while events and events[0][0] <= until:
            moment, worker, is_written = heapq.heappop(events)
            if not is_written:
                disk = max(disk, moment) + costs.write_s
                heapq.heappush(events, (disk, worker, True))
                continue
            done.append(worker)
            if held[worker]:
                heapq.heappush(events, (moment + held[worker].popleft(), worker, False))
            else:
                is_idle[worker] = True

    settled = 0
    while settled < len(songs):
        advance(now)
        freest = min(range(workers), key=held_by.__getitem__)
        if left and held_by[freest] <= AHEAD:
            now += costs.give_s
            advance(now)
            held_by[freest] += 1
            song = left.popleft()
            if is_idle[freest]:
                is_idle[freest] = False
                heapq.heappush(events, (now + song, freest, False))
            else:
                held[freest].append(song)
        elif done:
            now += costs.settle_s
            held_by[done.popleft()] -= 1
            settled += 1
        else:
            now = events[0][0]
    return sum(songs) / (workers * now)
