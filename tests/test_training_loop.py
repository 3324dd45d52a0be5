import dataclasses
import json
import logging
import os
import re
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from notewave.cli import main
from notewave.errors import ArgumentError, ToolError, TrainingError, VoiceError
from notewave.export.material.ensembles import PIANO
from notewave.export.material.packing import pack_songs
from notewave.export.material.pieces import as_notes, compose
from notewave.export.material.segments import Segments
from notewave.export.material.songs import SEGMENT_SAMPLES, Data, Song, load_song, save_song
from notewave.export.networks import SpectrogramDiffusion
from notewave.export.training import diffusion
from notewave.export.training.config import Config, Stage, for_gpu, load_config
from notewave.export.training.diffusion import (
    AHEAD,
    HOPS,
    SCHEDULE,
    START_FROM,
    MelBatch,
    drifts,
    mel_batch,
    mel_loss,
    noise_levels,
    predict_crops,
    until,
    weighted_error,
)
from notewave.export.training.distil import student_loss, teach, train_student
from notewave.export.training.loop import Allowance, plot_log
from notewave.export.training.pairs import make_pairs
from notewave.export.training.phases import PhasedRun
from notewave.export.training.queries import plain_state, scale_queries
from notewave.export.training.stages import (
    Batches,
    fresh_model,
    prepare_for_mel,
    train_mel,
    train_symbolic,
    trained_model,
)
from notewave.export.training.train import train, write_voice
from notewave.export.training.vocoder import Batch, Crops, train_vocoder
from notewave.export.training.weights import load_weights
from notewave.sampling.windows import BACK
from notewave.song.codec import decode_tokens, encode_notes
from notewave.song.dialect import PITCH, PUBLISHED, SHIFT, Dialect, dialect_of
from notewave.sound.mel import FRAMES, MELS
from notewave.voice.contracts import Dimensions
from notewave.voice.folder import Voice

TINY = Dimensions(
    width=32, heads=2, head_width=16, feed_forward=48, note_encoder_layers=2, context_encoder_layers=1, decoder_layers=3
)


def config(symbolic: int, mel: int, held_out: int = 0, rate: float = 1e-3) -> Config:
    return Config(
        name="tiny",
        dimensions=TINY,
        symbolic=(Stage(symbolic, segments=4, tokens=1800, frames=32, learning_rate=1e-3, pinned=2),),
        mel=(Stage(mel, segments=2, crops=2, frames=48, context=0.5, learning_rate=rate, learning_rate_end=rate),),
        data=Data(songs=2, held_out_songs=held_out),
        structured=False,
        threads=2,
        validate_seconds=1e9,
    )


