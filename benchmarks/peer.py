"""diffusers' SpectrogramDiffusionPipeline and this engine side by side: same song, weights, sampler and steps.

Every side makes the tokens of a file, then a segment, in turn, round after round, so that ratios hold though the
machine's speed drifts.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pretty_midi

from notewave.backends.processors import processors
from notewave.benchmarks.clock import CLOCK, add_clock_arguments, set_clock
from notewave.benchmarks.peer_environment import PEER, Peer, Timing, cache_folder, open_peer
from notewave.benchmarks.report import (
    Case,
    Result,
    Setting,
    Spread,
    add_output_arguments,
    check_counts,
    finish,
    machine,
    new_figure,
    save_plot,
    voice_sums,
)
from notewave.benchmarks.speed import synthetic_song
from notewave.benchmarks.trial import TYPICAL_TOKENS, Settings, Trial
from notewave.errors import ToolError
from notewave.sampling.loop import denoise
from notewave.sampling.samplers import sampler_table
from notewave.song.dialect import Tokens
from notewave.song.midi import tokenize
from notewave.song.pedal import SUSTAIN
from notewave.sound.mel import FRAMES, MELS, SEGMENT_SECONDS, FloatArray
from notewave.synthesizer import Synthesizer
from notewave.voice.folder import STORED_PRECISIONS, Voice
from notewave.voice.library import DESCRIPTION

if TYPE_CHECKING:
    from notewave.export.checkpoints.assemble import Checkpoint

log = logging.getLogger(__name__)

PEER_STEPS = 100  # its default
SAMPLER = "ddpm"  # its only one
PARTS = ("tokens", "networks")  # that are compared
SONG_SECONDS, SONG_NOTES = 600, 6000  # of the MIDI file whose tokens are made
BAND = (0, 33, 48, 73)  # General MIDI programs of its instruments, beside drums


class Side(Protocol):
    """One of those compared."""

    name: str

    def segment(self, tokens: Tokens, steps: int) -> Timing:
        """Make a segment with a context."""


class Engine:
    """This engine on a voice."""

    def __init__(self, voice: Voice, threads: int | None, song: Sequence[Tokens], steps: int) -> None:
        self.name = f"notewave {voice.precision}"
        self.voice = voice
        self._trial = Trial(Settings(str(voice.folder), "cpu", threads, SAMPLER, steps, 1.0), song)

    def segment(self, tokens: Tokens, steps: int) -> Timing:
        """See ``Side``; tokens and steps are those given before."""
        values = self._trial.values
        values.clear()
        self._trial.play()
        encoders = ("note_encoder_s", "context_encoder_s", "cross_attention_s")
        return Timing(sum(values[name][-1] for name in encoders), list(values["step_s"]))


class Modules:
    """This project's PyTorch modules, from which the voice's graphs are exported."""

    def __init__(self, checkpoint: Checkpoint, threads: int | None, compiled: bool) -> None:
        import torch

        from notewave.export.networks import SpectrogramDiffusion

        self.name = "our modules, compiled" if compiled else "our modules, eager"
        self._checkpoint, self._torch = checkpoint, torch
        model = checkpoint.model
        assert isinstance(model, SpectrogramDiffusion), "diffusers has no other"
        self._time_embedding = model.time_embedding
        networks = [model.note_encoder, model.context_encoder, model.cross_attention, model.decoder]
        self._networks = [torch.compile(network, dynamic=False) if compiled else network for network in networks]
        torch.set_num_threads(threads or processors())

    def segment(self, tokens: Tokens, steps: int) -> Timing:
        """See ``Side``."""
        torch, checkpoint = self._torch, self._checkpoint
        note_encoder, context_encoder, cross_attention, decoder = self._networks
        table = sampler_table(SAMPLER, steps, checkpoint.schedule, checkpoint.prediction)
        random = np.random.default_rng(0)
        x, noise = random.standard_normal((2, 1, FRAMES, MELS), np.float32)
        mask = torch.zeros(1, 1, 1, len(tokens) + FRAMES)
        with torch.inference_mode():
            film = self._time_embedding(torch.from_numpy(table.time))
            start = CLOCK.now()
            notes = note_encoder(torch.from_numpy(tokens)[None])
            keys_values = cross_attention(notes, context_encoder(torch.from_numpy(x).clamp(-1, 1)))
            encoders_s = CLOCK.now() - start

            def predict(step: int) -> tuple[FloatArray, None]:
                return decoder(torch.from_numpy(x), film[step : step + 1], mask, *keys_values).numpy(), None

            ends = [CLOCK.now()]
            denoise(table, x, predict, lambda draw: noise, on_step=lambda: ends.append(CLOCK.now()))
        return Timing(encoders_s, np.diff(ends).tolist())


def exported(checkpoint: Path, precision: str) -> Voice:
    """The checkpoint as a voice, kept beside it from run to run until the exporting code or the checkpoint changes."""
    from notewave import export
    from notewave.export.convert import export_checkpoint

    digest = hashlib.sha256()
    for path in sorted(Path(export.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    for path in sorted(checkpoint.rglob("*.*")):
        digest.update(f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}".encode())
    folder = checkpoint.with_name(f"{checkpoint.name}-{precision}-{digest.hexdigest()[:12]}")
    if (folder / DESCRIPTION).is_file():
        return Voice.load(folder)
    for old in checkpoint.parent.glob(f"{checkpoint.name}-{precision}-*"):
        shutil.rmtree(old)
    log.warning("exporting %s in %s to %s", checkpoint, precision, folder)
    return export_checkpoint(checkpoint, folder, precision=precision)


def mel_difference(peer: Peer, voice: Voice, song: Sequence[Tokens], steps: int, folder: Path) -> float:
    """Largest difference in nats between the pipeline's mel of a song and the engine's, from the same noise."""
    out = folder / "peer.npz"
    peer.ask(do="song", song=[tokens.tolist() for tokens in song], steps=steps, out=str(out))
    with np.load(out) as found:
        ours = Synthesizer(voice.folder, backend="cpu").spectrogram(
            list(song), sampler=SAMPLER, steps=steps, guidance=1.0, noise=found["noise"]
        )
        return float(np.abs(ours - found["mel"]).max())


def write_song(path: Path) -> None:
    """Write a MIDI file of ``SONG_NOTES`` seeded random notes in ``SONG_SECONDS``: a band, its piano with a pedal."""
    random = np.random.default_rng(0)
    band = [pretty_midi.Instrument(program) for program in BAND] + [pretty_midi.Instrument(0, is_drum=True)]
    onsets_s = random.uniform(0, SONG_SECONDS - 1, SONG_NOTES)
    lengths_s, pitches = random.uniform(0.05, 1, SONG_NOTES), random.integers(36, 84, SONG_NOTES)
    for index, (onset_s, length_s, pitch) in enumerate(zip(onsets_s, lengths_s, pitches, strict=True)):
        band[index % len(band)].notes.append(pretty_midi.Note(90, int(pitch), onset_s, onset_s + length_s))
    band[0].control_changes = [
        pretty_midi.ControlChange(SUSTAIN, 127 * (second % 2), second) for second in range(SONG_SECONDS + 1)
    ]
    midi = pretty_midi.PrettyMIDI()
    midi.instruments = band
    midi.write(str(path))


def token_cases(peer: Peer, song: Path, repeat: int) -> list[Case]:
    """What a MIDI file's tokens take each side, in turn after one to warm up. Raises ToolError if they differ."""
    seconds: dict[str, list[float]] = {PEER: [], "notewave": []}
    for _ in range(repeat + 1):
        answer = peer.ask(do="tokens", song=str(song))
        start = CLOCK.now()
        tokens = tokenize(song)
        seconds["notewave"].append(CLOCK.now() - start)
        seconds[PEER].append(answer["tokenise_s"])
    if [segment.tolist() for segment in tokens] != answer["tokens"]:
        raise ToolError(
            f"Our tokens of {song} are not those of {PEER}: one side misreads it, so their times compare nothing. "
            "See whether tests/test_midi.py passes, and whether both have one version of pretty_midi."
        )
    found = []
    for name, values in seconds.items():
        ours = np.array(values[1:])
        figures = {"tokenise_s": Spread.of(ours), "tokenise_speedup": Spread.of(np.array(seconds[PEER][1:]) / ours)}
        settings: dict[str, Setting] = {"side": name, "song_s": SONG_SECONDS, "notes": SONG_NOTES}
        found.append(Case(settings, figures))
    return found


