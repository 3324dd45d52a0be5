"""Live play on the CPU: what is read is what was played, when it was; and what late hops and failures sound like."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import notewave
from notewave import ArgumentError, Live, SamplingError, Synthesizer, VoiceError
from notewave.kernels.reference import advance, philox_normal
from notewave.live.fit import _tokens, fit
from notewave.live.hops import Hop, Hops
from notewave.live.pace import Pace
from notewave.live.stitch import FADE_SECONDS, Stitch
from notewave.sampling.loop import denoise
from notewave.sampling.windows import BACK, LEAD, REMADE, Place, Windows
from notewave.song.dialect import PUBLISHED
from notewave.song.playing import Deed, Event, Key, Playing
from notewave.sound.mel import FRAMES, HOP, MELS, SAMPLE_RATE, FloatArray, from_network
from notewave.sound.stream import VocoderTraits
from notewave.voice.contracts import keys_values

HOP_S = 0.06  # of three frames


@pytest.fixture(scope="module")
def singer() -> Synthesizer:
    """The bundled voice, which knows silence from sound."""
    return Synthesizer("band", backend="cpu", threads=1)


@pytest.fixture(scope="module")
def small(vocoded_voice: Path) -> Synthesizer:
    """A voice of random weights, which knows nothing."""
    return Synthesizer(vocoded_voice, backend="cpu", threads=1)


def read(live: Live, hops: int) -> FloatArray:
    return np.concatenate([live.read().samples for _ in range(hops)])


def loudness(sound: FloatArray, begin_s: float, end_s: float, rate: int = SAMPLE_RATE) -> float:
    return float(np.sqrt(np.square(sound[round(begin_s * rate) : round(end_s * rate)]).mean()))


# Windows and what a run makes of them


@pytest.mark.parametrize(
    ("hop", "back"), [(0, None), (2.5, None), (True, None), (213, None), (4, 22), (4, 232), (4, "9")]
)
def test_windows_without_room_are_refused(hop: int, back: int | None) -> None:
    with pytest.raises(ArgumentError, match=r"(hop|back) is .*; it must be \d+ to \d+ frames of 20 ms"):
        Windows.of(VocoderTraits(22, 21), hop, back)


def test_a_window_holds_what_was_played_the_hop_and_what_its_vocoder_sees() -> None:
    windows = Windows.of(VocoderTraits(22, 21), 4, 231)
    assert windows.back + 4 + 21 == FRAMES and windows.heard == slice(231 - 22, FRAMES)
    assert windows.sounded == slice(22 - LEAD, 22 + 4 + 21)
    assert windows.given(4) == windows.back - REMADE and windows.given(12) == windows.back - REMADE - 8
    assert windows.given(FRAMES) == 0
    assert [Windows.of(VocoderTraits(22, 21), hop).back for hop in (4, 139, 140, 200)] == [BACK, BACK, 95, 35]
    assert Windows.of(VocoderTraits(120, 21), 4).back == 120 + REMADE, "a vocoder that sees more has it"
    near = Windows.of(VocoderTraits(0, 0), 4, 100)
    assert near.sounded.start == 0 and near.right > 0, "something is always foreseen"


@pytest.mark.parametrize("kind", ["vocoded_voice", "whole_voice"])
@pytest.mark.parametrize(("sampler", "guidance"), [("dpmpp-2m", 1.0), ("ddim", 2.0), ("ddpm", 1.0)])
def test_a_run_s_windows_are_the_loop_told_what_was_played(
    request: pytest.FixtureRequest, kind: str, sampler: str, guidance: float
) -> None:
    """Against the loop written out, on networks run one by one: hops in time, one that came late, and after it."""
    small = Synthesizer(request.getfixturevalue(kind), backend="cpu", threads=1)
    voice, backend = small.voice, small._backend
    job = small._job({"sampler": sampler, "steps": 2, "guidance": guidance, "seed": 5})
    windows = Windows.of(voice.vocoder, 4, 100)
    frames = FRAMES if kind == "whole_voice" else windows.length
    assert frames == FRAMES or frames < FRAMES / 2
    job = dataclasses.replace(job, windows=windows)
    networks, names = backend.networks, [tensor.name for tensor in keys_values(voice.dimensions)]
    context = x = np.full((1, FRAMES, MELS), -1.0, np.float32)
    with backend.live(job) as run:
        first = 300
        for moved, count in ((4, 40), (4, 41), (12, 60), (4, 60)):
            first += moved
            tokens, place = _tokens(voice.dialect, count), Place(first, moved)
            run.submit(tokens, place)
            mel, sound = run.mel().result(), run.sound().result()
            context, played = advance(context, x, moved)
            keys = networks["cross_attention"].run(
                {
                    "notes": networks["note_encoder"].run({"tokens": tokens[None]})[0],
                    "context": networks["context_encoder"].run({"mel": context})[0],
                }
            )
            noise = np.empty((job.table.draws, 2 * FRAMES, MELS), np.float32)
            for draw in range(job.table.draws):
                for half in (0, 1):
                    philox_normal(5, first // FRAMES + half, draw, noise[draw, half * FRAMES : (half + 1) * FRAMES])
            noise = noise[:, first % FRAMES :][:, :frames]
            x = np.concatenate([noise[:1], np.full((1, FRAMES - frames, MELS), -1.0, np.float32)], axis=1)
            part = x[:, :frames]
            mask = np.zeros((1, 1, 1, len(tokens) + FRAMES), np.float32)

            def predict(step: int, x=part, mask=mask, keys=keys) -> tuple[FloatArray, FloatArray | None]:  # type: ignore[no-untyped-def]
                told = {"x": x, "film": networks.film(job)[step : step + 1]}
                without = networks["unconditional_decoder"].run(told)[0] if job.guided else None
                return networks["decoder"].run({**told, "mask": mask, **dict(zip(names, keys, strict=True))})[
                    0
                ], without

            given = played[:, : windows.given(moved)]
            denoise(job.table, part, predict, lambda draw, n=noise: n[draw][None], guidance=guidance, played=given)
            np.testing.assert_allclose(mel, x[0], rtol=0, atol=1e-4)
            vocoded = backend.vocode(from_network(mel[None, windows.heard]), first + windows.heard.start)[0]
            np.testing.assert_allclose(
                sound, vocoded[windows.sounded.start * HOP : windows.sounded.stop * HOP], rtol=0, atol=1e-4
            )
            if moved == 4 or count == 60:
                run.prepare(Place(first + 4, 4))


def test_the_networks_own_frames_are_kept_where_they_were_played(small: Synthesizer) -> None:
    job = dataclasses.replace(small._job({"steps": 1}), windows=Windows.of(small.voice.vocoder, 5))
    with small._backend.live(job) as run:
        mels = []
        for number in range(3):
            run.submit(_tokens(PUBLISHED, 30), Place(FRAMES + 5 * number, 5))
            mels.append(run.mel().result())
        back = job.windows.back
        for before, after in itertools.pairwise(mels):
            np.testing.assert_array_equal(after[: back - REMADE], before[5 : back + 5 - REMADE])


# What is heard


def test_a_note_sounds_at_its_time_and_ends_at_its_time(singer: Synthesizer) -> None:
    with singer.live(real_time=False, hop=3) as live:
        assert (live.latency, live.now, live.hop_samples) == (0.0, 0.0, 960)
        live.note_on(67, at=0.5)
        live.note_off(67, at=1.0)
        sound = read(live, 40)
        assert live.now == pytest.approx(40 * HOP_S) and live.stats.held == 0
    assert loudness(sound, 0.0, 0.4) == 0.0
    assert loudness(sound, 0.55, 0.95) > 100 * loudness(sound, 1.6, 2.4)
    onset = np.argmax(np.abs(sound) > 0.3 * np.abs(sound).max()) / SAMPLE_RATE
    assert abs(onset - 0.5) < 0.04


def test_a_note_without_a_time_sounds_with_the_next_hop(singer: Synthesizer) -> None:
    with singer.live(real_time=False, hop=3) as live:
        before = read(live, 3)
        live.note_on(67)
        live.note_on(60, at=-5.0)  # as late as can be
        sound = read(live, 4)
    assert not before.any() and loudness(sound, 0.0, 0.2) > 1e-3


def test_the_same_events_and_seed_give_the_same_sound_however_long_the_silence_was(singer: Synthesizer) -> None:
    def play(live: Live, at: float) -> None:
        for pitch, begin in ((60, 0.1), (64, 0.3)):
            live.note_on(pitch, at=at + begin)
            live.note_off(pitch, at=at + begin + 0.5)

    with singer.live(real_time=False, hop=5) as live:
        play(live, 0.0)
        first = read(live, 40)
        play(live, 8.0)
        silence, again = read(live, 40), read(live, 40)
    assert not silence.any()
    np.testing.assert_array_equal(first, again)
    with singer.live(real_time=False, hop=5, seed=1) as other:
        play(other, 0.0)
        assert not np.array_equal(read(other, 40), first)


def test_silence_costs_nothing(singer: Synthesizer) -> None:
    ran: Counter[str] = Counter()

    @contextlib.contextmanager
    def watch(network: str) -> Iterator[None]:
        ran[network] += 1
        yield

    with singer.live(real_time=False, hop=4, on_network=watch) as live:
        ran.clear()
        assert not read(live, 50).any() and not ran
        live.note_on(60)
        live.note_off(60, at=live.now + 0.3)
        read(live, 40)
        assert 5 < ran["decoder"] < 40, "a while after its end the note is over"
        ran.clear()
        assert not read(live, 50).any() and not ran


def test_where_hops_join_the_sound_is_as_smooth_as_elsewhere(singer: Synthesizer) -> None:
    with singer.live(real_time=False, hop=3) as live:
        for pitch in (48, 55, 64):
            live.note_on(pitch, program=48)
        sound = read(live, 60)[16000:]
    bend = np.abs(np.diff(sound, 3))
    phase = (np.arange(len(bend)) + 2) % 960
    at_join = bend[(phase < 4)].mean()
    assert at_join < 1.5 * bend.mean()


@pytest.mark.parametrize("rate", [16000, 22050, 44100, 48000])
def test_every_rate_has_the_same_sound_and_no_delay(singer: Synthesizer, rate: int) -> None:
    sounds = []
    for one in (SAMPLE_RATE, rate):
        with singer.live(real_time=False, hop=3, rate=one) as live:
            assert live.sample_rate == one and live.hop_samples == 3 * one // 50
            live.note_on(69, program=73)
            sound = live.read()
            assert sound.sample_rate == one and len(sound.samples) == live.hop_samples
            sounds.append(np.concatenate([sound.samples, read(live, 20)]))
    from soxr import resample

    expected = resample(sounds[0], SAMPLE_RATE, rate, quality="HQ")
    difference = sounds[1] - expected[: len(sounds[1])]
    assert np.sqrt(np.square(difference).mean()) < 0.02 * np.sqrt(np.square(expected).mean())


def test_two_play_on_one_synthesizer(singer: Synthesizer) -> None:
    alone = []
    for pitch in (60, 72):
        with singer.live(real_time=False, hop=4) as live:
            live.note_on(pitch)
            alone.append(read(live, 10))
    with singer.live(real_time=False, hop=4) as one, singer.live(real_time=False, hop=4) as other:
        one.note_on(60)
        other.note_on(72)
        both = [(one.read().samples, other.read().samples) for _ in range(10)]
    for index in (0, 1):
        np.testing.assert_array_equal(np.concatenate([sounds[index] for sounds in both]), alone[index])


def test_a_render_beside_it_changes_nothing(singer: Synthesizer) -> None:
    song = [np.array([1134, 300, 1], np.int32)]
    expected = singer.render(song).samples
    with singer.live(real_time=False, hop=4) as live:
        live.note_on(60)
        read(live, 3)
        np.testing.assert_array_equal(singer.render(song).samples, expected)


# What cannot be


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda live: live.note_on(128), "pitch is 128; it must be a whole number from 0 to 127"),
        (lambda live: live.note_on(60, velocity=-1), "velocity is -1"),
        (lambda live: live.note_on(60, program=1.5), "program is 1.5"),
        (lambda live: live.note_on(60, at=float("nan")), "at is nan; it must be seconds"),
        (lambda live: live.note_off("c"), "pitch is 'c'"),
        (lambda live: live.pedal(True, program=200), "program is 200"),
        (lambda live: live.all_off(at="now"), "at is 'now'"),
    ],
)
def test_what_is_out_of_range_is_refused(small: Synthesizer, call, said: str) -> None:  # type: ignore[no-untyped-def]
    with small.live(real_time=False) as live, pytest.raises(ArgumentError, match=said):
        call(live)


def test_what_no_live_play_can_be_of_is_refused(small: Synthesizer, reference_voice: Path, vocoded_voice: Path) -> None:
    with pytest.raises(SamplingError, match="noise was given for live play"):
        small.live(noise=np.zeros((1, FRAMES, MELS), np.float32))
    with pytest.raises(VoiceError, match="has no vocoder"):
        Synthesizer(reference_voice, backend="cpu").live()
    with pytest.raises(VoiceError, match="griffin-lim needs the whole song"):
        Synthesizer(vocoded_voice, backend="cpu", vocoder="griffin-lim").live()
    with pytest.raises(ArgumentError, match="rate is 16001 Hz; live, it must be a multiple of 50"):
        small.live(rate=16001, real_time=False)
    with pytest.raises(SamplingError, match="steps"):
        small.live(steps=0)


def test_a_voice_that_fails_is_told_and_leaves_silence(singer: Synthesizer) -> None:
    @contextlib.contextmanager
    def fail(network: str) -> Iterator[None]:
        if network == "vocoder" and armed:
            raise VoiceError("it broke")
        yield

    armed: list[int] = []
    with singer.live(real_time=False, hop=4, on_network=fail) as live:
        live.note_on(60)
        read(live, 2)
        armed.append(1)
        with pytest.raises(VoiceError, match="it broke"):
            live.read()
    armed.clear()
    with singer.live(hop=32, on_network=fail) as live:
        live.note_on(60)
        armed.append(1)
        deadline = time.monotonic() + 20
        while live._failure is None and time.monotonic() < deadline:
            assert len(live.read().samples) == live.hop_samples
            time.sleep(0.02)
        with pytest.raises(VoiceError, match="it broke"):
            live.check()
        read(live, 2)
        assert not read(live, 3).any()


def test_what_onnx_runtime_raises_is_told_as_the_voice_s_fault(singer: Synthesizer) -> None:
    from onnxruntime.capi.onnxruntime_pybind11_state import RuntimeException

    @contextlib.contextmanager
    def fail(network: str) -> Iterator[None]:
        if network == failing:
            raise RuntimeException("no memory is left")
        yield

    for network in ("decoder", "context_encoder", "vocoder"):
        failing = ""
        with singer.live(real_time=False, hop=4, on_network=fail) as live:
            live.note_on(60)
            read(live, 2)
            failing = network
            with pytest.raises(VoiceError, match=r"cannot run the voice's graphs \(no memory is left\)"):
                read(live, 2)


# In real time


class Gate:
    """Holds the voice's networks up while it is shut."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._open.set()
        self.waiting = threading.Event()

    def shut(self) -> None:
        self.waiting.clear()
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    @contextlib.contextmanager
    def __call__(self, network: str) -> Iterator[None]:
        if network == "decoder" and not self._open.is_set():
            self.waiting.set()
            assert self._open.wait(30)
        yield


