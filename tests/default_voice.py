"""The voice that tests of a real voice take."""

from notewave.synthesizer import DEFAULT_VOICE
from notewave.voice.folder import Voice
from notewave.voice.library import bundled_voices


def default_voice(substitute: Voice) -> Voice:
    """The bundled voice, or the substitute where the package was made without one."""
    return Voice.load(DEFAULT_VOICE) if DEFAULT_VOICE in bundled_voices() else substitute
