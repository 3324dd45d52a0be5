"""A sound or mel that a song goes on from, in the place of the segment before its first.

The context encoder reads the mel of the 5.12 s before a segment (Hawthorne et al. 2022, section 3.2); whose it is, a
segment's that was made or any other sound's, the networks are not told.
"""

from __future__ import annotations

import os
from typing import Any, TypeAlias

import numpy as np
import soundfile

from notewave.checks import quoted, shown
from notewave.errors import SamplingError
from notewave.inputs import open_regular
from notewave.sound.audio import Audio
from notewave.sound.mel import (
    FRAMES,
    HOP,
    LOG_MIN,
    MAX_LOG_MEL,
    MELS,
    PUBLISHED_RANGE,
    SAMPLE_RATE,
    SEGMENT_SECONDS,
    WINDOW,
    FloatArray,
    MelRange,
    log_mel,
)
from notewave.sound.resample import Resampler, check_rate

MAX_CHANNELS = 32  # of a file
SPARE_SECONDS = 0.25  # read before those that count, since resampling reaches so far at most

Context: TypeAlias = "Audio | str | os.PathLike[str] | FloatArray"  # an array is a log-mel [T, M]


def network_context(given: Context, mel_range: MelRange = PUBLISHED_RANGE) -> FloatArray:
    """What a song goes on from -> the mel [FRAMES, M] in the networks' range: its last 5.12 s, after silence if short.

    given: sound, the path of a file of it, or a log-mel [T, M]. Raises SamplingError for what is none of them.
    """
    if isinstance(given, (str, os.PathLike)):
        given = _read_end(given)
    elif not isinstance(given, (Audio, np.ndarray)):
        raise SamplingError(
            f"the context is {quoted(given)}; it must be an Audio, the path of a sound file, or a log-mel [frames, "
            f"{MELS}]."
        )
    mel = (_end_of(given) if isinstance(given, Audio) else check_mel(given, "the context"))[-FRAMES:]
    return mel_range.to_network(np.pad(mel, ((FRAMES - len(mel), 0), (0, 0)), constant_values=LOG_MIN))


def check_mel(mel: Any, name: str = "the mel") -> FloatArray:
    """A log-mel [T, M] as float32. Raises SamplingError for what is none."""
    if not isinstance(mel, np.ndarray) or mel.dtype.kind != "f" or mel.shape[1:] != (MELS,) or not len(mel):
        raise SamplingError(f"{name} is {quoted(mel)}; it must be floats [frames, {MELS}], as spectrogram gives them.")
    if not (np.abs(mel) <= MAX_LOG_MEL).all():
        raise SamplingError(
            f"{name} has values that are no numbers or beyond {MAX_LOG_MEL:g} either way; it must be a natural "
            "logarithm of magnitudes, as spectrogram gives it."
        )
    return mel.astype(np.float32, copy=False)


def _end_of(audio: Audio) -> FloatArray:
    """The log-mel [T, M] of a sound's end, of frames that are whole: a half one would sound as if the sound ended."""
    samples, rate = audio.samples, audio.sample_rate
    if not isinstance(samples, np.ndarray) or samples.ndim != 1 or samples.dtype.kind != "f" or not len(samples):
        raise SamplingError(f"the context's samples are {quoted(samples)}; they must be mono floats [n] in [-1, 1].")
    check_rate(rate)
    samples = samples[-round((SEGMENT_SECONDS + SPARE_SECONDS) * rate) :].astype(np.float32)
    if not np.isfinite(samples).all():
        raise SamplingError("the context has samples that are no finite numbers. Give floats [n] in [-1, 1].")
    samples = Resampler(rate, SAMPLE_RATE).push(samples, last=True)[-((FRAMES - 1) * HOP + WINDOW) :]
    short = -(len(samples) - WINDOW) % HOP if len(samples) > WINDOW else WINDOW - len(samples)
    return log_mel(np.pad(samples, (short, 0)))[: (len(samples) + short - WINDOW) // HOP + 1]


def _read_end(path: str | os.PathLike[str]) -> Audio:
    """The end of a file of sound, its channels mixed to one."""
    try:
        descriptor = open_regular(path)
    except OSError as error:
        raise SamplingError(
            f"the context {shown(os.fspath(path))} cannot be opened: {error.strerror or error}. Give the path of a "
            "sound file."
        ) from error
    try:
        with soundfile.SoundFile(descriptor, closefd=False) as file:
            if file.channels > MAX_CHANNELS:
                raise SamplingError(f"the context has {file.channels} channels, over {MAX_CHANNELS}. Mix it down.")
            check_rate(file.samplerate)
            most = round((SEGMENT_SECONDS + SPARE_SECONDS) * file.samplerate)
            file.seek(max(file.frames - most, 0))
            samples = file.read(most, dtype="float32", always_2d=True)
            return Audio(samples.mean(axis=1, dtype=np.float32), file.samplerate)
    except soundfile.LibsndfileError as error:
        raise SamplingError(
            f"the context {shown(os.fspath(path))} cannot be read as sound: {error.error_string} Give a WAV, FLAC, Ogg "
            "or MP3 file."
        ) from error
    finally:
        os.close(descriptor)
