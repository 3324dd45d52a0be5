"""A keyboard's messages to notes: channels, programs, splits and layers, pedals and resets."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from notewave.errors import ArgumentError
from notewave.song.router import DRUMS, Instrument, Part, Router, parse_maps

PEDAL, SOUND_OFF, RESET_CONTROLLERS, NOTES_OFF = 64, 120, 121, 123


class Heard:
    """A Live that holds its caller to the order of notes, and writes down what it was told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.sounding: set[tuple[int, int, bool]] = set()

    def note_on(self, pitch: int, velocity: int = 80, program: int = 0, drum: bool = False) -> None:
        assert 0 <= pitch < 128
        assert 1 <= velocity < 128
        assert 0 <= program < 128
        assert (pitch, program, drum) not in self.sounding, "the note before has ended"
        self.sounding.add((pitch, program, drum))
        self.said.append(f"on {'drum' if drum else program} {pitch} {velocity}")

    def note_off(self, pitch: int, program: int = 0, drum: bool = False) -> None:
        self.sounding.remove((pitch, program, drum))
        self.said.append(f"off {'drum' if drum else program} {pitch}")

    def all_off(self) -> None:
        self.sounding.clear()
        self.said.append("all off")


def on(key: int, velocity: int = 100, channel: int = 1) -> tuple[int, int, int]:
    return 0x90 + channel - 1, key, velocity


def off(key: int, channel: int = 1) -> tuple[int, int, int]:
    return 0x80 + channel - 1, key, 64


def control(controller: int, value: int = 0, channel: int = 1) -> tuple[int, int, int]:
    return 0xB0 + channel - 1, controller, value


def program(number: int, channel: int = 1) -> tuple[int, int]:
    return 0xC0 + channel - 1, number


def down(channel: int = 1) -> tuple[int, int, int]:
    return control(PEDAL, 127, channel)


def up(channel: int = 1) -> tuple[int, int, int]:
    return control(PEDAL, 0, channel)


def played(messages: Sequence[Sequence[int]], start: int = 0, maps: Sequence[str] = ()) -> list[str]:
    heard = Heard()
    router = Router(heard, start, parse_maps(maps))
    for message in messages:
        router.take(message)
    return heard.said


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([on(60), off(60)], ["on 0 60 100", "off 0 60"]),
        ([on(60), on(60, 0)], ["on 0 60 100", "off 0 60"]),
        ([off(60)], []),
        ([on(60), on(60, 90), off(60)], ["on 0 60 100", "off 0 60", "on 0 60 90", "off 0 60"]),
        ([on(36, channel=10), off(36, channel=10)], ["on drum 36 100", "off drum 36"]),
        ([program(5, channel=10), on(36, channel=10)], ["on drum 36 100"]),
        ([program(40), on(60), on(61, channel=2)], ["on 40 60 100", "on 0 61 100"]),
        ([on(60), program(40), off(60), on(60)], ["on 0 60 100", "off 0 60", "on 40 60 100"]),
        ([on(60), program(40), on(60)], ["on 0 60 100", "off 0 60", "on 40 60 100"]),
        ([(0xE0, 0, 64), (0xA0, 60, 1), (0xD0, 5), control(0, 3), control(1, 9), (0xF8,), (0xFE,)], []),
    ],
)
def test_keys_and_programs(messages: list[tuple[int, ...]], said: list[str]) -> None:
    assert played(messages) == said


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([down(), on(60), off(60), up()], ["on 0 60 100", "off 0 60"]),
        ([down(), on(60), up(), off(60)], ["on 0 60 100", "off 0 60"]),
        ([down(), on(60), off(60)], ["on 0 60 100"]),
        ([down(), on(60), off(60), on(60, 90)], ["on 0 60 100", "off 0 60", "on 0 60 90"]),
        ([down(), on(60), off(60), on(60, 90), up()], ["on 0 60 100", "off 0 60", "on 0 60 90"]),
        ([control(PEDAL, 64), on(60), off(60)], ["on 0 60 100"]),
        ([down(), control(PEDAL, 63), on(60), off(60)], ["on 0 60 100", "off 0 60"]),
        ([down(), on(60), program(40), off(60), up()], ["on 0 60 100", "off 0 60"]),
        ([down(), on(60, channel=2), off(60, channel=2)], ["on 0 60 100", "off 0 60"]),
        ([down(2), on(60, channel=2), off(60, channel=2), on(62), off(62)], ["on 0 60 100", "on 0 62 100", "off 0 62"]),
    ],
)
def test_a_pedal_holds_its_channel(messages: list[tuple[int, ...]], said: list[str]) -> None:
    assert played(messages) == said


