"""The page of ``notewave serve`` in a real browser: what is seen of a song, what is heard, and what keys do."""

from __future__ import annotations

import base64
import io
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from numpy.typing import NDArray

import notewave
from notewave.benchmarks.page import browser_path, chromium, first_sound
from notewave.song.editing import EDITS, Edits
from notewave.sound.mel import MELS, SAMPLE_RATE, log_mel

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("uvicorn", reason="uvicorn is not installed")
pytest.importorskip("prometheus_client", reason="prometheus_client is not installed")
httpx = pytest.importorskip("httpx", reason="httpx is not installed")

from browser import EAR, PATIENCE_S, Visit, find, visiting  # noqa: E402
from serving import Braked, metrics, serving  # noqa: E402

if TYPE_CHECKING:
    from httpx import Client
    from playwright.sync_api import Browser

    from notewave.serve.server import Server

pytestmark = pytest.mark.skipif(browser_path() is None, reason="chromium is not installed")

PAGE = Path(notewave.__file__).parent / "serve" / "page"
MOST_BYTES = 60_000  # of the page's files together
AUDIBLE = 0.003  # RMS
SAME = 0.999  # correlation of a sound with itself
HEARD_S = EAR / SAMPLE_RATE
WIDE, NARROW = {"width": 1200, "height": 820}, {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def singer() -> notewave.Synthesizer:
    return notewave.Synthesizer(backend="cpu", threads=1)


@pytest.fixture(scope="module")
def served(singer: notewave.Synthesizer) -> Iterator[tuple[Server, Client]]:
    with serving(singer) as opened:
        yield opened


@pytest.fixture(scope="module")
def server(served: tuple[Server, Client]) -> Server:
    return served[0]


@pytest.fixture(scope="module")
def client(served: tuple[Server, Client]) -> Client:
    return served[1]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium("--autoplay-policy=document-user-activation-required") as opened:
        yield opened


@pytest.fixture
def visit(browser: Browser, server: Server) -> Iterator[Visit]:
    with visiting(browser, server.address, viewport=WIDE) as opened:
        yield opened
        assert opened.complaints == []
        assert {urlsplit(address).netloc for address in opened.asked} <= {f"{server.host}:{server.port}", ""}


@pytest.fixture(scope="module")
def band() -> Path:
    return Path(notewave.__file__).parent / "bundled" / "songs" / "band.mid"


@pytest.fixture(scope="module")
def drums(midi_folder: Path) -> Path:
    return midi_folder / "drums_only.mid"


class Truth:
    """What is rendered of a song by the words of a request."""

    def __init__(self, singer: notewave.Synthesizer) -> None:
        self._singer = singer

    def __call__(self, song: Path, query: dict[str, list[str]], **instead: list[str]) -> NDArray[np.float32]:
        """The sound that a query asks for; instead: other words for some of its options."""
        words = {name: values for name, values in (query | instead).items() if values}
        edits = Edits.parse({name: values for name, values in words.items() if name in EDITS})
        steps = int(words["steps"][0]) if "steps" in words else None
        return self._singer.render(edits.apply(song), seed=int(words["seed"][0]), steps=steps).samples


@pytest.fixture(scope="module")
def truth(singer: notewave.Synthesizer) -> Truth:
    return Truth(singer)


def test_a_song_that_is_dropped_is_drawn_and_heard_as_it_is_rendered(visit: Visit, band: Path, truth: Truth) -> None:
    visit.drop(band)
    says(visit, "#status", "Playing")
    assert visit.page.get_by_role("img", name="Piano roll: 422 notes, 5 parts").is_visible()
    assert inked(visit, ".roll") > 0.03
    plays_to(visit, 2.5)
    heard, position = visit.heard(), visit.position
    correlation, at = find(heard, truth(band, rendered(visit)))
    assert correlation > SAME
    assert abs(at + HEARD_S - position) < 0.5  # it is where the playhead is
    assert inked(visit, ".spectrum") > 0.9
    asked = [urlsplit(address).path for address in visit.asked]
    assert asked.count("/notes") == asked.count("/render") == 1


def test_pieces_of_sound_join_without_a_gap(visit: Visit, band: Path, truth: Truth) -> None:
    """A border between pieces is in each window; a sample too many or too few would show."""
    visit.drop(band)
    says(visit, "#status", "Playing")
    whole = truth(band, rendered(visit))
    for seconds in (2.5, 4.5, 6.5):
        plays_to(visit, seconds)
        assert find(visit.heard(), whole)[0] > 0.9999


@pytest.mark.parametrize("key", ["m", "s"])
def test_a_part_that_is_muted_or_alone_is_so_for_the_ear(visit: Visit, band: Path, truth: Truth, key: str) -> None:
    """The key works on the focused part, and again undoes what it did."""
    visit.drop(band)
    says(visit, "#status", "Playing")
    part = visit.page.get_by_role("group", name="Drums, 142 notes")
    button = part.get_by_role("button", name={"m": "Mute Drums", "s": "Solo Drums"}[key])
    part.focus()
    query = changed(visit, lambda: visit.page.keyboard.press(key))
    assert button.get_attribute("aria-pressed") == "true"
    others = [name for name in notewave.parts(notewave.read(band)) if name != "drums"]
    assert query["mute"] == (["drums"] if key == "m" else others)
    hears(visit, truth(band, query))
    assert find(visit.heard(), truth(band, query, mute=[]))[0] < SAME - 0.02
    query = changed(visit, lambda: visit.page.keyboard.press(key))
    assert button.get_attribute("aria-pressed") == "false"
    assert "mute" not in query


def test_all_parts_muted_are_silence_and_ask_for_nothing(visit: Visit, drums: Path) -> None:
    visit.drop(drums)
    visit.eventually(lambda: visit.loudness > AUDIBLE)
    asked = requests(visit)
    visit.page.get_by_role("button", name="Mute Drums").click()
    says(visit, "#status", "All parts are muted")
    visit.eventually(lambda: visit.loudness == 0)
    assert requests(visit) == asked
    assert not visit.page.get_by_role("alert").is_visible()


def test_another_instrument_another_key_and_another_tempo_are_heard(visit: Visit, band: Path, truth: Truth) -> None:
    visit.drop(band)
    says(visit, "#status", "Playing")
    flute = visit.page.get_by_label("Instrument that plays Flute")
    query = changed(visit, lambda: flute.select_option("Trumpet"))
    assert query["remap"] == ["73=56"]
    hears(visit, truth(band, query))
    query = changed(visit, lambda: visit.page.get_by_label("Transpose").press("ArrowLeft"))
    assert (query["transpose"], query["remap"]) == (["-1"], ["73=56"])
    hears(visit, truth(band, query))
    before = visit.position
    query = changed(visit, lambda: visit.page.get_by_label("Tempo").press("End"))
    assert query["tempo"] == ["2"]
    assert float(query["start"][0]) >= before - 0.1  # a start is a time of the file
    visit.eventually(lambda: visit.position < before)  # but the playhead is on the song as it is heard
    hears(visit, truth(band, query))
    says(visit, "#length", "0:15")  # of 25.2 s at twice the tempo: segments of 5.12 s


def test_seed_and_steps_are_the_voices_until_they_are_chosen(visit: Visit, band: Path, truth: Truth) -> None:
    visit.drop(band)
    says(visit, "#status", "Playing")
    assert rendered(visit).keys() == {"format", "voice", "seed"}
    visit.page.get_by_text("Sound", exact=True).click()
    assert visit.page.get_by_label("Steps").get_attribute("placeholder") == "4"
    visit.page.get_by_label("Steps").fill("2")
    query = changed(visit, lambda: visit.page.keyboard.press("Enter"))
    assert (query["steps"], query["seed"]) == (["2"], ["0"])
    visit.page.get_by_label("Seed").fill("7")
    query = changed(visit, lambda: visit.page.keyboard.press("Enter"))
    assert (query["steps"], query["seed"]) == (["2"], ["7"])
    hears(visit, truth(band, query))
    asked = requests(visit)
    visit.page.get_by_label("Steps").fill("-3")
    visit.page.keyboard.press("Enter")
    assert requests(visit) == asked  # nobody can take as many


def test_what_is_made_is_kept_and_what_is_not_is_made_from_there(browser: Browser, band: Path, truth: Truth) -> None:
    singer = Braked(backend="cpu", threads=1)
    singer.let(4)  # steps: one segment
    with serving(singer) as (server, _), visiting(browser, server.address) as visit:
        visit.drop(band)
        visit.eventually(lambda: visit.loudness > AUDIBLE)
        made = truth(band, rendered(visit))
        query = changed(visit, lambda: seek_to(visit, 0.6))
        assert 14 < float(query["start"][0]) < 16
        visit.eventually(lambda: visit.loudness == 0)
        singer.let(8)  # of the steps that wait, four are the first render's
        hears(visit, truth(band, query))
        query = changed(visit, lambda: visit.page.keyboard.press("Home"))  # what is made there is heard without a step
        assert query["start"] == ["4.7"]  # and the rest is made on
        hears(visit, made)


def test_a_pause_is_silent_and_keys_do_what_buttons_do(visit: Visit, band: Path) -> None:
    visit.drop(band)
    visit.eventually(lambda: visit.loudness > AUDIBLE)
    visit.page.keyboard.press("Space")
    says(visit, "#status", "Paused")
    visit.eventually(lambda: visit.loudness == 0)
    at = visit.position
    visit.page.keyboard.press("ArrowRight")
    assert visit.position == pytest.approx(at + 5, abs=0.03)
    visit.page.keyboard.press("Shift+ArrowLeft")
    assert visit.position == pytest.approx(at + 4, abs=0.03)
    visit.page.get_by_label("Volume").focus()
    visit.page.keyboard.press("Home")  # the loudness, not the song
    assert visit.position == pytest.approx(at + 4, abs=0.03)
    visit.page.keyboard.press("End")
    visit.page.get_by_role("button", name="Play", exact=True).press("Space")  # the button's own key, once
    says(visit, "#status", "Playing")
    visit.eventually(lambda: visit.loudness > AUDIBLE)
    assert visit.page.get_by_role("button", name="Pause").is_visible()


def test_a_song_ends_where_it_ends_and_begins_again(visit: Visit, drums: Path) -> None:
    visit.drop(drums)
    says(visit, "#status", "Playing")
    seek_to(visit, 0.97)
    says(visit, "#status", "Paused")
    assert visit.position == pytest.approx(float(visit.page.locator("#position").get_attribute("max") or 0), abs=0.03)
    visit.page.keyboard.press("Space")
    says(visit, "#status", "Playing")
    assert visit.position < 2


def test_what_is_no_song_is_refused_in_the_servers_words(
    visit: Visit, client: Client, band: Path, tmp_path: Path
) -> None:
    """What played before plays on."""
    text = tmp_path / "words.mid"
    text.write_text("these are words")
    refused = client.post("/notes", content=text.read_bytes()).json()["error"]
    visit.drop(band)
    visit.eventually(lambda: visit.loudness > AUDIBLE)
    visit.drop(text)
    alert = visit.page.get_by_role("alert")
    alert.wait_for()
    assert refused in alert.inner_text()
    assert not alert.get_by_role("button", name="Try again").is_visible()  # it would be refused again
    assert visit.page.locator("#name").inner_text() == "band"
    assert visit.loudness > AUDIBLE
    alert.get_by_role("button", name="Dismiss").press("Enter")
    assert not alert.is_visible()
    visit.complaints.clear()  # the browser tells of every 400


def test_a_file_that_is_too_large_is_not_sent(visit: Visit, tmp_path: Path) -> None:
    large = tmp_path / "large.mid"
    large.write_bytes(b"MThd" + bytes(1 << 21))
    says(visit, "[name=voice]", "band")
    asked = requests(visit)
    visit.drop(large)
    says(visit, "#error", f"large.mid has {large.stat().st_size} bytes; this server takes 1048576 at most")
    assert requests(visit) == asked


def test_a_server_that_is_full_says_when_to_try_again(browser: Browser, band: Path) -> None:
    singer = Braked(backend="cpu", threads=1)
    singer.let(4)  # steps: what comes first is there, and says that the song is being made
    with serving(singer, together=1, queue=0) as (server, client), visiting(browser, server.address) as visit:
        with client.stream("POST", "/render?format=s16le", content=band.read_bytes()):
            visit.drop(band)
            alert = visit.page.get_by_role("alert")
            alert.wait_for()
            assert re.search(r"Try again in \d+ s\.", alert.inner_text())
            singer.let()
        visit.eventually(lambda: not metrics(client)["notewave_songs_under_way"])
        alert.get_by_role("button", name="Try again").click()
        visit.eventually(lambda: visit.loudness > AUDIBLE)
        assert not alert.is_visible()


def test_a_server_that_is_gone_is_missed(browser: Browser, singer: notewave.Synthesizer, band: Path) -> None:
    with serving(singer) as (server, _), visiting(browser, server.address) as visit:
        visit.drop(band)
        visit.eventually(lambda: visit.loudness > AUDIBLE)
        server.stop()
        server.stop()
        visit.eventually(lambda: not answers(server.address))
        visit.page.get_by_role("button", name="Mute Drums").click()
        says(visit, "#error", "The server does not answer")
        assert visit.page.get_by_role("alert").get_by_role("button", name="Try again").is_visible()


def test_what_is_downloaded_is_what_the_server_makes(visit: Visit, client: Client, band: Path) -> None:
    visit.page.locator("[name=steps]").evaluate("(field) => (field.value = 1)")
    visit.drop(band)
    says(visit, "#status", "Playing")
    visit.page.get_by_role("button", name="Mute Drums").click()
    sung = {"steps": "1", "mute": "drums"}
    for button, name, path, options in (
        ("WAV", "band.wav", "/render", {"format": "wav", **sung}),
        ("FLAC", "band.flac", "/render", {"format": "flac", **sung}),
        ("MIDI", "band edited.mid", "/midi", {"mute": "drums"}),
        ("Stems", "band stems.zip", "/stems", sung),
    ):
        with visit.page.expect_download() as download:
            visit.page.get_by_role("button", name=button, exact=True).click()
        assert download.value.suggested_filename == name
        made = client.post(path, content=band.read_bytes(), params=options)
        assert made.status_code == 200
        assert contents(download.value.path().read_bytes()) == contents(made.content)


def test_light_and_dark_are_as_the_reader_has_them(browser: Browser, server: Server, band: Path) -> None:
    for scheme, is_dark in (("light", False), ("dark", True)):
        with visiting(browser, server.address, color_scheme=scheme) as visit:
            visit.drop(band)
            says(visit, "#status", "Playing")
            ground = visit.page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
            assert (max(ground) < 64) == is_dark
            assert (min(ground) > 192) != is_dark


def test_a_narrow_screen_has_all_of_it(browser: Browser, server: Server, band: Path) -> None:
    with visiting(browser, server.address, viewport=NARROW) as visit:
        visit.drop(band)
        says(visit, "#status", "Playing")
        assert visit.page.evaluate("document.documentElement.scrollWidth") == NARROW["width"]
        for name in ("Mute Drums", "WAV", "Pause"):
            box = visit.page.get_by_role("button", name=name, exact=True).bounding_box()
            assert box is not None
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= NARROW["width"]


def test_all_controls_have_names_and_keys_reach_them(visit: Visit, band: Path) -> None:
    visit.drop(band)
    says(visit, "#status", "Playing")
    outline = visit.page.locator("body").aria_snapshot()
    assert not re.search(r"- (button|slider|combobox|spinbutton|img)( \[[^\]]*\])*:?$", outline, re.MULTILINE)
    reached = set()
    for _ in range(40):
        visit.page.keyboard.press("Tab")
        name, outline = visit.page.evaluate(FOCUSED)
        reached.add(name)
        assert outline != "none" or name is None  # who sees knows where the focus is
    assert {"Open MIDI…", "Pause", "Position", "Volume", "Drums, 142 notes", "Mute Drums", "Tempo", "WAV"} <= reached


def test_the_file_chooser_is_another_way_in(visit: Visit, band: Path) -> None:
    with visit.page.expect_file_chooser() as chooser:
        visit.page.get_by_role("button", name="Open MIDI…").press("Enter")
    chooser.value.set_files(band)
    visit.eventually(lambda: visit.loudness > AUDIBLE)


def test_a_token_is_known_to_the_page_and_to_nobody_who_looks_at_it(
    browser: Browser, singer: notewave.Synthesizer, band: Path
) -> None:
    with serving(singer, token="a-secret-of-nine") as (server, _):
        with visiting(browser, f"{server.address}?token=a-secret-of-nine") as visit:
            assert visit.page.url == server.address
            visit.drop(band)
            visit.eventually(lambda: visit.loudness > AUDIBLE)
        with visiting(browser, server.address) as visit:
            says(visit, "#error", "token")


def test_a_browser_that_holds_sound_back_is_told_of(browser: Browser, server: Server, band: Path) -> None:
    """A file may come without a hand: browsers want a key or a click before they make a sound."""
    with visiting(browser, "about:blank") as visit:
        data = base64.b64encode(band.read_bytes()).decode()
        visit.page.add_init_script(DROP_WITHOUT_A_HAND % data)
        visit.page.goto(server.address)
        says(visit, "#status", "Press a key or click to hear it")
        visit.page.keyboard.press("Shift")
        visit.eventually(lambda: visit.loudness > AUDIBLE)
        says(visit, "#status", "Playing")


def test_the_spectrogram_is_the_engines_own(visit: Visit, band: Path, truth: Truth) -> None:
    sound = truth(band, {"seed": ["0"]})[: 5 * SAMPLE_RATE + 77]  # frames at the end reach beyond it
    found = np.array(visit.page.evaluate(MELS_IN_PAGE, sound.tolist())).reshape(-1, MELS)
    np.testing.assert_allclose(found, log_mel(sound), atol=1e-4)


def test_keys_are_a_piano_in_live_play(visit: Visit) -> None:
    button = visit.page.get_by_role("button", name="Play live")
    button.click()
    says(visit, "#status", "ms from key to sound")
    visit.page.get_by_label("Instrument that is played live").select_option("Church Organ")
    button.focus()
    assert visit.loudness < AUDIBLE
    visit.page.keyboard.down("KeyA")
    visit.eventually(lambda: visit.loudness > AUDIBLE)
    middle_c = 440 * 2 ** (-9 / 12)
    visit.eventually(lambda: abs(pitch(visit.heard()[EAR // 2 :]) - middle_c) < 4)
    visit.page.keyboard.up("KeyA")
    visit.eventually(lambda: visit.loudness < AUDIBLE)
    button.click()
    assert button.get_attribute("aria-pressed") == "false"


def test_live_play_that_somebody_else_has_is_refused_in_words(visit: Visit, browser: Browser, server: Server) -> None:
    visit.page.get_by_role("button", name="Play live").click()
    says(visit, "#status", "ms from key to sound")
    with visiting(browser, server.address) as other:
        other.page.get_by_role("button", name="Play live").click()
        says(other, "#error", "others play; try again later")
        assert other.page.get_by_role("button", name="Play live").get_attribute("aria-pressed") == "false"


def test_the_benchmark_hears_the_first_sound(browser: Browser, server: Server, band: Path) -> None:
    assert 0 < first_sound(browser, server.address, band) < PATIENCE_S


def test_the_page_is_small_and_asks_nobody_else() -> None:
    """Comments aside."""
    files = {file.name: file.read_text(encoding="utf-8") for file in PAGE.iterdir() if file.is_file()}
    for name, text in files.items():
        addresses = re.findall(r"(?:https?:)?//[a-z][\w.-]+\.[a-z]+", text)
        assert set(addresses) <= {"http://www.w3.org"}, name  # the name of SVG
    code = [re.sub(r"(?<![:\w\"])//.*", "", re.sub(r"(?s)/\*.*?\*/", "", text)) for text in files.values()]
    assert sum(len(text.encode()) for text in code) < MOST_BYTES


FOCUSED = """(() => {
  const at = document.activeElement;
  if (at === document.body) return [null, "none"];
  const label = at.labels?.[0]?.firstChild?.textContent.trim();
  return [at.getAttribute("aria-label") ?? label ?? at.textContent.trim(), getComputedStyle(at).outlineStyle];
})()"""
MELS_IN_PAGE = """async (sound) => {
  const { logMel } = await import("/page/mel.js");
  const samples = Float32Array.from(sound);
  const mels = [];
  for (let start = 0; start < samples.length; start += 320) mels.push(...logMel(samples, start));
  return mels;
}"""
DROP_WITHOUT_A_HAND = """
addEventListener("load", () => {
  const bytes = Uint8Array.from(atob("%s"), (letter) => letter.charCodeAt(0));
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([bytes], "band.mid"));
  document.body.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
});
"""


def says(visit: Visit, selector: str, text: str) -> None:
    """Wait until an element says so."""
    visit.page.locator(selector, has_text=text).wait_for(state="attached")


def plays_to(visit: Visit, seconds: float) -> None:
    """Wait until the playhead is there."""
    visit.eventually(lambda: visit.position >= seconds)


def hears(visit: Visit, sung: NDArray[np.float32]) -> float:
    """Wait until all that is heard is of a song; the correlation."""
    return float(visit.eventually(lambda: found if (found := find(visit.heard(), sung)[0]) > SAME else 0.0))


def rendered(visit: Visit) -> dict[str, list[str]]:
    """What was asked for of the last render."""
    address = next(address for address in reversed(visit.asked) if urlsplit(address).path == "/render")
    return parse_qs(urlsplit(address).query)


def requests(visit: Visit) -> list[str]:
    """All that was asked for of a song."""
    return [address for address in visit.asked if urlsplit(address).path in ("/notes", "/render")]


def changed(visit: Visit, change: Callable[[], object]) -> dict[str, list[str]]:
    """What is asked for of the render that a change brings about."""
    asked = len(visit.asked)
    change()
    visit.eventually(lambda: any(urlsplit(address).path == "/render" for address in visit.asked[asked:]))
    return rendered(visit)


def seek_to(visit: Visit, share: float) -> None:
    """Click on the score, at this share of it from the left."""
    box = visit.page.locator("#score").bounding_box()
    assert box is not None
    visit.page.mouse.click(box["x"] + share * box["width"], box["y"] + 60)


def inked(visit: Visit, selector: str) -> float:
    """The share of a canvas that something is drawn on, beside lines and shades of grey."""
    return float(visit.page.evaluate(INKED, selector))


INKED = """(selector) => {
  const canvas = document.querySelector(selector);
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  let coloured = 0;
  for (let n = 0; n < data.length; n += 4) {
    const [low, high] = [Math.min(data[n], data[n + 1], data[n + 2]), Math.max(data[n], data[n + 1], data[n + 2])];
    coloured += data[n + 3] > 0 && high - low > 16;
  }
  return (4 * coloured) / data.length;
}"""


def pitch(sound: NDArray[np.float32]) -> float:
    """The loudest frequency below 400 Hz, where the first partial of middle C is."""
    loudness = np.abs(np.fft.rfft(sound * np.hanning(len(sound))))
    hertz = np.fft.rfftfreq(len(sound), 1 / SAMPLE_RATE)
    return float(hertz[np.argmax(loudness * ((hertz > 200) & (hertz < 400)))])


def contents(data: bytes) -> dict[str, bytes]:
    """A file's bytes; of an archive those of its files, whose dates differ."""
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return {"": data}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def answers(address: str) -> bool:
    """Whether a server is there."""
    try:
        return bool(httpx.get(address).status_code)
    except httpx.TransportError:
        return False