def ready(live: Live) -> None:
    """Wait until the next hop is there."""
    deadline = time.monotonic() + 20
    while live._ready is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_late_hop_is_counted_and_covered_and_the_next_ones_catch_up(singer: Synthesizer) -> None:
    gate = Gate()
    with singer.live(hop=8, on_network=gate) as live:
        heard = []
        live.note_on(60, program=48)
        for _ in range(12):
            ready(live)
            heard.append(live.read().samples)
        assert live.stats.late == 0 and np.abs(heard[-1]).max() > 0.01
        latency = live.latency
        ready(live)
        gate.shut()
        heard.append(live.read().samples)
        assert gate.waiting.wait(20)
        began = time.monotonic()
        heard += [live.read().samples for _ in range(5)]  # not one of them is there
        assert time.monotonic() - began < 0.1, "nothing is waited for"
        assert live.stats.late == 5 and live.stats.hops == 18 and live.latency > latency
        gate.open()
        for _ in range(3):
            ready(live)
            heard.append(live.read().samples)
        assert live.stats.late == 5, "the hops that were missed are not made up for"
        live.check()
    levels = [float(np.sqrt(np.square(hop).mean())) for hop in heard]
    assert levels[13] > 0.2 * levels[12] and levels[13] > levels[14] > levels[17] == 0.0, "what was foreseen fades out"
    assert levels[-1] > 0.2 * levels[12]
    sound = np.concatenate(heard[12:])
    step = np.abs(np.diff(sound)).reshape(-1)
    for join in range(1, len(heard) - 12):  # no click
        around = step[join * live.hop_samples - 5 : join * live.hop_samples + 5]
        assert around.max() <= 1.2 * step[: 2 * live.hop_samples].max()


