"""What a server counts, as Prometheus reads it."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"  # of ``Metrics.text``
BUCKETS_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)


class Metrics:
    """One server's counters, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("notewave_requests", "Requests answered.", ["route", "status"], registry=registry)
        self.refused = Counter(
            "notewave_refused", "Requests turned away by what was full or too large.", ["why"], registry=registry
        )
        self.cancelled = Counter(
            "notewave_cancelled", "Songs whose client went away, or whose time was over.", registry=registry
        )
        self.under_way = Gauge("notewave_songs_under_way", "Songs being made.", registry=registry)
        self.queue = Gauge("notewave_songs_waiting", "Songs that wait to be made.", registry=registry)
        self.live = Gauge("notewave_live_sessions", "Live sessions under way.", registry=registry)
        self.made_seconds = Counter("notewave_sound_seconds", "Seconds of sound made.", registry=registry)
        self.computed_seconds = Counter(
            "notewave_compute_seconds", "Seconds that songs were worked at.", registry=registry
        )
        self.first_sound = Histogram(
            "notewave_first_sound_seconds",
            "Seconds from a song's arrival to its first sound.",
            buckets=BUCKETS_S,
            registry=registry,
        )

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self._registry)
