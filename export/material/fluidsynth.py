"""FluidSynth: the true sound of a song, as voices are taught and judged."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pretty_midi
from numpy.typing import NDArray

from notewave.errors import ToolError
from notewave.export.material.pieces import VELOCITY
from notewave.song.notes import Notes
from notewave.sound.mel import SAMPLE_RATE

SOUNDFONT = Path("/usr/share/sounds/sf2/FluidR3_GM.sf2")  # Debian's fluid-soundfont-gm, MIT licence
TICKS_PER_BEAT = 500  # at 120 beats a minute one tick is 1 ms, so the codec's grid is exact


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


def write_midi(notes: Notes, path: Path) -> None:
    """Write a song as MIDI with every onset and offset on its 10 ms step."""
    midi = pretty_midi.PrettyMIDI(resolution=TICKS_PER_BEAT, initial_tempo=120.0)
    for program, is_drum in sorted(set(zip(notes.program.tolist(), notes.is_drum.tolist(), strict=True))):
        instrument = pretty_midi.Instrument(program, is_drum)
        for index in np.flatnonzero((notes.program == program) & (notes.is_drum == is_drum)):
            start, end = float(notes.onset_s[index]), float(notes.offset_s[index])
            instrument.notes.append(pretty_midi.Note(VELOCITY, int(notes.pitch[index]), start, end))
        midi.instruments.append(instrument)
    midi.write(str(path))


def fluidsynth(notes: Notes, soundfont: Path = SOUNDFONT) -> NDArray[np.float32]:
    """Render a song dry (no reverb, no chorus): mono float32 [n] at 16 kHz, of whatever length its last note needs.

    Raises ToolError where FluidSynth or the soundfont is missing, or no sound comes of them.
    """
    check_fluidsynth(soundfont)
    with tempfile.TemporaryDirectory() as folder:
        midi, raw = Path(folder) / "song.mid", Path(folder) / "song.raw"
        write_midi(notes, midi)
        options = ["-R", "0", "-C", "0", "-g", "1.0", "-r", str(SAMPLE_RATE), "-O", "float", "-T", "raw"]
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