def take_turns(sides: Sequence[Side], tokens: Tokens, steps: dict[str, int], repeat: int) -> dict[str, list[Timing]]:
    """Each side's segments with as many steps as named, after one to warm up."""
    timings: dict[str, list[Timing]] = {side.name: [] for side in sides}
    for round_ in range(repeat + 1):
        for side in sides:
            timing = side.segment(tokens, steps[side.name])
            if round_:
                timings[side.name].append(timing)
    return timings


def cases(timings: dict[str, list[Timing]], steps: dict[str, int], default_steps: dict[str, int]) -> list[Case]:
    """Figures of each side and how many times faster than the peer it is, round by round.

    A segment at its side's default steps is its encoders and that many of its mean step: measured where as many were
    run, else extrapolated.
    """
    found = []
    peer = _seconds(timings[PEER], default_steps[PEER])
    for name, rounds in timings.items():
        seconds = _seconds(rounds, default_steps[name])
        figures = {f"{what}_s": Spread.of(values) for what, values in seconds.items()}
        figures["real_time_factor"] = Spread.of(seconds["segment"] / SEGMENT_SECONDS)
        figures |= {f"{what}_speedup": Spread.of(peer[what] / values) for what, values in seconds.items()}
        settings: dict[str, Setting] = {
            "side": name,
            "default_steps": default_steps[name],
            "segment": "measured" if steps[name] == default_steps[name] else f"extrapolated from {steps[name]} steps",
        }
        found.append(Case(settings, figures))
    return found


