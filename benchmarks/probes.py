"""Short phrases that ask a voice for one thing at a time: how loud a velocity is, how each program sounds.

Each is a song of one segment, sung by the voice and played by FluidSynth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pretty_midi
from numpy.typing import NDArray

from notewave.benchmarks.judges import loudness_db
from notewave.benchmarks.songs import play_notes, play_song
from notewave.export.material.ensembles import FIRST_KEY, LAST_KEY
from notewave.sampling.options import SamplingOptions
from notewave.song.dialect import Dialect, Tokens
from notewave.song.midi import tokenize
from notewave.song.notes import Notes
from notewave.sound.distance import in_range, mel_error, silence_of
from notewave.sound.mel import log_mel
from notewave.synthesizer import Synthesizer

VELOCITIES = (16, 32, 48, 64, 80, 96, 112, 127)
PLAYERS: dict[str, int | None] = {"piano": 0, "nylon guitar": 24, "strings": 48, "trumpet": 56, "drums": None}
TUNE, STROKES = (60, 64, 67, 72, 67, 64), (36, 38, 36, 36, 38, 38)  # pitches; low drum and snare
TWO_OCTAVES, OCTAVE = (48, 55, 60, 64, 72), 12
BASSES = range(32, 40)  # programs that play an octave lower
SOFT_AND_LOUD = (56, 104)  # velocities in turn
BEAT_SECONDS = 0.45  # so that the last note can die away
LENGTH = 0.8  # of a note, in beats; ends on the 10 ms grid of tokens
KEYS_A_PHRASE = 16  # drums
FAMILIES = (
    *("pianos", "chromatic percussion", "organs", "guitars", "basses", "strings", "ensembles", "brass"),
    *("reeds", "pipes", "synth leads", "synth pads", "synth effects", "ethnic", "percussive", "sound effects"),
)  # each of eight programs
DRUMS = "drums"

_Mel = NDArray[np.float32]


@dataclass(frozen=True)
class Dynamics:
    """Loudness against velocity, of a voice and of FluidSynth: by player, at each velocity, mean power in dB.

    The voice's are shifted by one offset, with which the errors have the least mean.
    """

    velocities: tuple[int, ...]
    ours_db: dict[str, list[float]]
    fluidsynth_db: dict[str, list[float]]

    @property
    def errors_db(self) -> dict[str, float]:
        """Mean absolute difference of each player."""
        return {
            name: float(np.abs(np.subtract(ours, self.fluidsynth_db[name])).mean())
            for name, ours in self.ours_db.items()
        }

    @property
    def error_db(self) -> float:
        """Mean of all players' errors."""
        return float(np.mean([*self.errors_db.values()]))


@dataclass(frozen=True)
class Programs:
    """Mel error in parts of what the mean mel of all phrases has: 0 is FluidSynth's own sound, 1 knows nothing."""

    families: dict[str, float]  # each of General MIDI's, and drums
    programs: dict[str, float]  # all 128, by number and name

    @property
    def ratio(self) -> float:
        """Mean of the families' ratios."""
        return float(np.mean([*self.families.values()]))

    def worst(self, count: int = 5) -> dict[str, float]:
        """The programs that the voice sings worst, from the worst on."""
        ranked = sorted(self.programs.items(), key=lambda one: -one[1])
        return dict(ranked[:count])


def measure_dynamics(
    synthesizer: Synthesizer, soundfont: Path, options: SamplingOptions, velocities: Sequence[int] = VELOCITIES
) -> Dynamics:
    """Sing and play each player's phrase at every velocity."""
    ours: dict[str, list[float]] = {}
    theirs: dict[str, list[float]] = {}
    for name, program in PLAYERS.items():
        phrases = [_phrase(TUNE if program is not None else STROKES, program, (velocity,)) for velocity in velocities]
        tokens = [_tokens(phrase, synthesizer.voice.dialect) for phrase in phrases]
        ours[name] = [loudness_db(synthesizer.spectrogram(one, **options)) for one in tokens]
        theirs[name] = [loudness_db(log_mel(play_notes(phrase, 1, soundfont))) for phrase in phrases]
    offset_db = float(np.median(np.subtract([*theirs.values()], [*ours.values()])))
    shifted = {name: [loudness + offset_db for loudness in curve] for name, curve in ours.items()}
    return Dynamics(tuple(velocities), shifted, theirs)


