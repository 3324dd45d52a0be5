"""``notewave render``: songs into sound, each as it is made; and their parts."""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

import numpy as np

import notewave
from notewave.checks import counted, shown
from notewave.cli.options import edits_of, sampling_options, song_source, synthesizer_options
from notewave.cli.outputs import Task, as_folder, folders, is_shown, plan
from notewave.cli.streams import complain, for_progress
from notewave.errors import MidiError, OutputError
from notewave.files import STANDARD_OUTPUT, ReaderGone, atomic_file
from notewave.song.beats import Beats
from notewave.song.dialect import Tokens
from notewave.song.edits import merge
from notewave.song.midi import heed
from notewave.sound.audio import FORMATS, AudioWriter, audio_file
from notewave.sound.mel import SAMPLE_RATE, FloatArray, MelStream
from notewave.sound.part import fitted
from notewave.sound.plot import save_mel_picture
from notewave.sound.resample import Resampler, check_rate
from notewave.stems import MIX, stem_tokens, sum_error

if TYPE_CHECKING:
    from tqdm import tqdm

    from notewave.sound.player import Player

log = logging.getLogger(__name__)

Fit = Callable[[Iterable[FloatArray]], Iterator[FloatArray]]  # a song's chunks, as long as was asked


def render(options: argparse.Namespace) -> int:
    """Render each song; 1 where some of several could not be, which does not stop the others."""
    check_rate(options.rate)
    edits = edits_of(options)  # what they cannot be is said before anything is done
    with folders(options.out, options.plot, options.midi_out, as_folder(options.stems)):
        tasks = plan(options)
        report = sys.stderr if any(map(is_shown, tasks)) else sys.stdout
        renderer, failed = _Renderer(options, edits, report), 0
        for task in tasks:
            try:
                with folders(task.stems):
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

    def __init__(self, options: argparse.Namespace, edits: notewave.Edits, report: TextIO) -> None:
        self._options, self._edits, self._report = options, edits, report

    @functools.cached_property
    def _synthesizer(self) -> notewave.Synthesizer:
        return notewave.Synthesizer(self._options.voice, **synthesizer_options(self._options))

    def render(self, task: Task) -> None:
        """Render a song, and its parts, and report on it. Raises ReaderGone where nobody hears it any more."""
        options, edits, start = self._options, self._edits, time.perf_counter()
        # The song comes before the voice, which takes longer, and what may be refused before its output is opened.
        whole, beats = self._read(task.song)
        notes, dialect = edits.change(whole, beats), self._synthesizer.voice.dialect
        if edits.velocity != 1 and dialect.velocities == 1:
            log.warning("%s sings soft and loud alike: --velocity changes nothing.", self._synthesizer.voice.name)
        tokens = notewave.tokenize(notes, strict=options.strict, max_seconds=options.max_seconds, dialect=dialect)
        fit = functools.partial(fitted, seconds=edits.seconds, is_filled=edits.is_filled(whole))
        parts = stem_tokens(notes, tokens, dialect, options.max_seconds) if task.stems else {}
        mel, taps = MelStream(), list[Callable[[FloatArray], None]]()
        mels, mix = list[FloatArray](), list[FloatArray]()
        if task.plot:
            taps.append(lambda chunk: mels.append(mel.push(chunk)))
        if parts:
            taps.append(mix.append)
        paths = [path for path in (task.out, self._stem(task, MIX)) if path]
        frames = self._sing(task.name, tokens, fit, paths, taps, plays=options.play)
        seconds = time.perf_counter() - start
        print(
            f"{_name(paths[0] if paths else None)}: {frames / SAMPLE_RATE:.2f} s of music in {seconds:.2f} s on "
            f"{self._synthesizer.backend}, real-time factor {seconds * SAMPLE_RATE / max(frames, 1):.3f}",
            file=self._report,
        )
        if parts:
            self._sing_parts(task, parts, fit, np.concatenate(mix))
        if task.plot:
            title = f"{task.name}, voice {self._synthesizer.voice.name}"
            save_mel_picture({title: np.concatenate([*mels, mel.finish()])}, task.plot)
            print(f"{_name(task.plot)}: its mel", file=self._report)
        if task.midi:
            with atomic_file(task.midi) as temporary:
                temporary.write_bytes(notewave.to_midi(notes))
            print(f"{_name(task.midi)}: its notes", file=self._report)

    def _read(self, song: str) -> tuple[notewave.Notes, Beats | None]:
        """A song's notes, with those of the songs to be sung beside it; and where its beats are."""
        options = self._options
        reading = notewave.examine(song_source(song), max_bytes=options.max_bytes)
        notes = heed(reading, options.strict)
        others = [
            notewave.read(song_source(other), strict=options.strict, max_bytes=options.max_bytes)
            for other in options.merge
        ]
        return merge(notes, *others) if others else notes, reading.beats

    def _sing_parts(self, task: Task, parts: Mapping[str, list[Tokens]], fit: Fit, mix: FloatArray) -> None:
        """Render each part alone into a file of its own, and say how far their sum is from the mix [n]."""
        start, total = time.perf_counter(), np.zeros_like(mix)
        for name, tokens in parts.items():
            chunks: list[FloatArray] = []
            self._sing(f"{task.name}, {name}", tokens, fit, [self._stem(task, name)], [chunks.append])
            total += np.concatenate(chunks)
        print(
            f"{shown(task.stems)}: {counted(len(parts), 'part')} in {time.perf_counter() - start:.2f} s; their sum is "
            f"{sum_error(total, mix):.2f} nats from the mix",
            file=self._report,
        )

    def _stem(self, task: Task, name: str) -> str:
        """The path of a part's file, in the format of the song's; empty where there is none."""
        if not task.stems:
            return ""
        suffix = Path(task.out or "").suffix.lower()
        return os.path.join(task.stems, name + (suffix if suffix in FORMATS else ".wav"))  # noqa: PTH118

    def _sing(
        self,
        name: str,
        tokens: Sequence[Tokens],
        fit: Fit,
        paths: Sequence[str],
        taps: Sequence[Callable[[FloatArray], None]],
        plays: bool = False,
    ) -> int:
        """Sing a song into files, on the sound card and to whoever taps its samples; returns how many there were."""
        options, synthesizer, frames = self._options, self._synthesizer, 0
        resampler = Resampler(SAMPLE_RATE, options.rate)
        with _bar(name, len(tokens) * (options.steps or synthesizer.voice.sampling.steps)) as bar:
            sung = synthesizer.stream(tokens, **sampling_options(options), on_step=bar.update)
            with self._opened(paths, plays) as write:
                for chunk in fit(audio.samples for audio in sung):
                    write(resampler.push(chunk, last=False))
                    for tap in taps:
                        tap(chunk)
                    frames += len(chunk)
                write(resampler.push(np.empty(0, np.float32), last=True))
        return frames

    @contextlib.contextmanager
    def _opened(self, paths: Sequence[str], plays: bool) -> Iterator[Callable[[FloatArray], None]]:
        """What takes samples as they come: files, the sound card, or both."""
        rate = self._options.rate
        with contextlib.ExitStack() as opened:
            sinks: list[AudioWriter | Player] = []
            if plays:
                from notewave.sound.player import Player

                sinks.append(opened.enter_context(Player(rate, self._options.card)))
            sinks += [opened.enter_context(audio_file(path, rate)) for path in paths]  # there before all is heard

            def write(samples: FloatArray) -> None:
                for sink in sinks:
                    sink.write(samples)

            yield write


def _bar(name: str, steps: int) -> tqdm[NoReturn]:
    """Progress in a song, on a terminal."""
    from tqdm import tqdm

    return tqdm(total=steps, unit="step", desc=name, file=for_progress(), disable=not sys.stderr.isatty())


def _name(path: str | None) -> str:
    """An output, as the report names it."""
    if path is None:
        return "sound card"
    return "standard output" if path == STANDARD_OUTPUT else shown(path)
