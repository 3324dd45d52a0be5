"""``notewave serve``: what each path answers; the sound is bit for bit what the library and the command make."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from serving import BAND, Braked, decoded, metrics, sentence, serving, song

import notewave
from notewave import Synthesizer
from notewave.cli import main
from notewave.serve.server import Server
from notewave.song.editing import EDITS, Edits
from notewave.sound.audio import Audio
from notewave.sound.mel import SAMPLE_RATE
from notewave.sound.resample import Resampler

DATA = Path(__file__).parent / "data"
ONE_STEP = {"steps": 1, "guidance": 1.0}


@pytest.fixture(scope="module")
def singer() -> Synthesizer:
    return Synthesizer("band", backend="cpu", threads=1)


@pytest.fixture(scope="module")
def served(singer: Synthesizer) -> Iterator[tuple[Server, httpx.Client]]:
    with serving(singer) as server:
        yield server


@pytest.fixture
def client(served: tuple[Server, httpx.Client]) -> httpx.Client:
    return served[1]


def saved(audio: Audio, path: Path) -> bytes:
    audio.save(path)
    return path.read_bytes()


# Sound


@pytest.mark.parametrize("rate", [16000, 44100])
@pytest.mark.parametrize("form", ["wav", "flac", "s16le", "f32le"])
def test_sound_is_bit_for_bit_the_library_s(
    client: httpx.Client, singer: Synthesizer, tmp_path: Path, form: str, rate: int
) -> None:
    query = {"format": form, "rate": rate, "seed": 7, **ONE_STEP}
    response = client.post("/render", params=query, content=song(3))
    assert response.status_code == 200, response.text
    samples = singer.render(song(3), seed=7, **ONE_STEP).samples
    resampler = Resampler(SAMPLE_RATE, rate)
    true = np.concatenate([resampler.push(samples, last=False), resampler.push(samples[:0], last=True)])
    if form == "f32le":
        np.testing.assert_array_equal(np.frombuffer(response.content, "<f4"), true)
    elif form == "wav":
        assert response.content == saved(Audio(true, rate), tmp_path / "true.wav")
    else:
        levels, _ = decoded(saved(Audio(true, rate), tmp_path / "true.wav"))
        given, given_rate = (
            decoded(response.content) if form == "flac" else (np.frombuffer(response.content, "<i2"), rate)
        )
        np.testing.assert_array_equal(given, levels)
        assert given_rate == rate
    if form != "flac":
        assert int(response.headers["content-length"]) == len(response.content)
    told = {name: response.headers[f"x-notewave-{name}"] for name in ("seconds", "rate", "voice", "seed")}
    assert told == {"seconds": "15.36", "rate": str(rate), "voice": "band", "seed": "7"}


@pytest.mark.parametrize(
    ("start", "end"), [(3.0, None), (0.0, 6.0), (4.5, 17.0), (0.0, 500.0), (5.5, 5.75)], ids=lambda value: str(value)
)
def test_a_part_is_what_the_command_renders(
    client: httpx.Client, tmp_path: Path, start: float, end: float | None
) -> None:
    (tmp_path / "song.mid").write_bytes(BAND)
    part = {"start": start} | ({} if end is None else {"end": end})
    words = [f"--{name}={value}" for name, value in {**part, "steps": 1, "guidance": 1}.items()]
    assert main(["render", str(tmp_path / "song.mid"), "-o", str(tmp_path / "true.wav"), *words]) == 0
    response = client.post("/render", params={**part, "steps": 1, "guidance": 1}, content=BAND)
    assert response.content == (tmp_path / "true.wav").read_bytes()
    seconds = (len(response.content) - 44) / 2 / SAMPLE_RATE
    assert float(response.headers["x-notewave-seconds"]) == pytest.approx(seconds, abs=1e-3)


def test_edits_change_the_song_that_is_sung(client: httpx.Client, singer: Synthesizer) -> None:
    edits = {"mute": ["drums", "flute"], "transpose": ["-2"], "tempo": ["1.5"], "remap": ["0=48"]}
    response = client.post("/render", params={**edits, "format": "f32le", **ONE_STEP}, content=BAND)
    true = singer.render(Edits.parse(edits).apply(BAND), **ONE_STEP)
    np.testing.assert_array_equal(np.frombuffer(response.content, "<f4"), true.samples)
    plain = client.post("/render", params={"format": "f32le", **ONE_STEP}, content=BAND)
    assert plain.content != response.content


def test_the_first_sound_is_sent_before_the_last_is_made() -> None:
    with serving(braked := Braked("band", backend="cpu", threads=1)) as (_, client):
        query = {"format": "s16le", **ONE_STEP}
        braked.let(2)  # two segments of three; the third waits
        with client.stream("POST", "/render", params=query, content=song(3)) as response:
            parts, first = response.iter_raw(), b""
            while len(first) < 2 * 4 * SAMPLE_RATE:
                first += next(parts)
            assert braked.made <= 3
            braked.let()
            rest = b"".join(parts)
    assert len(first + rest) == 2 * 3 * 81920


@pytest.mark.parametrize("form", ["wav", "flac"])
def test_stems_are_the_parts_alone_and_the_mix(
    client: httpx.Client, singer: Synthesizer, tmp_path: Path, form: str
) -> None:
    response = client.post("/stems", params={"format": form, **ONE_STEP, "mute": "flute"}, content=BAND)
    assert (response.status_code, response.headers["content-type"]) == (200, "application/zip")
    archive = zipfile.ZipFile(io.BytesIO(response.content))
    assert archive.testzip() is None
    told = json.loads(archive.read("stems.json"))
    names = ["acoustic-grand-piano", "electric-bass-finger", "string-ensemble-1", "drums"]
    assert told["parts"] == names
    assert archive.namelist() == [*(f"{name}.{form}" for name in ("mix", *names)), "stems.json"]
    sounds = {name: decoded(archive.read(f"{name}.{form}"))[0] for name in ("mix", *names)}
    assert len({len(sound) for sound in sounds.values()}) == 1
    true = singer.stems(Edits(mute=("flute",)).apply(BAND), **ONE_STEP)
    for name, audio in {"mix": true.mix, **true}.items():
        np.testing.assert_array_equal(sounds[name], decoded(saved(audio, tmp_path / "true.wav"))[0], err_msg=name)
    assert told["error_nats"] == pytest.approx(true.error, rel=1e-4)


# Songs


def test_notes_are_the_song_s_and_its_parts_are_those_that_were_sent(client: httpx.Client) -> None:
    told = client.post("/notes", params={"mute": "drums", "transpose": 1}, content=BAND).json()
    whole, edited = notewave.read(BAND), Edits(mute=("drums",), transpose=1).apply(BAND)
    assert [(part["name"], part["notes"]) for part in told["parts"]] == [
        ("acoustic-grand-piano", 145),
        ("electric-bass-finger", 45),
        ("string-ensemble-1", 42),
        ("flute", 48),
        ("drums", 142),
    ]
    assert sum(part["notes"] for part in told["parts"]) == len(whole)
    assert told["parts"][1] == {
        "name": "electric-bass-finger",
        "title": "Electric Bass (finger)",
        "program": 33,
        "is_drum": False,
        "notes": 45,
    }
    assert told["parts"][-1]["program"] is None and told["parts"][-1]["is_drum"]
    assert told["seconds"] == edited.seconds and told["mended"] == []
    rows = np.array(told["notes"])
    programs = np.array([part["program"] for part in told["parts"][:-1]])
    np.testing.assert_allclose(rows[:, 0], edited.onset_s, atol=1e-4)
    np.testing.assert_array_equal(rows[:, 2], edited.pitch)
    np.testing.assert_array_equal(programs[rows[:, 3].astype(int)], edited.program)


def test_a_part_that_edits_made_follows_those_that_were_sent(client: httpx.Client) -> None:
    told = client.post("/notes", params={"remap": "flute=violin"}, content=BAND).json()
    assert [part["name"] for part in told["parts"]][-3:] == ["flute", "drums", "violin"]
    assert told["parts"][-1]["notes"] == 0
    assert 5 in {row[3] for row in told["notes"]} and 3 not in {row[3] for row in told["notes"]}


def test_what_was_mended_of_a_song_is_told_and_strict_refuses_it(client: httpx.Client) -> None:
    told = client.post("/notes", content=BAND[:-40]).json()
    assert told["mended"]
    refused = client.post("/notes", params={"strict": "true"}, content=BAND[:-40])
    assert refused.status_code == 400 and "incomplete" in sentence(refused)


def test_midi_is_the_song_edited(client: httpx.Client) -> None:
    response = client.post("/midi", params={"solo": "flute", "shift": 0.5}, content=BAND)
    assert response.headers["content-type"] == "audio/midi"
    given, true = notewave.read(response.content), Edits(solo=("flute",), shift=0.5).apply(BAND)
    np.testing.assert_allclose(np.sort(given.onset_s), np.sort(true.onset_s), atol=1e-3)
    np.testing.assert_array_equal(np.sort(given.pitch), np.sort(true.pitch))


# The server about itself


def test_voices_are_told_with_what_they_are(client: httpx.Client, singer: Synthesizer) -> None:
    told = client.get("/voices").json()
    assert [(voice["name"], voice["default"], voice["has_vocoder"]) for voice in told["voices"]] == [
        ("band", True, True)
    ]
    assert told["voices"][0]["sampling"] == vars(singer.voice.sampling)
    assert told["voices"][0]["dialect"] == {"velocities": 1, "programs": "slakh"}
    assert len(told["programs"]) == 128 and told["programs"][0] == "Acoustic Grand Piano"
    assert "ddim" in told["samplers"] and told["limits"]["max_seconds"] == 600


def test_the_page_and_its_files_are_served_and_nothing_beside_them(client: httpx.Client) -> None:
    page = client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff" and page.headers["referrer-policy"] == "no-referrer"
    assert client.get("/page/api.js").headers["content-type"] == "text/javascript; charset=utf-8"
    for path in ("/page/", "/page/index.html", "/page/../settings.py", "/page/..%2fsettings.py", "/page/%2e%2e/app.py"):
        assert client.get(path).status_code == 404


def test_health_and_metrics_are_told(client: httpx.Client) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    before = metrics(client)
    client.post("/render", params=ONE_STEP, content=song(2))
    client.post("/render", params={"steps": 0}, content=song(2))
    after = metrics(client)
    changed = {name: after[name] - before.get(name, 0) for name in after}
    assert changed["notewave_requests_total{/render,200}"] == 1
    assert changed["notewave_requests_total{/render,400}"] == 1
    assert changed["notewave_sound_seconds_total"] == pytest.approx(10.24)
    assert changed["notewave_compute_seconds_total"] > 0 and changed["notewave_first_sound_seconds_count"] == 1
    assert after["notewave_songs_under_way"] == after["notewave_songs_waiting"] == after["notewave_live_sessions"] == 0


def test_the_description_names_every_option_and_each_is_taken(client: httpx.Client) -> None:
    """Structure by the rules of OpenAPI 3.1: references lead somewhere, parameters are unique, answers described."""
    told = client.get("/openapi.json").json()
    assert told["openapi"] == "3.1.0" and told["info"]["title"] and told["info"]["version"]
    examples: dict[str, Any] = {"integer": 1, "number": 1, "boolean": "true", "string": "1", "array": "drums"}
    for path, item in told["paths"].items():
        for method, operation in item.items():
            assert method in ("get", "post") and operation["summary"]
            for status, answer in operation["responses"].items():
                assert status.isdecimal() and (
                    answer.get("description") or resolved(told, answer["$ref"])["description"]
                )
            if method == "post":
                assert operation["requestBody"]["content"] == {"audio/midi": {}}
            parameters = operation.get("parameters", [])
            names = [parameter["name"] for parameter in parameters]
            assert len(names) == len(set(names))
            assert all(one["in"] == "query" and one["description"] and one["schema"]["type"] for one in parameters)
            if path in ("/render", "/stems"):
                assert {"voice", "format", "rate", "seed", "steps", "guidance", "sampler", "strict", *EDITS} <= set(
                    names
                )
            for parameter in parameters if method == "post" else ():
                schema = parameter["schema"]
                value = schema.get("enum", [examples[schema["type"]]])[0]
                refused = client.post(path, params={parameter["name"]: value}, content=b"")
                assert "there is no option" not in sentence(refused), "it is known"
    assert resolved(told, "#/components/schemas/Error")["required"] == ["error"]


def resolved(told: dict[str, Any], reference: str) -> Any:
    for part in reference.removeprefix("#/").split("/"):
        told = told[part]
    return told


# What is refused


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("nonsense=1", "there is no option 'nonsense' of /render. Known: format, voice, rate, "),
        ("provider_options=x", "there is no option"),
        ("voice=../band", "voice is '../band'; it must be one of band"),
        ("format=mp3", "format is 'mp3'; it must be one of wav, flac, s16le, f32le"),
        ("rate=0", "rate is '0'; it must be a whole number from 1 to 192000"),
        ("rate=1e4", "rate is '1e4'; it must be a whole number"),
        ("seed=-1", "seed is '-1'; it must be a whole number from 0 to 18446744073709551615"),
        ("seed=" + "9" * 5000, "seed is '9999"),
        ("steps=101", "steps is '101'; it must be a whole number from 1 to 100"),
        ("guidance=nan", "guidance is 'nan'; it must be a number"),
        ("sampler=magic", "sampler is 'magic'; it must be one of ddpm"),
        ("strict=maybe", "strict is 'maybe'; it must be true or false"),
        ("seed=1&seed=2", "seed is given 2 times. Give it once."),
        ("transpose=x", "transpose"),
        ("solo=kazoo", "there is no part 'kazoo'"),
        ("start=5&end=4", "Give an end after its start"),
        ("start=1e300", "Choose another part"),
        ("tempo=0", "tempo"),
        ("%ff=1", "the query cannot be read"),
        ("&".join(["mute=1"] * 300), "the query cannot be read"),
        ("solo=drums&mute=drums", ""),
    ],
    ids=lambda value: value[:24],
)
def test_what_no_option_can_be_is_refused_in_a_sentence(client: httpx.Client, query: str, message: str) -> None:
    refused = client.post(f"/render?{query}", content=BAND)
    assert refused.status_code == 400, refused.text
    assert message in sentence(refused)


@pytest.mark.parametrize("body", [b"", b"hello", b"MThd", bytes(1000), BAND[:20], b"MThd" + bytes(100000)])
def test_what_is_no_song_is_refused_in_a_sentence(client: httpx.Client, body: bytes) -> None:
    for path in ("/notes", "/midi", "/render", "/stems"):
        refused = client.post(path, content=body)
        assert refused.status_code == 400 and "MIDI" in sentence(refused)


def test_every_dirty_file_is_read(client: httpx.Client) -> None:
    files = sorted((DATA / "dirty").glob("*.mid"))
    assert len(files) > 10
    for path in files:
        answer = client.post("/notes", content=path.read_bytes())
        assert answer.status_code == 200 and answer.json()["notes"], path.name


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "multipart/form-data; boundary=x"}, 415),
        ({"content-type": "application/json"}, 415),
        ({"content-encoding": "gzip"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 200),
        ({"content-type": "audio/midi", "content-encoding": "identity"}, 200),
    ],
)
def test_a_body_that_is_no_plain_file_is_refused(client: httpx.Client, headers: dict[str, str], status: int) -> None:
    response = client.post("/notes", content=BAND, headers=headers)
    assert response.status_code == status
    assert status == 200 or "--data-binary" in sentence(response)


def test_other_paths_and_methods_are_refused(client: httpx.Client) -> None:
    assert (client.get("/nothing").status_code, sentence(client.get("/nothing"))) == (
        404,
        "there is no /nothing here. GET /openapi.json says what there is.",
    )
    refused = client.get("/render")
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
    assert sentence(refused) == "/render takes POST, not GET."
    assert sentence(client.put("/health")) == "/health takes GET, HEAD, not PUT."
    assert client.post("/render/", content=BAND).status_code == 404, "nobody is sent elsewhere"
    assert client.post("/health", content=b"x").status_code == 405
    assert client.request("OPTIONS", "/render").status_code == 405
    for answer in (refused, client.get("/nothing"), client.post("/notes", content=b"x"), client.get("/metrics")):
        assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["cache-control"] == "no-store"
    head = client.head("/health")
    assert (head.status_code, head.content) == (200, b"")