def test_after_a_gap_longer_than_a_window_play_begins_anew(singer: Synthesizer) -> None:
    """What was played lies before what a window is told, and what was foreseen ends before it."""
    windows = Windows.of(singer.voice.vocoder, 4)
    job = dataclasses.replace(singer._job({"steps": 1, "guidance": 1.0, "seed": 0}), windows=windows)

    def made(*numbers: int) -> FloatArray:
        playing = Playing(singer.voice.dialect, 2048)
        playing.put(Event(0, Deed.ON, Key(48, 60, False), 80))
        playing.advance(0, 1)
        hops = Hops(singer._backend, singer.voice, job, playing)
        with contextlib.closing(hops):
            return [hops.make(number) for number in numbers][-1].samples

    most = windows.length // windows.hop
    assert np.abs(made(most + 2)).max() > 0.01
    np.testing.assert_array_equal(made(0, 1, most + 2), made(most + 2))
    assert not np.array_equal(made(0, 1, most + 1), made(most + 1)), "as far as it was foreseen, it goes on"


def test_what_happens_sounds_later_by_the_latency(singer: Synthesizer) -> None:
    """By a clock of our own: events between reads, at whatever time, sound as much later as each other."""
    with singer.live(hop=6) as live:
        began, times, sound = time.monotonic(), [], []
        for number in range(50):
            due = began + number * 0.12
            time.sleep(max(due - time.monotonic(), 0))
            sound.append(live.read().samples)
            if number in (10, 22, 34):
                time.sleep(0.03 + number / 1000)
                times.append(live.now)
                live.note_on(72, program=0)
                live.note_off(72, at=live.now + 0.2)
        late, latency = live.stats.late, live.latency
    if late:
        pytest.skip("this machine was too busy to keep up")
    sound = np.concatenate(sound)
    loud = np.abs(sound) > 0.2 * np.abs(sound).max()
    for at in times:
        begin = round((at + latency - 0.1) * SAMPLE_RATE)
        onset = (begin + np.argmax(loud[begin:])) / SAMPLE_RATE
        assert abs(onset - at - latency) < 0.05


