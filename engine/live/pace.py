"""The pace at which hops are taken, by the times at which they were."""

from __future__ import annotations

GAIN = 0.1  # of what a hop came early or late, that the pace follows
FORGET = 0.995  # by which the most that hops came early is forgotten from one hop to the next


class Pace:
    """Foresees when hops are taken. Who takes them does it by blocks of his own, some early and some late."""

    def __init__(self, hop_s: float) -> None:
        self._hop_s = hop_s
        self._count = 0  # hops taken
        self._at = 0.0  # when the last one was, smoothed
        self._early = 0.0  # the most that one was taken before that

    @property
    def count(self) -> int:
        """How many hops were taken."""
        return self._count

    def take(self, now: float) -> None:
        """The next hop is taken."""
        due = self._at + self._hop_s
        late = now - due
        if not self._count or abs(late) > self._hop_s:  # the first one, or after a halt
            self._at, self._early = now, 0.0
        else:
            self._at = due + GAIN * late
            self._early = max(FORGET * self._early, self._at - now)
        self._count += 1

    @property
    def due(self) -> float:
        """When the next hop is taken at the earliest; 0 before the first one was."""
        return self._at + self._hop_s - self._early if self._count else 0.0

    def position(self, now: float) -> float:
        """Seconds of the song up to what is taken just now; it stands still while nothing is taken."""
        if not self._count:
            return 0.0
        since = min(max(now - self._at, -self._hop_s), self._hop_s)
        return (self._count - 1) * self._hop_s + since
