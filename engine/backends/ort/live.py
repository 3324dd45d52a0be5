"""A song played live, on ONNX Runtime: windows that overlap, each after what the one before left."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np

from notewave.backends.ort.denoiser import Buffers, Denoiser
from notewave.backends.ort.failures import on_cpu
from notewave.backends.ort.pending import Later
from notewave.backends.ort.sessions import Networks
from notewave.backends.protocol import OVER, LiveRun
from notewave.errors import BackendError
from notewave.kernels.reference import advance, philox_normal
from notewave.sampling.job import Job
from notewave.sampling.windows import Place
from notewave.song.dialect import Tokens
from notewave.sound.mel import FRAMES, HOP, MELS, FloatArray
from notewave.voice.folder import Voice


class OrtLive(LiveRun):
    """See ``notewave.backends.protocol.LiveRun``; the work is done when it is waited for."""

    def __init__(self, voice: Voice, networks: Networks, buffers: Buffers, job: Job) -> None:
        assert job.windows is not None and len(job.seeds) == 1, "whoever plays live says in which windows"
        self._windows, self._buffers, self._mel_range = job.windows, buffers, voice.mel_range
        self._noise = _Noise(job.seeds[0], job.table.draws)
        self._denoiser = Denoiser(voice, networks, buffers, job)
        self.asked: deque[Later] = deque()
        self._over, self._first, self._count = False, 0, 0
        buffers.x.fill(voice.mel_range.silence)
        self._context = buffers.x.copy()  # [1, T, M], the frames before the window
        self._prepared: _Prepared | None = None

    def submit(self, tokens: Tokens, place: Place) -> None:
        """See ``notewave.backends.protocol.LiveRun.submit``."""
        if self._over:
            raise BackendError(OVER)
        given = tokens.copy()
        Later(self, lambda: self._denoise(given, place))

    def mel(self) -> Later:
        """See ``notewave.backends.protocol.LiveRun.mel``."""
        return Later(self, lambda: self._buffers.x[0].copy())

    def sound(self) -> Later:
        """See ``notewave.backends.protocol.LiveRun.sound``."""
        return Later(self, self._sound)

    def prepare(self, place: Place) -> None:
        """See ``notewave.backends.protocol.LiveRun.prepare``."""
        context, played = advance(self._context, self._buffers.x, place.moved)
        self._noise.reach(place.first)
        with on_cpu():
            encoded = self._denoiser.encode_context(context)
        self._prepared = _Prepared(place, context, encoded, played)

    def end(self) -> None:
        """Do no more of what was asked: the buffers are another run's."""
        self.asked.clear()
        self._over = True

    def _denoise(self, tokens: Tokens, place: Place) -> FloatArray:
        if self._prepared is None or self._prepared.place != place:
            self.prepare(place)
        assert self._prepared is not None
        prepared, self._prepared = self._prepared, None
        self._context, self._first = prepared.context, place.first
        self._denoiser.encode([tokens], prepared.encoded, self._count)
        self._count += 1
        return self._denoiser.denoise(self._noise.fill, prepared.played[:, : self._windows.given(place.moved)])

    def _sound(self) -> FloatArray:
        windows = self._windows
        mel = self._mel_range.from_network(self._buffers.x[:, windows.heard])
        sounded = slice(windows.sounded.start * HOP, windows.sounded.stop * HOP)
        return self._denoiser.vocode(mel, self._first + windows.heard.start)[0, sounded]


class _Prepared(NamedTuple):
    """What a window needs that its tokens do not say."""

    place: Place
    context: FloatArray  # [1, T, M]
    encoded: FloatArray | None  # the same, [1, T, D], where the voice takes it
    played: FloatArray  # [1, T, M], of what the window before had


class _Noise:
    """A song's noise, by its frames: of a window, only those that the one before had not are drawn."""

    def __init__(self, seed: int, draws: int) -> None:
        self._seed, self._first = seed, -FRAMES
        self._noise = np.empty((draws, FRAMES, MELS), np.float32)  # of the window that begins at the first frame

    def reach(self, first: int) -> None:
        """Move on to the window that begins at a frame."""
        moved = first - self._first if 0 <= first - self._first < FRAMES else FRAMES
        segment, frame = divmod(first + FRAMES - moved, FRAMES)
        for draw, noise in enumerate(self._noise):
            noise[: FRAMES - moved] = noise[moved:].copy()
            new = noise[FRAMES - moved :]
            philox_normal(self._seed, segment, draw, new, first=frame * MELS, size=FRAMES * MELS)
        self._first = first

    def fill(self, draw: int, out: FloatArray) -> None:
        """One draw [1, T, M], of the window's first frames."""
        out[0] = self._noise[draw, : out.shape[1]]
