"""A song under way: tokens in as they come, mel and sound out. The one loop over segments stands here.

Letters as in ``notewave.voice.contracts``.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from notewave.backends.protocol import Pending, Run
from notewave.checks import as_array, quoted
from notewave.errors import ArgumentError, MidiError, SamplingError, VoiceError
from notewave.sampling.job import Job
from notewave.song.dialect import PAD, Tokens, dialect_of
from notewave.sound.mel import FRAMES, HOP, MELS, FloatArray, MelRange
from notewave.sound.stream import Vocode, VocoderStream, VocoderTraits
from notewave.voice.folder import Voice

Vocoder = tuple[Vocode, VocoderTraits]
NO_SEGMENTS = "the song has no segments. Give what notewave.tokenize returned."


@dataclass(frozen=True)
class Made:
    """What a segment, or a part of one, came to, of each of B songs."""

    frames: int  # T, of each song; 0 for what is left of the sound
    mel: FloatArray | None  # log-mel [B, T, M], where it was asked for; None also for what is left of the sound
    samples: FloatArray | None  # the audio [B, n] in [-1, 1] that is now final, where it was asked for


class Session:
    """Songs side by side, under way: ``feed`` does not wait, ``take`` and ``rest`` do.

    One segment may be fed while the one before it is being made; a third waits for the first, which is then kept.
    parts: in which each segment is taken, one after another; 1 but for voices that write frame by frame.
    """

    def __init__(
        self, run: Run, voice: Voice, job: Job, *, mel: bool, sound: bool, vocoder: Vocoder | None = None
    ) -> None:
        """mel, sound: what is asked of every segment. vocoder: one on the host, in the place of the voice's own."""
        self._run, self._voice, self._job, self._mel, self._sound = _Checked(run, voice), voice, job, mel, sound
        self._sounding = (
            self._run if vocoder is None else HostSound(self._run, len(job.seeds), voice.mel_range, *vocoder)
        )
        self.parts = run.parts
        self._fed = 0  # segments
        self._asked: deque[tuple[Pending | None, Pending | None]] = deque()  # of each part

    def feed(self, tokens: Sequence[Tokens], last: bool = False) -> None:
        """Begin the next segment of each song, B token arrays, the songs' ``last`` or not; does not wait.

        Raises MidiError for what are no tokens, or more than the voice takes; SamplingError where no noise is left of
        what was given.
        """
        job = self._job
        if len(tokens) != len(job.seeds):
            raise ArgumentError(f"{len(tokens)} token arrays were fed for {len(job.seeds)} songs. Give one for each.")
        if job.noise is not None and len(job.noise) < (self._fed + 1) * job.table.draws:
            raise SamplingError(
                f"there is noise for {self._fed} segments, and none for another. Give {job.table.draws} draws for each."
            )
        self._run.submit([check_tokens(one, self._fed, self._voice) for one in tokens])
        self._fed += 1
        for part in range(self.parts):
            if part:
                self._run.go_on()
            mel = self._run.mel() if self._mel else None
            is_last = last and part == self.parts - 1
            self._asked.append((mel, self._sounding.sound(is_last) if self._sound else None))

    def take(self) -> Made:
        """Wait for the segment, or the part of one, fed first of those that were not taken.

        Raises ArgumentError where there is none, VoiceError where the voice gave what is no finite number.
        """
        if not self._asked:
            raise ArgumentError("there is no segment to take: each was taken that was fed. Feed another.")
        return self._wait(FRAMES // self.parts, *self._asked.popleft())

    def rest(self) -> Made:
        """Wait for the audio that is left where the last segment, now taken, was not fed as the last.

        Raises MidiError where no segment was fed, VoiceError as ``take``.
        """
        if not self._fed:
            raise MidiError(NO_SEGMENTS)
        return self._wait(0, None, self._sounding.rest() if self._sound else None)

    def sing(self, songs: Iterable[Sequence[Tokens]]) -> Iterator[Made]:
        """Feed segments of each song, B token arrays each time, and yield what each comes to, part by part.

        Of a sequence, a segment is begun while the one before it is finished. Of any other iterable, nothing more is
        asked for before what is there was yielded; what is left of the sound comes at the end.
        """
        if isinstance(songs, Sequence):
            for index, tokens in enumerate(songs):
                self.feed(tokens, last=index == len(songs) - 1)
                if index:
                    yield from self._segment()
            if not self._fed:
                raise MidiError(NO_SEGMENTS)
            yield from self._segment()
            return
        for tokens in songs:
            self.feed(tokens)
            yield from self._segment()
        yield self.rest()

    def _segment(self) -> Iterator[Made]:
        """The parts of the segment fed first of those not taken."""
        return (self.take() for _ in range(self.parts))

    def _wait(self, frames: int, mel: Pending | None, sound: Pending | None) -> Made:
        log_mel = self._voice.mel_range.from_network(mel.result()) if mel else None
        return Made(frames, log_mel, sound.result() if sound else None)


def sing_each(
    session: Session,
    songs: Sequence[Sequence[Tokens]],
    vocoder: Vocoder,
    on_mel: Callable[[int, FloatArray], None] | None = None,
) -> list[FloatArray]:
    """Sing B whole songs side by side -> the audio [n] of each, which ends where the song does.

    A song that has ended goes on with segments of no notes until the longest has, which is not to be heard: not by the
    vocoder either, which looks ahead. What it holds back when a song ends is sounded after all have, from the song's
    own last frames. vocoder: what sounds the session, which gives mels too unless the songs are of one length. on_mel:
    called with each song's place, and with its mel [T, M] of a segment or part, which the session gives then.
    """
    vocode, traits = vocoder
    frames = [FRAMES * len(song) for song in songs]
    audio = [np.empty(HOP * length, np.float32) for length in frames]
    recent: deque[FloatArray] = deque(maxlen=-(-(traits.left_frames + traits.right_frames) * session.parts // FRAMES))
    held_back: list[tuple[int, int, FloatArray]] = []  # of a song so many frames, and the mel [V, M] that they hang on
    sung = sounded = 0  # frames
    for made in session.sing(_side_by_side(songs)):
        assert made.samples is not None
        sung, first, sounded = sung + made.frames, sounded, sounded + made.samples.shape[1] // HOP
        if made.mel is not None:
            recent.append(made.mel)
        for song, length in enumerate(frames):
            if on_mel is not None and made.mel is not None and sung <= length:
                on_mel(song, made.mel[song])
            if sung <= length:
                audio[song][HOP * first : HOP * sounded] = made.samples[song]
            if sung == length > sounded:
                held = length - sounded
                mel = np.concatenate([mels[song] for mels in recent])
                held_back.append((song, held, mel[-(traits.left_frames + held) :]))
    for song, held, mel in held_back:  # sooner, a device would be waited for while the other songs could go on
        samples = vocode(mel[None], frames[song] - len(mel))[0]
        audio[song][-HOP * held :] = np.clip(samples[-HOP * held :], -1.0, 1.0)
    return audio


def _side_by_side(songs: Sequence[Sequence[Tokens]]) -> list[tuple[Tokens, ...]]:
    """The tokens of every song, segment by segment; of no notes once it has ended."""
    return list(itertools.zip_longest(*songs, fillvalue=dialect_of(songs[0][0]).silence))


class HostSound:
    """A run's sound by a vocoder that takes mels from the host's memory; calls as ``Run``'s."""

    def __init__(self, run: Run, batch: int, mel_range: MelRange, vocode: Vocode, traits: VocoderTraits) -> None:
        self._run, self._batch, self._mel_range = run, batch, mel_range
        self._stream = VocoderStream(vocode, traits)

    def sound(self, last: bool) -> Pending:
        """See ``notewave.backends.protocol.Run.sound``."""
        return self._vocoded(self._run.mel(), last)

    def rest(self) -> Pending:
        """See ``notewave.backends.protocol.Run.rest``."""
        return self._vocoded(None, last=True)

    def _vocoded(self, mel: Pending | None, last: bool) -> _Vocoded:
        def frames() -> FloatArray:
            none = np.empty((self._batch, 0, MELS), np.float32)
            return none if mel is None else self._mel_range.from_network(mel.result())

        return _Vocoded(self._stream, frames, last)


class _Vocoded:
    """Audio [B, n] of a log-mel [B, T, M] to be waited for; taken in the order in which it was asked for."""

    def __init__(self, stream: VocoderStream, mel: Callable[[], FloatArray], last: bool) -> None:
        self._stream, self._mel, self._last = stream, mel, last
        self._value: FloatArray | None = None

    def result(self) -> FloatArray:
        """See ``notewave.backends.protocol.Pending.result``."""
        if self._value is None:
            self._value = self._stream.push(self._mel(), self._last)
        return self._value


class _Checked(Run):
    """A run whose results raise VoiceError where they are not finite numbers."""

    def __init__(self, run: Run, voice: Voice) -> None:
        self._run, self._voice = run, voice
        self.parts = run.parts
        self._submitted = 0  # segments

    def submit(self, tokens: Sequence[Tokens]) -> None:
        """See ``notewave.backends.protocol.Run.submit``."""
        self._run.submit(tokens)
        self._submitted += 1

    def go_on(self) -> None:
        """See ``notewave.backends.protocol.Run.go_on``."""
        self._run.go_on()

    def mel(self) -> Pending:
        """See ``notewave.backends.protocol.Run.mel``."""
        return self._checked(self._run.mel())

    def sound(self, last: bool) -> Pending:
        """See ``notewave.backends.protocol.Run.sound``."""
        return self._checked(self._run.sound(last))

    def rest(self) -> Pending:
        """See ``notewave.backends.protocol.Run.rest``."""
        return self._checked(self._run.rest())

    def _checked(self, pending: Pending) -> Pending:
        return _Numbers(pending, self._voice, f"segment {self._submitted - 1}")


class _Numbers:
    """What was asked of a run, looked at when it is there."""

    def __init__(self, pending: Pending, voice: Voice, asked: str) -> None:
        self._pending, self._voice, self._asked = pending, voice, asked

    def result(self) -> FloatArray:
        """See ``notewave.backends.protocol.Pending.result``. Raises VoiceError."""
        return check_numbers(self._pending.result(), self._voice, self._asked)


def check_numbers(given: FloatArray, voice: Voice, asked: str) -> FloatArray:
    """What a voice gave for what was asked of it. Raises VoiceError where that is not all finite numbers."""
    if not np.isfinite(given).all():
        raise VoiceError(
            f"voice {voice.name!r} gave values for {asked} that are no finite numbers: its weights hold such, or "
            "overflow at the precision that they run at. Export the voice again; on a GPU, bf16 and fp32 overflow "
            "later than fp16."
        )
    return given


def check_tokens(given: Any, segment: int, voice: Voice) -> Tokens:
    """Tokens [N] of a segment, as a voice takes them. Raises MidiError for what is none, or too long for the voice."""
    if (dialect := dialect_of(given)) != voice.dialect:
        raise MidiError(
            f"segment {segment} is in the dialect of {dialect}; voice {voice.name!r} reads {voice.dialect}. "
            "Give it the song itself, or tokens that notewave.tokenize made with dialect=voice.dialect."
        )
    tokens = as_array(given)
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu" or not 1 <= len(tokens) <= dialect.max_tokens:
        raise MidiError(
            f"segment {segment} is {quoted(tokens)}; it must be integers [1 to {dialect.max_tokens}], "
            "as notewave.tokenize returns them."
        )
    if not dialect.is_segment(tokens):
        ending = "".join(f", with one {end} at the end" for end in dialect.rules.ends)
        raise MidiError(f"segment {segment} is no token sequence: ids are {PAD + 1} to {dialect.end - 1}{ending}.")
    if len(tokens) > (most := voice.dimensions.max_tokens):
        raise MidiError(
            f"segment {segment} has {len(tokens)} tokens; voice {voice.name!r} takes {most}. Thin out its notes."
        )
    return dialect.tokens(tokens)