def settings_file(folder: Path, **more: object) -> Path:
    """A configuration's file of one step a stage, with more, or other, settings."""
    settings = {
        "name": "tiny",
        "dimensions": {name: size for name, size in dataclasses.asdict(TINY).items() if name not in ("frames", "mels")},
        "symbolic": [{"steps": 1, "segments": 4, "tokens": 1800, "frames": 32}],
        "mel": [{"steps": 1, "segments": 2, "frames": 48}],
        "data": {"songs": 2, "held_out_songs": 0},
        "structured": False,
    }
    path = folder / "tiny.json"
    path.write_text(json.dumps(settings | more))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Songs with true tokens and mels that are only a pattern of them: FluidSynth is not needed here."""
    folder = tmp_path_factory.mktemp("songs")
    for index, name in enumerate(["train-00000", "train-00001", "heldout-00000"]):
        notes = compose(np.random.default_rng(index), PIANO, 14.0)
        tokens = encode_notes(notes)
        mel = np.full((len(tokens), FRAMES, MELS), 90, np.uint8)
        for segment, own in zip(mel, tokens, strict=True):
            segment[own % FRAMES, own % MELS] = 200
        save_song(Song(np.zeros(0, np.int16), mel, notes), folder / f"{name}.npz")
    return folder


def run(folder: Path, data: Path, symbolic: int, mel: int, rate: float = 1e-3) -> dict[str, torch.Tensor] | None:
    settings = config(symbolic, mel, rate=rate)
    model = train_symbolic(settings, folder)
    assert model is not None
    if mel == 0:
        return None
    prepare_for_mel(model, settings, data)
    weights = train_mel(settings, folder, data, model)
    assert weights is not None
    return load_file(weights)


def test_a_run_in_pieces_ends_where_an_unbroken_one_does(tmp_path: Path, data: Path) -> None:
    whole = run(tmp_path / "whole", data, symbolic=6, mel=6)
    run(tmp_path / "pieces", data, symbolic=3, mel=0)
    run(tmp_path / "pieces", data, symbolic=6, mel=2)
    pieces = run(tmp_path / "pieces", data, symbolic=6, mel=6)
    assert whole is not None and pieces is not None and whole.keys() == pieces.keys()
    for name, value in whole.items():
        assert torch.equal(value, pieces[name]), name


def test_training_lowers_the_loss_on_what_it_sees(tmp_path: Path, data: Path) -> None:
    run(tmp_path, data, symbolic=1, mel=60, rate=1e-2)
    losses = [
        entry["loss"]
        for line in (tmp_path / "log.jsonl").read_text().splitlines()
        if "loss" in (entry := json.loads(line))
    ]
    assert losses[-1] < 0.7 * losses[0]


def test_a_signal_stops_it_with_a_checkpoint(tmp_path: Path) -> None:
    def stop_when_it_runs() -> None:
        while not (tmp_path / "log.jsonl").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=stop_when_it_runs, daemon=True).start()
    assert train_symbolic(config(symbolic=1_000_000, mel=0), tmp_path) is None
    steps = torch.load(tmp_path / "symbolic.pt", weights_only=True)["step"]
    assert 20 <= steps < 1000 and signal.getsignal(signal.SIGTERM) is before


def test_validation_is_logged_and_drawn(tmp_path: Path, data: Path) -> None:
    settings = config(symbolic=1, mel=1, held_out=1)
    model = train_symbolic(dataclasses.replace(settings, data=Data(songs=2, held_out_songs=0)), tmp_path)
    assert model is not None and train_mel(settings, tmp_path, data, model) is not None
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert last["stage"] == "mel" and last["mel_ratio"] > 0 and last["seam"] > 0
    pytest.importorskip("matplotlib")
    plot_log(tmp_path)
    assert (tmp_path / "curve.png").stat().st_size > 1000


def test_weights_of_a_run_load_into_plain_networks(tmp_path: Path, data: Path) -> None:
    weights = run(tmp_path, data, symbolic=1, mel=1)
    assert weights is not None
    SpectrogramDiffusion(TINY).load_state_dict(weights)


def test_a_checkpoint_of_other_dimensions_is_refused(tmp_path: Path, data: Path) -> None:
    run(tmp_path, data, symbolic=1, mel=0)
    other = dataclasses.replace(config(1, 1), dimensions=dataclasses.replace(TINY, feed_forward=64))
    with pytest.raises(TrainingError, match="other dimensions"):
        train_symbolic(other, tmp_path)


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "symbolic.pt").write_bytes(b"cut short")
    with pytest.raises(TrainingError, match=r"symbolic\.pt is damaged.*Remove it"):
        train_symbolic(config(1, 1), tmp_path)


def test_training_killed_while_its_vocoder_learns_goes_on_to_the_same_voice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index, name in enumerate(["train-00000", "train-00001", "heldout-00000"]):
        notes = compose(np.random.default_rng(index), PIANO, 8.0)
        count = len(encode_notes(notes))
        tone = 9000 * np.sin(np.arange(count * SEGMENT_SAMPLES) * (0.1 + 0.1 * index))
        mel = np.full((count, FRAMES, MELS), 90, np.uint8)
        save_song(Song(tone.astype(np.int16), mel, notes), tmp_path / f"{name}.npz")
    small = {"width": 16, "blocks": 2, "hertz": 100.0, "cents": 100.0}
    vocoder = {"steps": 4, "batch": 2, "frames": 24, "warm_up": 1, "model": small}
    settings = settings_file(tmp_path, vocoder=vocoder)
    draw, state = Crops.draw, tmp_path / "state"

    def draw_and_kill(crops: Crops, step: int) -> Batch:
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return draw(crops, step)

    with monkeypatch.context() as patch:
        patch.setattr(Crops, "draw", draw_and_kill)
        assert train(settings, tmp_path / "voice", state=state, data=tmp_path) is None
    assert not (tmp_path / "voice").exists()
    assert torch.load(state / "vocoder" / "vocoder.pt", weights_only=True)["step"] == 2
    voice = train(settings, tmp_path / "voice", state=state, data=tmp_path)
    assert voice is not None and voice.vocoder is not None
    unbroken = load_config(settings).vocoder
    assert unbroken is not None
    train_vocoder(unbroken, {tmp_path: 1.0}, tmp_path / "unbroken", state / "pairs", 2)
    ends = [(folder / "final.safetensors").read_bytes() for folder in (state / "vocoder", tmp_path / "unbroken")]
    assert ends[0] == ends[1]


def test_scaled_queries_do_not_change_what_the_networks_compute() -> None:
    torch.manual_seed(0)
    plain = SpectrogramDiffusion(TINY)
    scaled = SpectrogramDiffusion(TINY)
    scaled.load_state_dict(plain.state_dict())
    scale_queries(scaled)
    back = plain_state(scaled, dict(scaled.named_parameters()))
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(back[name], value, rtol=0, atol=0 if TINY.head_width in (4, 16, 64) else 1e-7)


def test_crops_at_the_start_of_a_whole_segment_are_the_networks_own_forward() -> None:
    model = fresh_model(config(1, 1))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, FRAMES, MELS, generator=generator)
    context = torch.randn(2, FRAMES, MELS, generator=generator)
    tokens = torch.randint(1, 1000, (2, 9), generator=generator)
    time, keep = torch.tensor([0.3, 0.9]), torch.tensor([True, False])
    with torch.no_grad():
        whole = model(x, time, tokens, context, keep, ~keep)
        crop = predict_crops(
            model,
            MelBatch(tokens, x, context, keep, torch.full((2,), FRAMES)),
            x[:, None],
            time[:, None],
            torch.zeros(2, 1, dtype=torch.long),
            ~keep,
        )
    torch.testing.assert_close(crop[:, 0], whole)


def test_pairs_hold_true_samples_and_a_voices_mels(tmp_path: Path, data: Path) -> None:
    run(tmp_path / "run", data, symbolic=1, mel=1)
    songs = tmp_path / "songs"
    songs.mkdir()
    notes = load_song(data / "train-00000.npz").notes
    samples = np.arange(2 * SEGMENT_SAMPLES) % 99
    save_song(Song(samples.astype(np.int16), np.zeros((2, FRAMES, MELS), np.uint8), notes), songs / "train-00000.npz")
    make_pairs(tmp_path / "run" / "ema.safetensors", songs, tmp_path / "pairs", songs=1, segments=1, steps=2)
    pair = load_song(tmp_path / "pairs" / "train-00000.npz")
    np.testing.assert_array_equal(pair.samples, samples[:SEGMENT_SAMPLES])
    assert pair.mel.shape == (1, FRAMES, MELS) and pair.mel.any() and len(pair.tokens()) == 1


def test_training_goes_on_from_a_voice(tmp_path: Path, data: Path) -> None:
    before = run(tmp_path / "run", data, symbolic=1, mel=1)
    assert before is not None
    voice = write_voice(tmp_path / "run" / "ema.safetensors", tmp_path / "voice", precision="fp32")
    settings = config(symbolic=1, mel=1, rate=0.0)
    weights = train_mel(settings, tmp_path / "more", data, trained_model(settings, voice))
    assert weights is not None
    for name, value in load_file(weights).items():
        torch.testing.assert_close(value, before[name], msg=name)
    other = dataclasses.replace(settings, dimensions=dataclasses.replace(TINY, feed_forward=40))
    with pytest.raises(VoiceError, match="can grow, and none can shrink"):
        trained_model(other, voice)


def test_what_is_not_known_yet_is_not_told() -> None:
    spoken = Dialect(32, "gm")
    notes = as_notes([(0.5, 3.0, 60, 0, False), (1.0, 1.5, 64, 0, False), (2.0, 2.5, 67, 0, False)])
    (whole,) = encode_notes(notes, spoken)
    assert until(whole, FRAMES).tolist() == whole.tolist() and dialect_of(until(whole, 75)) == spoken
    for frame, known in ((24, 0), (26, 1), (60, 2), (74, 2), (76, 2), (101, 3)):
        back = decode_tokens([until(whole, frame)])
        assert back.pitch.tolist() == [60, 64, 67][:known] or sorted(back.pitch.tolist()) == [60, 64, 67][:known]
        assert back.offset_s.max(initial=0.0) <= frame / 50


@pytest.fixture(scope="module")
def segments(data: Path) -> Segments:
    return Segments(data, PUBLISHED, Data(songs=2))


def test_of_live_examples_notes_are_known_up_to_a_frame(segments: Segments) -> None:
    stage = Stage(1, segments=16, live=1.0)
    batch = mel_batch(segments, 0, 5, stage)
    assert (batch.known < FRAMES).all() and len(batch.known.unique()) > 4
    usual = (batch.known >= BACK) & (batch.known < BACK + HOPS)
    assert 0.3 < usual.float().mean() < 0.9, "half of them as live play will ask"
    shifts = torch.where((batch.tokens >= SHIFT) & (batch.tokens < PITCH), batch.tokens - SHIFT, 0).amax(dim=1)
    assert (shifts < 2 * batch.known).all()
    assert (mel_batch(segments, 0, 5, dataclasses.replace(stage, live=0.0)).known == FRAMES).all()


def test_live_examples_are_mostly_of_their_one_step_and_some_others_noise_alone() -> None:
    stage, is_live = Stage(steps=1, segments=2, high_noise=0.5, high_noise_from=0.85), torch.arange(4000) % 2 == 0
    levels, is_start = noise_levels((4000, 2), stage, is_live, torch.Generator().manual_seed(0))
    first = SCHEDULE.train_steps - 1
    assert levels.min() >= 0
    assert 0.55 < (levels[is_live] == first).all(dim=1).float().mean() < 0.65
    assert (levels[~is_live] == first).float().mean() < 0.01
    assert 0.5 < (levels[~is_live & ~is_start.any(dim=1)] >= 0.85 * SCHEDULE.train_steps).float().mean() < 0.65
    assert 0.08 < is_start[~is_live].float().mean() < 0.12
    assert 0.7 < levels[is_start].float().mean() / SCHEDULE.train_steps < 0.8
    assert levels[is_start].min() >= START_FROM * SCHEDULE.train_steps


def test_noise_alone_tells_nothing_of_the_mel(segments: Segments, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []

    def spy(model: Any, batch: MelBatch, x: torch.Tensor, time: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return torch.zeros_like(x)

    monkeypatch.setattr(diffusion, "predict_crops", spy)
    batch, stage = mel_batch(segments, 0, 5, Stage(1, segments=4)), Stage(1, segments=4, high_noise=0.0)
    for share in (0.0, 1.0):
        monkeypatch.setattr(diffusion, "AT_START", share)
        mel_loss(cast("SpectrogramDiffusion", None), batch, stage, torch.Generator().manual_seed(0))
    told, alone = ((x[:, 0] * batch.mel).sum(dim=(1, 2)).abs() / batch.mel.square().sum(dim=(1, 2)) for x in seen)
    assert alone.max() < 0.05 < 0.3 < told.max(), "the mel's own share"
    assert abs(seen[1].std() - 1) < 0.02


def test_what_is_not_known_does_not_count_and_what_came_last_counts_more(segments: Segments) -> None:
    batch = mel_batch(segments, 0, 5, Stage(1, segments=4))
    batch = dataclasses.replace(batch, known=torch.full((4,), 140))
    window = torch.arange(FRAMES).expand(4, 1, FRAMES)
    clean = batch.mel[:, None]
    wrong = clean.clone()
    wrong[:, :, 140 + AHEAD :] += 1.0
    assert float(weighted_error(wrong, clean, batch, window)) == 0
    wrong[:, :, 139 + AHEAD] += 1.0
    assert float(weighted_error(wrong, clean, batch, window)) > 1e-3
    errors = []
    for frame in (0, 100, 139):
        mel = clean.clone()
        mel[:, :, frame] += 1.0
        errors.append(float(weighted_error(mel, clean, batch, window)))
    assert errors[0] > 5 * errors[1], "a join counts most"
    assert errors[2] > 2 * errors[1], "then what a hop adds"


def test_a_tone_counts_more_than_the_silence_around_it(segments: Segments) -> None:
    batch = mel_batch(segments, 0, 5, Stage(1, segments=4))
    window = torch.arange(FRAMES).expand(4, 1, FRAMES)
    clean = torch.full((4, 1, FRAMES, MELS), -1.0)
    clean[..., 20] = 0.5
    tone, silence = clean.clone(), clean.clone()
    tone[..., 20] += 0.1
    silence[..., 90] += 0.1
    errors = [float(weighted_error(mel, clean, batch, window)) for mel in (tone, silence)]
    assert errors[0] > 10 * errors[1] > 0, "its level is the frame's"


def test_contexts_are_off_and_segments_return_from_it() -> None:
    past, fading = drifts(np.random.default_rng(0), 400)
    level = np.abs(past[:, :20].mean(axis=(1, 2)))
    assert 0.16 < (level > 0.01).mean() < 0.32, "three in ten of them as a whole"
    assert np.corrcoef(past[:, -1].ravel(), fading[:, 0].ravel())[0, 1] > 0.98, "a segment begins where they end"
    assert np.abs(fading[:, -1]).max() < 1e-3 < np.abs(fading[:, 0]).max()


def test_training_by_the_clock_ends_with_a_voice_and_goes_on_before_the_fall(tmp_path: Path, data: Path) -> None:
    settings = config(symbolic=1, mel=1_000_000)
    model = train_symbolic(dataclasses.replace(settings, symbolic=settings.symbolic), tmp_path)
    assert model is not None
    began = time.monotonic()
    assert train_mel(settings, tmp_path, data, model, Allowance.from_now(4.0)) is not None
    assert 4.0 <= time.monotonic() - began < 15.0
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert last["stage"] == "mel" and last["step"] > 2
    kept = torch.load(tmp_path / "mel.pt", weights_only=True)["step"]  # of where the rate began to fall
    assert 0.5 * last["step"] < kept < last["step"]


def test_the_rate_falls_in_the_last_fifth() -> None:
    now = time.monotonic()
    rates = [Allowance(now - used * 100, 100.0).falling for used in (0.0, 0.5, 0.79, 0.9, 1.0, 2.0)]
    np.testing.assert_allclose(rates, [1, 1, 1, 0.5, 0, 0], atol=0.01)


def test_a_student_learns_what_its_teacher_comes_to_in_one_step(tmp_path: Path, segments: Segments) -> None:
    torch.manual_seed(0)
    teacher = SpectrogramDiffusion(TINY).eval().requires_grad_(False)
    batch = mel_batch(segments, 0, 0, Stage(1, segments=4))
    stage = Stage(1, segments=4, teacher_steps=3, guidance=1.5, truth=0.0)
    noise = torch.randn(4, FRAMES, MELS, generator=torch.Generator().manual_seed(1))
    taught = teach(teacher, batch, noise, stage)
    assert (taught - teach(teacher, batch, noise, dataclasses.replace(stage, guidance=1.0))).abs().max() > 1e-3
    student = SpectrogramDiffusion(TINY)
    optimiser = torch.optim.Adam(student.parameters(), 3e-3)
    losses = []
    for step in range(40):
        loss = student_loss(student, teacher, batch, stage, torch.Generator().manual_seed(step))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss))
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])


def test_a_distilled_voice_recommends_one_step_without_guidance(tmp_path: Path, data: Path) -> None:
    run(tmp_path, data, symbolic=1, mel=1)
    stage = Stage(1, segments=2, teacher_steps=2, context=1.0)
    settings = dataclasses.replace(config(1, 1), distil=(stage,))
    weights = train_student(settings, tmp_path / "distil", data, load_weights(tmp_path / "ema.safetensors"))
    assert weights is not None
    voice = write_voice(weights, tmp_path / "voice", precision="fp32")
    assert (voice.sampling.steps, voice.sampling.guidance) == (1, 1.0) and "1 distillation steps" in voice.provenance
    assert write_voice(tmp_path / "ema.safetensors", tmp_path / "other", precision="fp32").sampling.steps == 4


def test_a_pack_trains_networks_but_no_vocoder(tmp_path: Path, data: Path) -> None:
    pack_songs(data, tmp_path / "songs.pack")
    settings = {
        "dialect": {"velocities": 8, "programs": "gm"},
        "mel": [{"steps": 1, "segments": 2, "frames": 48, "live": 0.5}],
        "data": {"songs": 2, "held_out_songs": 1},
    }
    voice = train(settings_file(tmp_path, **settings), tmp_path / "voice", data=tmp_path / "songs.pack")
    assert voice is not None and voice.dialect == Dialect(8, "gm")
    sung = settings_file(tmp_path, **settings, vocoder={"steps": 1})
    with pytest.raises(TrainingError, match="no sound to train a vocoder on"):
        train(sung, tmp_path / "sung", data=tmp_path / "songs.pack")


def test_the_command_packs_songs_and_trains_on_the_pack(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_file(tmp_path, data={"songs": 2, "held_out_songs": 1})
    pack, out, level = tmp_path / "songs.pack", tmp_path / "voice", logging.getLogger("notewave").level
    words = ["train", "--config", str(settings)]
    assert main([*words, "--data", str(data), "--pack", str(pack)]) == 0
    assert re.fullmatch(rf"{pack}: 3 songs, \d+\.\d MiB\n", capsys.readouterr().out)
    assert main([*words, "--data", str(pack), "--out", str(out), "--precision", "fp32"]) == 0
    assert capsys.readouterr().out == f"{out}: a voice\n"
    assert Voice.load(out).precision == "fp32"
    assert logging.getLogger("notewave").level == level, "its progress is told while it trains, and no longer"


def test_batches_ahead_are_those_of_their_steps(segments: Segments, tmp_path: Path) -> None:
    settings = dataclasses.replace(config(1, 5), mel=(Stage(3, segments=2), Stage(2, segments=4, live=1.0)))
    run = PhasedRun(tmp_path, "mel", settings, fresh_model(settings), lambda name: "new")
    here, ahead = Batches(run, segments), Batches(run, segments)
    ahead.pool = ThreadPoolExecutor(2)
    for step in range(5):
        run.step = step
        for share in range(2):
            ours, theirs = here(share), ahead(share)
            torch.testing.assert_close(ours.tokens, theirs.tokens)
            torch.testing.assert_close(ours.mel, theirs.mel)
        assert len(ours.mel) == (1 if step < 3 else 2)
    assert not ahead.coming


def test_a_gpu_takes_larger_batches_and_a_missing_one_is_named(tmp_path: Path) -> None:
    cpu = load_config("general-midi")
    gpu = for_gpu(cpu)
    assert gpu.device == "cuda" and gpu.threads == 1 and gpu.mel[0].segments == 16 * cpu.mel[0].segments
    assert gpu.mel[0].learning_rate == 2 * cpu.mel[0].learning_rate and gpu.mel[0].steps == cpu.mel[0].steps
    if not torch.cuda.is_available():
        with pytest.raises(ToolError, match=r"PyTorch finds none here.*device=.cpu"):
            train("general-midi", tmp_path / "voice", device="cuda")
    for minutes in (0, -5, float("nan"), True):
        with pytest.raises(ArgumentError, match="minutes is"):
            train("general-midi", tmp_path / "voice", minutes=minutes)
    with pytest.raises(ArgumentError, match="device is 'tpu'"):
        train("general-midi", tmp_path / "voice", device="tpu")
    assert list(tmp_path.iterdir()) == []
