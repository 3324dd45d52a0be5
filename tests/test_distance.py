import numpy as np
import pytest

from notewave.sound.distance import SETTINGS, stft_loss


def test_the_stft_loss_is_torch_s_stft_s() -> None:
    """As Parallel WaveGAN computes it, by torch.stft."""
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(0)
    theirs = random.normal(0, 0.1, 16000).astype(np.float32)
    ours = (theirs + random.normal(0, 0.03, 16000)).astype(np.float32)
    ours[:4000] = 0  # where the floor decides

    losses = []
    for size, hop, width in SETTINGS:
        window = torch.hann_window(width)
        a, b = (
            torch.stft(torch.from_numpy(audio), size, hop, width, window, return_complex=True)
            .abs()
            .square()
            .clamp(1e-7)
            for audio in (ours, theirs)
        )
        convergence = (a.sqrt() - b.sqrt()).norm() / b.sqrt().norm()
        losses.append(convergence + (a.sqrt().log() - b.sqrt().log()).abs().mean())
    assert stft_loss(ours, theirs) == pytest.approx(float(torch.stack(losses).mean()), rel=1e-4)
    assert stft_loss(theirs, theirs) == 0.0