def _seconds(rounds: Sequence[Timing], default_steps: int) -> dict[str, Any]:
    encoders = np.array([timing.encoders_s for timing in rounds])
    segment = encoders + default_steps * np.array([np.mean(timing.steps_s) for timing in rounds])
    return {
        "step": np.array([np.median(timing.steps_s) for timing in rounds]),
        "encoders": encoders,
        "segment": segment,
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the options of ``notewave bench peer``."""
    cache = cache_folder()
    parser.add_argument(
        "--only",
        choices=PARTS,
        help=f"compare only tokens, of a MIDI file of {SONG_SECONDS} s and {SONG_NOTES} notes, or only networks",
    )
    parser.add_argument("--venv", type=Path, default=cache / "venv", help="the peer's environment, made if need be")
    parser.add_argument(
        "--checkpoint", type=Path, default=cache / "base", help="weights; random ones are made if need be"
    )
    parser.add_argument(
        "--precision", nargs="+", default=["fp32", "int8"], choices=STORED_PRECISIONS, help="of our voices"
    )
    parser.add_argument("--tokens", type=int, default=TYPICAL_TOKENS, help="of a segment")
    parser.add_argument("--steps", type=int, default=4, help="denoising steps to time in a segment (default 4)")
    parser.add_argument("--our-steps", type=int, help="our default steps, for whole segments (default: the voice's)")
    parser.add_argument("--full", action="store_true", help="run each side's default steps instead of extrapolating")
    parser.add_argument("--no-modules", action="store_true", help="leave out our PyTorch modules")
    add_clock_arguments(parser)
    add_output_arguments(parser)


def run(options: argparse.Namespace) -> None:
    """Run ``notewave bench peer`` with parsed options."""
    set_clock(options)
    check_counts(repeats=options.repeat, steps=options.steps)
    parts = [options.only] if options.only else PARTS
    checkpoint = options.checkpoint if "networks" in parts else None
    found: list[Case] = []
    voices: list[Voice] = []
    with tempfile.TemporaryDirectory() as temporary, open_peer(options.venv, checkpoint, options.threads) as peer:
        facts = machine() | {f"peer {name}": number for name, number in peer.versions.items()}
        if "tokens" in parts:  # first, while no idle thread of a network spins on CPU time
            write_song(song := Path(temporary) / "song.mid")
            found += token_cases(peer, song, options.repeat)
        if "networks" in parts:
            voices = [exported(options.checkpoint, precision) for precision in options.precision]
            found += network_cases(peer, voices, options, Path(temporary))
    result = Result("peer", facts, voice_sums(voices), found)
    finish(result, options, result.table(), save_peer_plot)


def network_cases(peer: Peer, voices: Sequence[Voice], options: argparse.Namespace, folder: Path) -> list[Case]:
    """Segments of the peer, of our voices of the same weights and of our modules; a folder takes the peer's mels."""
    from notewave.export.checkpoints.diffusers import load_diffusers

    song = synthetic_song(options.tokens, 2)
    our_steps = options.our_steps or voices[0].sampling.steps
    engines = [Engine(v, options.threads, song, our_steps if options.full else options.steps) for v in voices]
    sides: list[Side] = [peer, *engines]
    if not options.no_modules:
        checkpoint = load_diffusers(options.checkpoint)
        sides += [Modules(checkpoint, options.threads, compiled) for compiled in (False, True)]
    defaults = {side.name: PEER_STEPS if side is peer else our_steps for side in sides}
    steps = {side.name: defaults[side.name] if options.full else options.steps for side in sides}
    found = cases(take_turns(sides, song[-1], steps, options.repeat), steps, defaults)
    for voice, case in zip(voices, found[1:], strict=False):
        difference = mel_difference(peer, voice, song, options.steps, folder)
        case.figures["mel_difference_nats"] = Spread.of([difference])
    return found


def save_peer_plot(result: Result, path: str) -> None:
    """Draw how many times faster than the peer each side is."""
    figure = new_figure(8, 1.5 + 0.5 * len(result.cases))
    axis = figure.subplots()
    names = [str(case.settings["side"]) for case in result.cases]
    for offset, what in ((0.0, "tokenise"), (-0.2, "step"), (0.2, "encoders")):
        name = f"{what}_speedup"
        rows = [row for row, case in enumerate(result.cases) if name in case.figures]
        speedups = [result.cases[row].figures[name] for row in rows]
        errors = [[s.median - s.low for s in speedups], [s.high - s.median for s in speedups]]
        if rows:
            axis.barh(np.array(rows) + offset, [s.median for s in speedups], 0.4, xerr=errors, label=what)
    axis.set_yticks(range(len(names)), names)
    axis.set(xscale="log", xlabel=f"times as fast as {PEER}", title=result.machine["processor"])
    axis.legend()
    save_plot(figure, path)