def test_channels_that_share_a_program_do_not_end_each_other_s_notes() -> None:
    messages = [on(60), on(60, 90, channel=2), off(60)]
    assert played(messages) == ["on 0 60 100", "off 0 60", "on 0 60 90"]
    assert played([*messages, off(60, channel=2)])[-1] == "off 0 60"
    assert played([down(), on(60), off(60), on(60, 90, 2), off(60, 2)])[-1] == "on 0 60 90"
    assert played([down(), on(60), off(60), on(60, 90, 2), off(60, 2), up()])[-1] == "off 0 60"


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (control(SOUND_OFF), ["off 0 60", "off 0 62"]),
        (control(RESET_CONTROLLERS), ["off 0 62"]),
        ((0xFF,), ["all off"]),
        *((control(number), []) for number in range(NOTES_OFF, 128)),  # the pedal holds both
    ],
)
def test_what_ends_notes_under_the_pedal(message: tuple[int, ...], said: list[str]) -> None:
    """Key 60 is down, key 62 is up."""
    assert played([on(60), down(), on(62), off(62), message])[2:] == said


@pytest.mark.parametrize("number", range(NOTES_OFF, 128))
def test_all_notes_off_is_all_keys_up(number: int) -> None:
    assert played([on(60), on(62), control(number)])[2:] == ["off 0 60", "off 0 62"]
    assert played([on(60), down(), on(62), control(number), up()])[2:] == ["off 0 60", "off 0 62"]


def test_a_reset_gives_programs_back_and_the_end_of_all_notes_does_not() -> None:
    heard = Heard()
    router = Router(heard, 7)
    for message in (program(40), down(), on(60)):
        router.take(message)
    router.all_off()
    router.take(on(61))
    router.take(off(61))
    router.reset()
    router.take(on(62))
    assert heard.said == ["on 40 60 100", "all off", "on 40 61 100", "off 40 61", "all off", "on 7 62 100"]


@pytest.mark.parametrize(
    ("maps", "messages", "said"),
    [
        (["1=0+48"], [on(60), off(60)], ["on 0 60 100", "on 48 60 100", "off 0 60", "off 48 60"]),
        (["1=32:..59,0:60.."], [on(59), on(60)], ["on 32 59 100", "on 0 60 100"]),
        (["1=32:40..50"], [on(39), on(40), on(50), on(51)], ["on 32 40 100", "on 32 50 100"]),
        (["1=32:40"], [on(39), on(40), on(41), off(41)], ["on 32 40 100"]),
        (["1=3,3+4:60.."], [on(60), off(60)], ["on 3 60 100", "on 4 60 100", "off 3 60", "off 4 60"]),
        (["1=drums:..47,0:48.."], [on(36), on(48)], ["on drum 36 100", "on 0 48 100"]),
        (["10=9"], [on(36, channel=10)], ["on 9 36 100"]),
        (
            ["*=5", "2=6"],
            [on(60), on(61, channel=2), on(36, channel=10)],
            ["on 5 60 100", "on 6 61 100", "on drum 36 100"],
        ),
        (["1=5"], [program(9), program(9, 2), on(60), on(61, channel=2)], ["on 5 60 100", "on 9 61 100"]),
        (["*=5"], [program(9, 3), on(60, channel=3)], ["on 5 60 100"]),
    ],
)
def test_splits_and_layers(maps: list[str], messages: list[tuple[int, ...]], said: list[str]) -> None:
    assert played(messages, maps=maps) == said


