"""Targets with faults, by which it is seen that fuzzing finds each kind, and goes on."""

from __future__ import annotations

import faulthandler
import os
import time
from collections.abc import Hashable

import notewave
from fuzz_targets import Target

FAULTY = 0xEE  # the byte that makes the fault


class Planted(Target):
    """Refuses every other input, as it should, and has a fault where a byte is in it."""

    expected = notewave.VoiceError
    words = (bytes([FAULTY]),)

    def corpus(self) -> list[bytes]:
        return [b"bytes that do no harm", b"more of them"]

    def run(self, content: bytes) -> Hashable:
        if FAULTY in content:
            self.fault()
        if len(content) % 2:
            raise notewave.VoiceError("its length is odd. Make it even.")
        return None

    def fault(self) -> None:
        """The fault."""


class Error(Planted):
    def fault(self) -> None:
        raise KeyError("planted")


class Family(Planted):
    def fault(self) -> None:
        raise notewave.MidiError("a voice is no song.")


class Hang(Planted):
    def fault(self) -> None:
        while True:
            pass


class Wait(Planted):
    def fault(self) -> None:
        time.sleep(1000)


class Flood(Planted):
    def fault(self) -> None:
        held = []
        while True:
            held.append(bytearray(1 << 24))


class Shortage(Planted):
    """Asks for more memory than there is, and hides it behind an error of the family."""

    def fault(self) -> None:
        try:
            bytearray(1 << 46)
        except MemoryError as error:
            raise notewave.VoiceError("it is too large.") from error


class Abort(Planted):
    def fault(self) -> None:
        os.abort()


class Fault(Planted):
    def fault(self) -> None:
        faulthandler._sigsegv()  # type: ignore[attr-defined]