def test_whoever_reads_at_once_is_not_late(singer: Synthesizer) -> None:
    for _ in range(5):
        with singer.live(hop=10) as live:
            live.read()
            assert live.stats.late == 0


def test_nothing_is_read_but_silence_when_it_is_closed(singer: Synthesizer) -> None:
    for real_time in (False, True):
        live = singer.live(real_time=real_time, hop=8)
        live.close()
        live.close()
        assert not read(live, 3).any() and live.stats.late == 0
        live.note_on(60)
    assert not [thread for thread in threading.enumerate() if thread.name == "notewave live"]


def test_the_machine_s_hop_is_one_that_it_makes_in_time(singer: Synthesizer) -> None:
    job = singer._job({"steps": 1, "guidance": 1.0})
    chosen = fit(singer._backend, singer.voice, job)
    assert chosen.windows.hop >= 2 and chosen.budget_s > 0.003 and chosen.most_tokens >= 256
    given = fit(singer._backend, singer.voice, job, hop=20, back=150)
    assert (given.windows.hop, given.windows.back) == (20, 150)


# The parts


def test_a_pace_follows_who_takes_hops_and_foresees_the_earliest_time() -> None:
    pace = Pace(0.1)
    assert pace.due == 0.0 and pace.position(5.0) == 0.0
    for number in range(200):  # blocks of 64 ms, whose clock is a little fast
        pace.take(10.0 + 0.064 * np.ceil(number * 0.0999 / 0.064))
    earliest = 10.0 + 0.064 * np.ceil(200 * 0.0999 / 0.064)
    assert earliest - 0.08 < pace.due <= earliest + 0.005
    assert pace.position(earliest) == pytest.approx(20.0, abs=0.06)
    assert pace.position(earliest + 100) <= 20.1, "while nobody reads, its clock stands still"
    pace.take(500.0)
    assert pace.due == pytest.approx(500.1)