def test_maps_are_parts() -> None:
    low, both = Part((Instrument(32),), 0, 59), Part((Instrument(0), Instrument(48)), 60, 127)
    assert parse_maps(["1=32:..59,0+48:60..", "16=drums"]) == {0: (low, both), 15: (Part((DRUMS,)),)}
    assert parse_maps(["3=1:.."]) == {2: (Part((Instrument(1),)),)}
    assert 9 not in parse_maps(["*=1"])
    assert parse_maps([]) == {}


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        (["0+48"], "it has no ="),
        (["0=1"], "'0' is no channel from 1 to 16"),
        (["17=1"], "'17' is no channel from 1 to 16"),
        (["=1"], "'' is no channel"),
        (["1="], "'' is no programs with their keys"),
        (["1=128"], "'128' is no program from 0 to 127"),
        (["1=piano"], "'piano' is no program"),
        (["1=1++2"], "'1++2' is no programs with their keys"),
        (["1=1:60..50"], "its keys 60..50 are none"),
        (["1=1:128"], "'128' is no key from 0 to 127"),
        (["1=1:"], "'' is no key"),
        (["1=1:1.2"], "'1:1.2' is no programs with their keys"),
        (["1=1,"], "'' is no programs"),
        (["1=1", "1=2"], "channel 1 is mapped twice"),
        (["*=1", "*=2"], "channel * is mapped twice"),
        (["1=²"], "no program"),
        (["1=" + "9" * 5000], "no program"),
    ],
)
def test_what_is_no_map(texts: list[str], reason: str) -> None:
    with pytest.raises(ArgumentError, match=r"Write CHANNEL=PROGRAM") as error:
        parse_maps(texts)
    assert reason in str(error.value)


@given(st.text(alphabet="0123456789*=+:.,drums ", max_size=20))
def test_any_text_is_a_map_or_refused(text: str) -> None:
    try:
        maps = parse_maps([text])
    except ArgumentError:
        return
    assert all(0 <= part.low <= part.high < 128 and part.instruments for parts in maps.values() for part in parts)


@pytest.mark.parametrize("number", [-1, 128, "0", None, True])
def test_what_is_no_program(number: object) -> None:
    with pytest.raises(ArgumentError, match="the program is"):
        Router(Heard(), number)  # type: ignore[arg-type]


CHANNEL = st.integers(0, 15) | st.sampled_from([0, 1, 9])
KEY = st.sampled_from([59, 60, 61]) | st.integers(0, 127)
CONTROLS = st.sampled_from([PEDAL, SOUND_OFF, RESET_CONTROLLERS, *range(NOTES_OFF, 128)]) | st.integers(0, 127)
SENSIBLE = st.one_of(
    st.tuples(CHANNEL.map(lambda channel: 0x90 | channel), KEY, st.integers(0, 127)),
    st.tuples(CHANNEL.map(lambda channel: 0x80 | channel), KEY, st.integers(0, 127)),
    st.tuples(CHANNEL.map(lambda channel: 0xB0 | channel), CONTROLS, st.integers(0, 127)),
    st.tuples(CHANNEL.map(lambda channel: 0xC0 | channel), st.integers(0, 127)),
    st.just((0xFF,)),
)
RANDOM = st.binary(max_size=6) | st.lists(st.integers(-300, 300), max_size=4)
MAPS = st.sampled_from([[], ["1=0+48"], ["*=32:..59,0:60..", "2=0"], ["10=3", "1=drums+0"]])


@settings(max_examples=400)
@given(st.lists(SENSIBLE | RANDOM, max_size=60), MAPS)
def test_every_note_ends(messages: list[Sequence[int]], maps: list[str]) -> None:
    """Whatever came: after all keys are up, and all pedals, nothing sounds; Heard asserts order and ranges."""
    heard = Heard()
    router = Router(heard, 0, parse_maps(maps))
    for message in messages:
        router.take(message)
    for channel in range(1, 17):
        for key in range(128):
            router.take(off(key, channel))
        router.take(up(channel))
    assert not heard.sounding


@given(st.lists(SENSIBLE, max_size=60), MAPS)
def test_resetting_channels_ends_every_note(messages: list[Sequence[int]], maps: list[str]) -> None:
    heard = Heard()
    router = Router(heard, 0, parse_maps(maps))
    for message in messages:
        router.take(message)
    for channel in range(1, 17):
        router.take(control(RESET_CONTROLLERS, channel=channel))
        router.take(control(NOTES_OFF, channel=channel))
    assert not heard.sounding
