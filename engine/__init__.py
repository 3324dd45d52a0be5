"""notewave: MIDI to music by spectrogram diffusion.

Submodules are imported when a name is first used, so that ``import notewave`` and ``notewave.tokenize`` stay light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from notewave.errors import (
        ArgumentError,
        BackendError,
        MidiError,
        NotewaveError,
        OutputError,
        SamplingError,
        ToolError,
        TrainingError,
        VoiceError,
    )
    from notewave.live.live import Live, LiveStats
    from notewave.song import edits
    from notewave.song.dialect import Dialect
    from notewave.song.editing import Edits
    from notewave.song.midi import Reading, examine, read, tokenize
    from notewave.song.notes import Notes
    from notewave.song.parts import parts
    from notewave.song.writing import to_midi
    from notewave.sound.audio import Audio
    from notewave.synthesizer import Synthesizer
    from notewave.voice.folder import Voice
    from notewave.voice.library import bundled_voices, voices, voices_folder

__all__ = [
    "ArgumentError",
    "Audio",
    "BackendError",
    "Dialect",
    "Edits",
    "Live",
    "LiveStats",
    "MidiError",
    "Notes",
    "NotewaveError",
    "OutputError",
    "Reading",
    "SamplingError",
    "Synthesizer",
    "ToolError",
    "TrainingError",
    "Voice",
    "VoiceError",
    "bundled_voices",
    "edits",
    "examine",
    "parts",
    "read",
    "to_midi",
    "tokenize",
    "voices",
    "voices_folder",
]
__version__ = "0.1.0"

_HOMES = {
    "Audio": "sound.audio",
    "Synthesizer": "synthesizer",
    "Voice": "voice.folder",
    "bundled_voices": "voice.library",
    "voices": "voice.library",
    "voices_folder": "voice.library",
    "Dialect": "song.dialect",
    "Edits": "song.editing",
    "Live": "live.live",
    "LiveStats": "live.live",
    "Notes": "song.notes",
    "Reading": "song.midi",
    "examine": "song.midi",
    "parts": "song.parts",
    "read": "song.midi",
    "to_midi": "song.writing",
    "tokenize": "song.midi",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'notewave' has no attribute {name!r}")
    if name == "edits":
        return import_module("notewave.song.edits")
    return getattr(import_module(f"notewave.{_HOMES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
