"""A sound card that is a file or a pipe, which the real PortAudio plays into by ALSA; and programs that play there."""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

HAS_ALSA = sys.platform == "linux" and all(map(ctypes.util.find_library, ("portaudio", "asound")))
real = pytest.mark.skipif(
    not HAS_ALSA or importlib.util.find_spec("sounddevice") is None, reason="needs PortAudio with ALSA"
)
CARD = 'pcm.!default { type file  slave.pcm { type null }  file "PATH"  format "raw" }'


def card_environment(card: Path, kind: str = CARD) -> dict[str, str]:
    """What makes a file or pipe the sound card of a program: variables of its environment."""
    configuration = card.with_suffix(".conf")
    configuration.write_text(kind.replace("PATH", str(card)))
    return {"ALSA_CONFIG_PATH": str(configuration)}


def start_program(
    program: str, card: Path | None = None, kind: str = CARD, cwd: Path | None = None
) -> subprocess.Popen[str]:
    """A program of Python's that plays, on a sound card that is a file, or on none."""
    environment = os.environ | ({} if card is None else card_environment(card, kind))
    return subprocess.Popen(
        [sys.executable, "-c", program], env=environment, cwd=cwd, text=True, stdout=subprocess.PIPE
    )


def said(process: subprocess.Popen[str]) -> str:
    """What a program printed, which ended well."""
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return output


class Listener(threading.Thread):
    """Hears a sound card that is a named pipe, as fast as sound is heard."""

    def __init__(self, pipe: Path, samples_per_second: int = 16000) -> None:
        """samples_per_second: of all channels, 4 bytes each."""
        super().__init__()
        os.mkfifo(pipe)
        self.pipe, self.rate, self.heard = pipe, samples_per_second, b""
        self.pause_s = 0.0  # to listen no more for

    def run(self) -> None:
        with self.pipe.open("rb", buffering=0) as stream:
            while block := stream.read(self.rate // 20 * 4):
                self.heard += block
                pause_s, self.pause_s = self.pause_s, 0.0
                time.sleep(len(block) / 4 / self.rate + pause_s)
