"""A browser at the page of a server, and what its loudspeaker is given: for tests of the page."""

from __future__ import annotations

import base64
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from notewave.benchmarks.page import drop
from notewave.sound.mel import SAMPLE_RATE

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PATIENCE_S = 30.0
EAR = 32768  # samples that are heard at once: 2.05 s

# Whatever goes to the loudspeaker also goes to an ear that tests read.
LISTENER = f"""
window.ears = [];
const connect = AudioNode.prototype.connect;
AudioNode.prototype.connect = function (to, ...rest) {{
  if (to instanceof AudioDestinationNode) {{
    const ear = to.context.createAnalyser();
    ear.fftSize = {EAR};
    connect.call(this, ear);
    window.ears.push(ear);
  }}
  return connect.call(this, to, ...rest);
}};
"""
HEARD = """() => {
  const ear = window.ears.at(-1);
  const sound = new Float32Array(ear ? ear.fftSize : 0);
  ear?.getFloatTimeDomainData(sound);
  let bytes = "";
  for (const byte of new Uint8Array(sound.buffer)) bytes += String.fromCharCode(byte);
  return btoa(bytes);
}"""


@dataclass
class Visit:
    """A page that is open, what it asked for and what it complained of."""

    page: Page
    asked: list[str] = field(default_factory=list)  # addresses, in their order
    complaints: list[str] = field(default_factory=list)

    def drop(self, *files: Path) -> None:
        """Drop files on it, as a hand does that drags them from a folder."""
        drop(self.page, *files)

    def heard(self) -> NDArray[np.float32]:
        """The last sound [EAR] that was given to the loudspeaker, silence before there was any."""
        sound = np.frombuffer(base64.b64decode(self.page.evaluate(HEARD)), np.float32)
        return np.pad(sound, (EAR - len(sound), 0))

    @property
    def loudness(self) -> float:
        """Root mean square of the last tenth of a second."""
        return float(np.sqrt(np.mean(self.heard()[-SAMPLE_RATE // 10 :] ** 2)))

    @property
    def position(self) -> float:
        """Where the playhead is, in seconds."""
        return float(self.page.locator("#position").input_value())

    def eventually(self, what: Callable[[], Any]) -> Any:
        """What comes to be true, once it is."""
        end = time.monotonic() + PATIENCE_S
        while not (found := what()):
            assert time.monotonic() < end, "it never came to be"
            self.page.wait_for_timeout(20)
        return found


@contextlib.contextmanager
def visiting(browser: Browser, address: str, **context: Any) -> Iterator[Visit]:
    """The page at an address, in a context of its own."""
    opened = browser.new_context(**context)
    try:
        page = opened.new_page()
        page.set_default_timeout(1000 * PATIENCE_S)
        visit = Visit(page)
        page.on("request", lambda request: visit.asked.append(request.url))
        page.on("console", lambda message: message.type == "error" and visit.complaints.append(message.text))
        page.on("pageerror", lambda error: visit.complaints.append(str(error)))
        page.add_init_script(LISTENER)
        page.goto(address)
        yield visit
    finally:
        opened.close()


def find(heard: NDArray[np.float32], sung: NDArray[np.float32]) -> tuple[float, float]:
    """Where a sound is in a longer one: the correlation at the best place, 1 if it is the same, and its time in s."""
    size = 1 << (len(sung) + len(heard)).bit_length()
    spectrum = np.fft.rfft(sung, size) * np.fft.rfft(heard, size).conj()
    products = np.fft.irfft(spectrum, size)[: len(sung) - len(heard) + 1]
    energy = np.concatenate([[0.0], np.cumsum(sung.astype(np.float64) ** 2)])
    norms = np.sqrt((energy[len(heard) :] - energy[: -len(heard)]) * np.sum(heard.astype(np.float64) ** 2))
    correlation = products / np.maximum(norms, 1e-6)
    place = int(np.argmax(correlation))
    return float(correlation[place]), place / SAMPLE_RATE
