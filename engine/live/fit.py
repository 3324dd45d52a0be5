"""What this machine can play live with a voice: measured for a moment when live play is opened."""

from __future__ import annotations

import dataclasses
import itertools
import time
from dataclasses import dataclass

import numpy as np

from notewave.backends.protocol import Backend
from notewave.sampling.job import Job
from notewave.sampling.windows import Place, Windows
from notewave.song.codec import SEGMENT_STEPS
from notewave.song.dialect import PITCHES, Dialect, Tokens
from notewave.sound.mel import FRAME_SECONDS, FRAMES
from notewave.voice.folder import Voice

HOPS = (2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32)  # frames, to choose among
TRIED = 4  # hop that is measured: the time hardly depends on it
TYPICAL_TOKENS = 200  # of a window: bands have 50 to 200 in what is told of them
MANY_TOKENS = (64, 128, 256, 384, 512, 768, 1024, 1536, 2048)  # of a window; devices make ready for each
WARM, TIMED = 4, 8  # hops before the time is taken, as devices make themselves ready, and those of which it is
REST_SECONDS = 0.02  # between hops, as in play: without, caches and threads are warmer and a hop takes a fifth less
LOAD, MOST_LOAD = 0.6, 0.8  # of a hop's length that making it may take: of a typical one, and of one of many notes
SPARE, SPARE_SECONDS = 1.5, 0.011  # that a hop is begun earlier than it takes: some take longer, and all else may work


@dataclass(frozen=True)
class Fit:
    """How live play is to run here."""

    windows: Windows
    most_tokens: int  # of a window
    budget_s: float = 0.0  # how long before a hop is due it is begun, in real time


def fit(backend: Backend, voice: Voice, job: Job, hop: int | None = None, back: int | None = None) -> Fit:
    """The shortest hop that this machine makes in time, unless it is given, and what else depends on the machine.

    Raises ArgumentError for a hop or back that there cannot be.
    """
    traits, most = voice.vocoder, voice.dimensions.max_tokens
    assert traits is not None, "a voice without a vocoder is refused before"

    def measured(windows: Windows, tokens: int, rest_s: float = 0.0) -> tuple[float, float]:
        told = _tokens(voice.dialect, min(tokens, most))
        return _measure(backend, dataclasses.replace(job, windows=windows), told, rest_s)

    if hop is None:
        _, all_s = measured(Windows.of(traits, TRIED), TYPICAL_TOKENS, REST_SECONDS)
        hop = next((hop for hop in HOPS if all_s <= LOAD * hop * FRAME_SECONDS), HOPS[-1])
    windows = Windows.of(traits, hop, back)
    made_s, _ = measured(windows, TYPICAL_TOKENS, REST_SECONDS)
    in_time = itertools.takewhile(
        lambda count: measured(windows, count)[1] <= MOST_LOAD * hop * FRAME_SECONDS, MANY_TOKENS
    )
    return Fit(windows, min(max(in_time, default=TYPICAL_TOKENS), most), SPARE * made_s + SPARE_SECONDS)


def _measure(backend: Backend, job: Job, tokens: Tokens, rest_s: float) -> tuple[float, float]:
    """Median seconds of making a hop, and of that with what is done before the next."""
    assert job.windows is not None
    hop, seconds = job.windows.hop, []
    with backend.live(job) as run:
        for count in range(WARM + TIMED):
            time.sleep(rest_s)
            place, after = (Place(FRAMES + (count + later) * hop, hop) for later in (0, 1))
            began = time.perf_counter()
            run.submit(tokens, place)
            run.sound().result()
            made = time.perf_counter()
            run.prepare(after)
            seconds.append((made - began, time.perf_counter() - began))
    made_s, all_s = np.median(seconds[WARM:], axis=0)
    return float(made_s), float(all_s)


def _tokens(dialect: Dialect, count: int) -> Tokens:
    """A window of so many tokens that say something."""
    events = np.arange((count - len(dialect.silence)) // 2)
    shift = events * (SEGMENT_STEPS - 1) // len(events) + 1  # from 1 on: shift 0 is never written, and may be PAD
    said = np.column_stack([dialect.shift + shift, dialect.pitch + events * 7 % PITCHES])
    return dialect.segment([dialect.tie, *said.ravel()])