def measure_programs(
    synthesizer: Synthesizer,
    soundfont: Path,
    options: SamplingOptions,
    level: float,
    phrases: dict[str, dict[str, Notes]] | None = None,
) -> Programs:
    """Sing and play a phrase of each program and key of the percussion map; the voice is taken ``level`` nats louder.

    phrases: by family and name, in the place of all. Programs that the voice's tokens do not tell apart score alike.
    """
    asked = program_phrases() if phrases is None else phrases
    pairs: dict[bytes, tuple[_Mel, _Mel]] = {}  # ours and the true mel [T, M], by tokens

    def sung(phrase: Notes) -> tuple[_Mel, _Mel]:
        tokens = _tokens(phrase, synthesizer.voice.dialect)
        key = tokens[0].tobytes()
        if key not in pairs:
            pairs[key] = synthesizer.spectrogram(tokens, **options), play_song(tokens, soundfont).mel
        return pairs[key]

    mels = {family: {name: sung(phrase) for name, phrase in named.items()} for family, named in asked.items()}
    every = [true for named in mels.values() for _, true in named.values()]
    mean = np.mean([in_range(true, silence_of(true)).mean(axis=0) for true in every], axis=0)
    errors = _each(mels, lambda ours, true: mel_error(ours, true, level))
    means = _each(mels, lambda _, true: mel_error(np.broadcast_to(mean, true.shape), true))
    families = {name: sum(errors[name].values()) / sum(means[name].values()) for name in mels}
    programs = {
        name: error / means[family][name]
        for family in mels
        if family != DRUMS
        for name, error in errors[family].items()
    }
    return Programs(families, programs)


def program_phrases() -> dict[str, dict[str, Notes]]:
    """The phrases of ``measure_programs`` by family and name."""
    phrases: dict[str, dict[str, Notes]] = {family: {} for family in FAMILIES}
    for program in range(128):
        shift = -OCTAVE if program in BASSES else 0
        pitches = [pitch + shift for pitch in TWO_OCTAVES]
        name = f"{program} {pretty_midi.program_to_instrument_name(program)}"
        phrases[FAMILIES[program // 8]][name] = _phrase([*pitches, *pitches[::-1]], program, SOFT_AND_LOUD)
    keys = range(FIRST_KEY, LAST_KEY + 1)
    groups = [keys[start : start + KEYS_A_PHRASE] for start in range(0, len(keys), KEYS_A_PHRASE)]
    phrases[DRUMS] = {f"{group[0]}-{group[-1]}": _phrase(group, None, SOFT_AND_LOUD, 0.3) for group in groups}
    return phrases


def _phrase(
    pitches: Sequence[int], program: int | None, velocities: Sequence[int], beat_s: float = BEAT_SECONDS
) -> Notes:
    """Pitches one after the other, each nearly as long as a beat, by a program or, for None, on drums."""
    count = len(pitches)
    onset_s = np.array([beat_s * number for number in range(count)])
    velocity = np.resize(velocities, count)
    programs, drums = np.full(count, program or 0), np.full(count, program is None)
    return Notes(onset_s, onset_s + LENGTH * beat_s, np.array(pitches), velocity, programs, drums)


def _tokens(phrase: Notes, dialect: Dialect) -> list[Tokens]:
    """A phrase's one segment."""
    return tokenize(phrase, dialect=dialect)[:1]


def _each(
    mels: dict[str, dict[str, tuple[_Mel, _Mel]]], judge: Callable[[_Mel, _Mel], float]
) -> dict[str, dict[str, float]]:
    """A figure of each pair of mels, by family and name."""
    return {family: {name: judge(ours, true) for name, (ours, true) in named.items()} for family, named in mels.items()}
