"""FluidSynth: the true sound of a song, as voices are taught and judged."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pretty_midi
from numpy.typing import NDArray

from notewave.errors import ToolError
from notewave.song.notes import Notes
from notewave.sound.mel import SAMPLE_RATE

SOUNDFONT = Path("/usr/share/sounds/sf2/FluidR3_GM.sf2")  # Debian's fluid-soundfont-gm, MIT licence
GAIN = 0.3  # of 897 songs the loudest touches 1.0 with one sample, the next has 0.95
PROGRAMS_AT_ONCE = 15  # that MIDI's channels hold beside the drums
TICKS_PER_BEAT = 500  # at 120 beats a minute one tick is 1 ms, so the codec's grid is exact
SHORTEST_S = 0.001  # a note of no length would end before it begins, and sound for ever


def check_fluidsynth(soundfont: Path = SOUNDFONT) -> None:
    """Raise ToolError where FluidSynth or its soundfont is missing: before work, not in the midst of it."""
    if shutil.which("fluidsynth") is None:
        raise ToolError(
            "Songs cannot be rendered: the program fluidsynth is not installed. "
            "Install it (Debian: apt install fluidsynth fluid-soundfont-gm)."
        )
    if not soundfont.is_file():
        raise ToolError(
            f"Songs cannot be rendered: FluidSynth needs a soundfont, and there is none at {soundfont}. "
            "Install it (Debian: apt install fluid-soundfont-gm) or name another."
        )


def as_midi(notes: Notes) -> pretty_midi.PrettyMIDI:
    """A song of at most PROGRAMS_AT_ONCE programs as MIDI, with every onset and offset on its 10 ms step."""
    midi = pretty_midi.PrettyMIDI(resolution=TICKS_PER_BEAT, initial_tempo=120.0)
    for program, is_drum in sorted(set(zip(notes.program.tolist(), notes.is_drum.tolist(), strict=True))):
        instrument = pretty_midi.Instrument(program, is_drum)
        for index in np.flatnonzero((notes.program == program) & (notes.is_drum == is_drum)):
            start = float(notes.onset_s[index])
            end = max(float(notes.offset_s[index]), start + SHORTEST_S)
            instrument.notes.append(pretty_midi.Note(int(notes.velocity[index]), int(notes.pitch[index]), start, end))
        midi.instruments.append(instrument)
    return midi


def fluidsynth(notes: Notes, soundfont: Path = SOUNDFONT) -> NDArray[np.float32]:
    """Render a song dry (no reverb, no chorus): mono float32 [n] at 16 kHz, of whatever length its last note needs.

    Its level is that of GAIN. Drums are those of the standard kit. Raises ToolError where FluidSynth or the soundfont
    is missing, or no sound comes of them.
    """
    check_fluidsynth(soundfont)
    notes = replace(notes, program=np.where(notes.is_drum, 0, notes.program))
    programs = np.unique(notes.program[~notes.is_drum])
    sound = np.zeros(0, np.float32)
    for start in range(0, max(1, len(programs)), PROGRAMS_AT_ONCE):  # what exceeds the channels is played apart
        own = np.isin(notes.program, programs[start : start + PROGRAMS_AT_ONCE]) & ~notes.is_drum
        part = play_midi(as_midi(notes.rows(own | notes.is_drum if start == 0 else own)), soundfont)
        longer, shorter = (sound, part) if len(sound) > len(part) else (part, sound)
        longer[: len(shorter)] += shorter
        sound = longer
    return sound


def play_midi(song: pretty_midi.PrettyMIDI, soundfont: Path = SOUNDFONT) -> NDArray[np.float32]:
    """Render MIDI as it is: mono float32 [n] at 16 kHz. Raises as ``fluidsynth``."""
    with tempfile.TemporaryDirectory() as folder:
        midi, raw = Path(folder) / "song.mid", Path(folder) / "song.raw"
        song.write(str(midi))
        options = ["-R", "0", "-C", "0", "-g", str(GAIN), "-r", str(SAMPLE_RATE), "-O", "float", "-T", "raw"]
        command = ["fluidsynth", "-ni", *options, "-F", str(raw), str(soundfont), str(midi)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        unread = "not a SoundFont" in done.stderr  # it goes on without, in silence
        if done.returncode or unread or not raw.is_file():
            said = " ".join((done.stderr or done.stdout).split())[-200:]
            raise ToolError(
                f"fluidsynth rendered nothing (exit status {done.returncode}): {said or 'it did not say why'}. "
                f"Check that {soundfont} is a soundfont and that {folder} has room."
            )
        return np.fromfile(raw, np.float32).reshape(-1, 2).mean(axis=1)