def test_a_stitch_fades_from_what_was_foreseen_and_covers_what_is_missing() -> None:
    stitch = Stitch(2, SAMPLE_RATE)
    one, ahead = np.full(640, 0.5, np.float32), np.full(1600, 0.5, np.float32)
    first = stitch.come(one, ahead)
    assert first[0] == 0.0 and first[100] == 0.5, "after silence it fades in"
    np.testing.assert_allclose(stitch.come(one, ahead), 0.5, rtol=0, atol=1e-3)
    lower = stitch.come(-one, -ahead)
    assert lower[0] > 0.49 and (np.diff(lower[: round(FADE_SECONDS * SAMPLE_RATE)]) < 0).all() and lower[80] == -0.5
    covered = np.concatenate([stitch.cover() for _ in range(4)])
    assert covered[0] == pytest.approx(-0.5, abs=1e-3) and (np.diff(covered) >= -1e-7).all()
    assert not covered[1600:].any() and len(covered) == 4 * 640


def test_a_stitch_at_another_rate_cuts_out_the_hop_itself() -> None:
    time_s = np.arange((LEAD + 3 + 6) * HOP) / SAMPLE_RATE
    tone = np.sin(2 * np.pi * 440 * time_s).astype(np.float32)
    lead, samples, ahead = np.split(tone, [LEAD * HOP, (LEAD + 3) * HOP])
    sound, after = Stitch(3, 48000).fit(Hop(0, lead, samples, ahead))
    assert len(sound) == 2880 and len(after) == 3 * 6 * HOP
    expected = np.sin(2 * np.pi * 440 * (np.arange(2880) / 48000 + LEAD * HOP / SAMPLE_RATE))
    np.testing.assert_allclose(sound, expected, rtol=0, atol=1e-3)


def test_the_names_are_public() -> None:
    assert notewave.Live is Live and notewave.LiveStats.__name__ == "LiveStats"
