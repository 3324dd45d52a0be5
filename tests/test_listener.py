import math

import pytest
import torch

from notewave.export.training.listener import BINS, HIGHEST, LOWEST, Listener, hearing_losses
from notewave.export.training.symbolic import pitch_loss
from notewave.sound.mel import HOP, SAMPLE_RATE

FRAMES = 30
TIME = torch.arange(FRAMES * HOP) / SAMPLE_RATE


@pytest.fixture
def listener() -> Listener:
    torch.manual_seed(0)
    return Listener(channels=8)


def tone(pitch: float, level_db: float = -10.0) -> torch.Tensor:
    return 10 ** (level_db / 20) * torch.sin(2 * math.pi * 440 * 2 ** ((pitch - 69) / 12) * TIME)[None]


@pytest.mark.parametrize("pitch", [45, 60, 88])
def test_a_tone_is_seen_at_its_pitch_and_its_harmonics_on_it(listener: Listener, pitch: int) -> None:
    spectrum = listener._spectrum(tone(pitch), 4096)[0, FRAMES // 2]
    for harmonic, offset in zip((0.5, 1, 2), listener.offsets, strict=False):
        peak = spectrum[offset : offset + listener.bins].argmax() // BINS + LOWEST
        assert peak == pitch - 12 * math.log2(harmonic)


def test_an_attack_is_seen_in_its_frame(listener: Listener) -> None:
    click = torch.zeros(1, FRAMES * HOP)
    click[0, 20 * HOP + 320] = 1.0  # the middle of frame 20's window
    for size in (1024, 4096):
        assert listener._spectrum(click, size)[0, :, 100].argmax() == 20


def test_it_learns_what_sounds(listener: Listener) -> None:
    pitches = torch.tensor([50, 62, 74])
    audio = torch.cat([tone(int(pitch)) for pitch in pitches])
    rolls = torch.zeros(3, FRAMES, 2, HIGHEST - LOWEST)
    rolls[torch.arange(3), :, 0, pitches - LOWEST] = 1
    optimizer = torch.optim.AdamW(listener.parameters(), 5e-3)
    for _ in range(40):
        loss = pitch_loss(listener(audio), rolls)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.inference_mode():  # a pitch between those it was taught
        heard = listener(tone(57))[0, FRAMES // 2, 0]
    assert heard.argmax() + LOWEST == 57


def test_only_a_difference_is_a_loss(listener: Listener) -> None:
    true = tone(69) + tone(81, -20.0)
    same = hearing_losses(listener, true, true)
    near = hearing_losses(listener, true + tone(69, -30.0), true)
    below = hearing_losses(listener, (true + tone(57, -30.0)).requires_grad_(), true)
    assert [float(loss.detach()) for loss in same] == pytest.approx([0.0, 0.0], abs=1e-6)
    for small, large in zip(near, below, strict=True):
        assert 0 < small < large
