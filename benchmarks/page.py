"""``notewave bench page``: from the drop of a song on the page of a server to its first sound, in a real browser.

The server is the command in a process of its own, and the browser is Chromium without a window. A file is dropped as a
hand drops it. Sound counts as heard when it leaves the page's audio graph, after the delay that the browser tells of
for its output.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from notewave.benchmarks.report import (
    Case,
    Result,
    Spread,
    add_output_arguments,
    check_counts,
    finish,
    machine,
    new_figure,
    save_plot,
    voice_sums,
)
from notewave.benchmarks.serve import server
from notewave.errors import ToolError
from notewave.synthesizer import DEFAULT_VOICE
from notewave.voice.folder import Voice

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE_MS = 30_000.0
AUDIBLE = 0.002  # of full scale

# An ear beside the loudspeaker looks for the first sample that is none of silence, and when that came.
LISTENER = f"""
const connect = AudioNode.prototype.connect;
let dropped = 0;
addEventListener("drop", () => (dropped = performance.now()), {{ capture: true }});
AudioNode.prototype.connect = function (to, ...rest) {{
  if (to instanceof AudioDestinationNode && !window.ear) {{
    const ear = (window.ear = to.context.createAnalyser());
    connect.call(this, ear);
    const sound = new Float32Array(ear.fftSize);
    const timer = setInterval(() => {{
      ear.getFloatTimeDomainData(sound);
      const now = performance.now();
      const first = sound.findIndex((sample) => Math.abs(sample) > {AUDIBLE});
      if (first < 0) return;
      clearInterval(timer);
      const since = (sound.length - first) / to.context.sampleRate - (to.context.outputLatency || 0);
      document.documentElement.dataset.heard = (now - dropped) / 1000 - since;
    }}, 5);
  }}
  return connect.call(this, to, ...rest);
}};
"""


def browser_path() -> str | None:
    """Where Chromium is; None where there is none."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@contextmanager
def chromium(*words: str) -> Iterator[Browser]:
    """The browser, started with these words. Raises ToolError where it or Playwright is not there."""
    if (path := browser_path()) is None:
        raise ToolError("there is no Chromium here, which the page is measured in. Debian: apt install chromium.")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise ToolError("Playwright, which leads the browser, is not installed: pip install playwright.") from error
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(words))
        try:
            yield browser
        finally:
            browser.close()


def drop(page: Page, *files: Path) -> None:
    """Drop files on a page, as a hand does that drags them from a folder."""
    hand = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(file.resolve()) for file in files], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        hand.send("Input.dispatchDragEvent", {"type": kind, "x": 200, "y": 200, "data": data})
    hand.detach()


def first_sound(browser: Browser, address: str, song: Path) -> float:
    """Seconds from the drop of a song on a page that is fresh to its first sound."""
    page = browser.new_page()
    try:
        page.add_init_script(LISTENER)
        page.goto(address, wait_until="networkidle")
        drop(page, song)
        found = page.locator("html[data-heard]")
        found.wait_for(state="attached", timeout=PATIENCE_MS)
        return float(found.get_attribute("data-heard") or "nan")
    finally:
        page.context.close()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the options of ``notewave bench page``."""
    parser.add_argument("--song", metavar="SONG.mid", type=Path, help="what is dropped (default: the bundled band)")
    parser.add_argument("--drops", type=int, default=10, help="each on a fresh page (default 10)")
    parser.add_argument("--voice", default=DEFAULT_VOICE, help=f"a voice's name or folder (default {DEFAULT_VOICE})")
    parser.add_argument("--threads", type=int, help="of the CPU (default: all processors)")
    parser.add_argument("--backend", default="auto")
    add_output_arguments(parser, repeats=False)


def run(options: argparse.Namespace) -> None:
    """Run ``notewave bench page`` with parsed options."""
    check_counts(drops=options.drops)
    facts = machine()
    given = {name: getattr(options, name) for name in ("voice", "backend", "threads")}
    words = [f"--{name}={value}" for name, value in given.items() if value is not None]
    bundled = resources.as_file(resources.files("notewave").joinpath("bundled", "songs", "band.mid"))
    with chromium() as browser, server(words) as (_, (host, port)), bundled as band:
        song = options.song or band
        seconds = [first_sound(browser, f"http://{host}:{port}/", song) for _ in range(options.drops)]
    case = Case(
        {"song": song.name}, {"drop_to_sound_s": Spread.of(seconds), "worst_s": Spread.of([float(np.max(seconds))])}
    )
    result = Result("page", facts, voice_sums([Voice.load(options.voice)]), [case])
    finish(result, options, result.table(), lambda _, path: _save_plot(seconds, path))


def _save_plot(seconds: Sequence[float], path: str) -> None:
    """Draw the time of each drop."""
    figure = new_figure(6, 3)
    axis = figure.subplots()
    axis.plot(range(1, len(seconds) + 1), seconds, marker="o")
    axis.set(xlabel="drop", ylabel="to the first sound (s)", ylim=(0, None))
    axis.grid(alpha=0.3)
    save_plot(figure, path)
