"""``notewave render``: songs into sound, each as it is made."""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NoReturn, TextIO

import numpy as np

import notewave
from notewave.checks import shown
from notewave.cli.options import sampling_options, song_source, synthesizer_options
from notewave.cli.outputs import Task, folders, is_shown, plan
from notewave.cli.streams import complain, for_progress
from notewave.errors import MidiError, OutputError
from notewave.files import STANDARD_OUTPUT, ReaderGone
from notewave.song.edits import cut
from notewave.sound.audio import BLOCK, Audio, AudioWriter, audio_file
from notewave.sound.mel import SAMPLE_RATE, FloatArray, MelStream
from notewave.sound.plot import save_mel_picture
from notewave.sound.resample import Resampler, check_rate

if TYPE_CHECKING:
    from tqdm import tqdm

    from notewave.sound.player import Player


def render(options: argparse.Namespace) -> int:
    """Render each song; 1 where some of several could not be, which does not stop the others."""
    check_rate(options.rate)
    with folders(options.out, options.plot):
        tasks = plan(options)
        report = sys.stderr if any(map(is_shown, tasks)) else sys.stdout
        renderer, failed = _Renderer(options, report), 0
        for task in tasks:
            try:
                renderer.render(task)
            except ReaderGone:
                continue
            except (MidiError, OutputError) as error:
                if len(tasks) == 1:
                    raise
                complain(error if shown(task.song) in str(error) else f"{task.name}: {error}")
                failed += 1
        if len(tasks) > 1:
            print(f"{len(tasks) - failed} of {len(tasks)} songs rendered", file=report)
    return 1 if failed else 0


class _Renderer:
    """Renders songs one after another with one voice, which is opened when the first song has been read."""

    def __init__(self, options: argparse.Namespace, report: TextIO) -> None:
        self._options, self._report = options, report

    @functools.cached_property
    def _synthesizer(self) -> notewave.Synthesizer:
        return notewave.Synthesizer(self._options.voice, **synthesizer_options(self._options))

    def render(self, task: Task) -> None:
        """Render a song and report on it. Raises ReaderGone where nobody hears it any more."""
        options, start = self._options, time.perf_counter()
        # The song comes before the voice, which takes longer, and what may be refused before its output is opened.
        whole = notewave.read(song_source(task.song), strict=options.strict, max_bytes=options.max_bytes)
        notes, synthesizer = _part(whole, options), self._synthesizer
        tokens = notewave.tokenize(
            notes, strict=options.strict, max_seconds=options.max_seconds, dialect=synthesizer.voice.dialect
        )
        steps = len(tokens) * (options.steps or synthesizer.voice.sampling.steps)
        mel, mels, resampler, frames = MelStream(), [], Resampler(SAMPLE_RATE, options.rate), 0
        with _bar(task, steps) as bar:
            sung = synthesizer.stream(tokens, **sampling_options(options), on_step=bar.update)
            with self._opened(task) as write:
                for chunk in _fitted(sung, whole, options):
                    write(resampler.push(chunk, last=False))
                    mels += [mel.push(chunk)] if task.plot else []
                    frames += len(chunk)
                write(resampler.push(np.empty(0, np.float32), last=True))
                seconds = time.perf_counter() - start
        print(
            f"{_name(task.out)}: {frames / SAMPLE_RATE:.2f} s of music in {seconds:.2f} s on {synthesizer.backend}, "
            f"real-time factor {seconds * SAMPLE_RATE / max(frames, 1):.3f}",
            file=self._report,
        )
        if task.plot:
            title = f"{task.name}, voice {synthesizer.voice.name}"
            save_mel_picture({title: np.concatenate([*mels, mel.finish()])}, task.plot)
            print(f"{_name(task.plot)}: its mel", file=self._report)

    @contextlib.contextmanager
    def _opened(self, task: Task) -> Iterator[Callable[[FloatArray], None]]:
        """What takes a task's samples as they come: its file, the sound card, or both."""
        rate = self._options.rate
        with contextlib.ExitStack() as opened:
            sinks: list[AudioWriter | Player] = []
            if self._options.play:
                from notewave.sound.player import Player

                sinks.append(opened.enter_context(Player(rate, self._options.card)))
            if task.out is not None:
                sinks.append(opened.enter_context(audio_file(task.out, rate)))  # there before all is heard

            def write(samples: FloatArray) -> None:
                for sink in sinks:
                    sink.write(samples)

            yield write


def _part(notes: notewave.Notes, options: argparse.Namespace) -> notewave.Notes:
    """The part of a song that is asked for."""
    return cut(notes, options.start, options.end) if options.start or options.end is not None else notes


def _fitted(sung: Iterable[Audio], whole: notewave.Notes, options: argparse.Namespace) -> Iterator[FloatArray]:
    """The samples [n] of a song, or those of the part of it that is asked for: as long as that is, silence included."""
    if options.end is None:
        yield from (audio.samples for audio in sung)
        return
    left = round(min((options.end - options.start) * SAMPLE_RATE, sys.maxsize))
    for audio in sung:
        yield audio.samples[:left]
        left -= min(left, len(audio.samples))
    while left and options.end <= whole.seconds:
        yield np.zeros(min(left, BLOCK), np.float32)
        left -= min(left, BLOCK)


def _bar(task: Task, steps: int) -> tqdm[NoReturn]:
    """Progress in a song, on a terminal."""
    from tqdm import tqdm

    return tqdm(total=steps, unit="step", desc=task.name, file=for_progress(), disable=not sys.stderr.isatty())


def _name(path: str | None) -> str:
    """An output, as the report names it."""
    if path is None:
        return "sound card"
    return "standard output" if path == STANDARD_OUTPUT else shown(path)
