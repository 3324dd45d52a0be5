"""Single notes: what FluidSynth makes of them is what the table has, and the note encoder can learn it."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from notewave.export.material import timbres as module
from notewave.export.material.ensembles import PIANO
from notewave.export.material.fluidsynth import SOUNDFONT, fluidsynth
from notewave.export.material.pieces import as_notes, compose
from notewave.export.material.songs import MEL_STEP, pack_mel
from notewave.export.material.timbres import AGES, DRUMS, HIGHEST, LOUD, LOWEST, SOFT, Timbres, timbre
from notewave.export.networks import SpectrogramDiffusion
from notewave.export.training.symbolic import (
    SymbolicHeads,
    collate,
    piano_rolls,
    symbolic_loss,
    token_targets,
)
from notewave.song.codec import encode_notes
from notewave.song.dialect import Dialect
from notewave.song.notes import Notes
from notewave.sound.mel import LOG_MIN, MELS, from_network, log_mel
from notewave.voice.contracts import Dimensions

needs_fluidsynth = pytest.mark.skipif(
    shutil.which("fluidsynth") is None or not SOUNDFONT.exists(),
    reason="FluidSynth and its soundfont are not installed",
)
GM = Dialect(32, "gm")


def table(seed: int = 0) -> Timbres:
    rng = np.random.default_rng(seed)
    shape = (DRUMS + 1, HIGHEST - LOWEST + 1, 2, len(AGES), MELS)
    return Timbres(rng.integers(60, 200, shape).astype(np.uint8))


@needs_fluidsynth
@pytest.mark.parametrize(("program", "pitch"), [(0, 60), (73, 84), (DRUMS, 38)])
def test_the_table_is_what_fluidsynth_plays(program: int, pitch: int) -> None:
    row = timbre(program)
    assert row.shape == (HIGHEST - LOWEST + 1, 2, len(AGES), MELS)
    for index, velocity in enumerate((SOFT, LOUD)):
        is_drum = program == DRUMS
        alone = fluidsynth(Notes([0.0], [0.5], [pitch], [velocity], [0 if is_drum else program], [is_drum]))
        frames = log_mel(np.pad(alone, (0, 40 * 320)))[list(AGES)]
        held = slice(None, 5)  # how it fades out depends on what else plays
        found = row[pitch - LOWEST, index, held]
        assert np.abs(found.astype(int) - pack_mel(frames[held]).astype(int)).mean() * MEL_STEP < 0.15


@needs_fluidsynth
def test_it_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DRUMS", 1)  # two rows are enough
    made = Timbres.load(tmp_path / "timbres.npz")
    assert made.table.shape[0] == 2 and (made.table > 0).any()
    monkeypatch.setenv("PATH", str(tmp_path))  # without FluidSynth
    np.testing.assert_array_equal(Timbres.load(tmp_path / "timbres.npz").table, made.table)


def test_loudness_lies_on_a_line_through_the_two_velocities() -> None:
    timbres = table()
    programs, pitches = np.full(3, 7), np.full(3, 60)
    middle = float(np.sqrt(SOFT * LOUD))
    soft, half, loud = from_network(timbres.mel(programs, pitches, np.array([SOFT, middle, LOUD])))
    np.testing.assert_allclose(half, (soft + loud) / 2, atol=1e-3)
    np.testing.assert_array_equal(pack_mel(soft), timbres.table[7, 60 - LOWEST, 0])
    np.testing.assert_array_equal(pack_mel(loud), timbres.table[7, 60 - LOWEST, 1])
    assert from_network(timbres.mel(programs[:1], pitches[:1], np.array([0.0]))).min() >= LOG_MIN - 1e-3


def test_tokens_say_what_is_struck() -> None:
    notes = as_notes([(0.5, 1.0, 60, 5, False), (0.7, 0.8, 38, 0, True), (2.0, 7.0, 64, 9, False)])
    first, second = encode_notes(notes, GM)
    targets, mask = token_targets(first)
    struck = targets[mask[:, 2]]
    assert struck[:, 4].tolist() == [5, DRUMS, 9] and struck[:, 5].tolist() == [60, 38, 64]
    np.testing.assert_allclose(struck[:, 3], 23 / 32)  # the bin of velocity 90
    held, mask = token_targets(second)
    assert held[mask[:, 2]][:, 4:].tolist() == [[9, 64]]


def test_the_note_encoder_learns_the_sound_of_its_notes() -> None:
    torch.manual_seed(0)
    size = Dimensions(64, 4, 16, 64, note_encoder_layers=2, context_encoder_layers=1, decoder_layers=2)
    model, heads, timbres = SpectrogramDiffusion(size), SymbolicHeads(64), table()
    notes = compose(np.random.default_rng(0), PIANO, 10.0)
    tokens = encode_notes(notes, GM)
    batch = collate(tokens, piano_rolls(notes, len(tokens)))
    optimiser = torch.optim.Adam([*model.parameters(), *heads.parameters()], 3e-3)

    def losses() -> tuple[float, float]:
        both = [
            symbolic_loss(model, heads, batch, 32, torch.Generator().manual_seed(0), sounds).detach()
            for sounds in (timbres, None)
        ]
        return float(both[0] - both[1]), float(both[1])

    before, _ = losses()
    for step in range(40):
        optimiser.zero_grad()
        symbolic_loss(model, heads, batch, 32, torch.Generator().manual_seed(step), timbres).backward()
        optimiser.step()
    after, _ = losses()
    assert 0 < after < 0.7 * before
