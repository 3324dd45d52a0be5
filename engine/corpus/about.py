"""What a corpus is held to: the making and the voices that its first run had, which its folder says."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import notewave
from notewave.checks import quoted
from notewave.corpus.ledger import ABOUT, Ledger
from notewave.corpus.settings import Making
from notewave.corpus.singer import voice_name
from notewave.errors import ArgumentError
from notewave.voice.folder import Voice


class Given(NamedTuple):
    """A voice of a corpus."""

    path: str  # by which it is to be opened on any machine: a name, or a folder
    digest: str  # of its files


def named_voices(voices: Sequence[str]) -> dict[str, Given]:
    """Voices by their names. Raises ArgumentError, VoiceError."""
    named: dict[str, Given] = {}
    for voice in voices:
        if voice_name(voice) in named:
            raise ArgumentError(f"there are two voices {quoted(voice_name(voice))}, which rows know by that. Give one.")
        loaded = Voice.load(voice)
        path = str(loaded.folder.absolute()) if loaded.folder == Path(voice) else voice
        named[voice_name(voice)] = Given(path, _digest(loaded))
    if not named:
        raise ArgumentError("no voice is given. Give the name or the folder of one.")
    return named


def hold_to(ledger: Ledger, making: Making, voices: Mapping[str, Given], seed: int) -> tuple[str, int]:
    """The voice and seed of the corpus' first run, whose making this one must have; it is said if this is the first.

    Raises ArgumentError where it differs, in its making or in what a voice is.
    """
    digests = {name: voice.digest for name, voice in voices.items()}
    said = ledger.about()
    if said is None:
        first = next(iter(voices)), seed
        about = {"notewave": notewave.__version__, "making": making.as_json(), "first": first, "voices": digests}
        ledger.say(about)
        return first
    try:
        held, (voice, seed), known = Making.of_json(said["making"]), said["first"], dict(said["voices"])
        first = str(voice), int(seed)
    except (KeyError, TypeError, ValueError) as error:
        raise ArgumentError(f"{ABOUT} there says no corpus ({error}). Choose another folder.") from error
    for field in dataclasses.fields(Making):
        was, now = getattr(held, field.name), getattr(making, field.name)
        if was != now:
            raise ArgumentError(
                f"the corpus there was begun with {field.name} {quoted(was)}, not {quoted(now)}. Say the same, or make "
                "another corpus in another folder."
            )
    for name, digest in digests.items():
        if known.setdefault(name, digest) != digest:
            raise ArgumentError(
                f"voice {quoted(name)} is another one than that which the corpus there was begun with. Give it another "
                "name, or make another corpus in another folder."
            )
    if known != said["voices"]:
        ledger.say({**said, "voices": known})
    return first


def _digest(voice: Voice) -> str:
    """What a voice is, by the checksums of its files."""
    text = "\n".join(f"{record.sha256} {name}" for name, record in sorted(voice.files.items()))
    return hashlib.sha256(text.encode()).hexdigest()
