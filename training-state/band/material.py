"""Songs to train `band` on further: a piano, bands, and notes held for long."""
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
import numpy as np
from notewave.export.material.ensembles import Instrument, PIANO
from notewave.export.material.fluidsynth import GAIN, fluidsynth
from notewave.export.material.pieces import as_notes, compose
from notewave.export.material.scores import medley
from notewave.export.material.songs import Song, pack_mel, save_song, SEGMENT_SAMPLES
from notewave.song.codec import encode_notes
from notewave.song.notes import Notes
from notewave.sound.mel import FRAMES, MELS, log_mel

BASSES = (Instrument(33, role="bass", low=28, high=55),)
DRUMS = (Instrument(0, is_drum=True, role="kit"),)
PLUCKED = (Instrument(24, role="harmony", low=40, high=84), Instrument(0, role="harmony"))
SUSTAINED = (Instrument(48, role="harmony", low=36, high=96), Instrument(16, role="harmony", low=36, high=96))
WINDS = (Instrument(73, role="melody", low=60, high=96), Instrument(64, role="melody", low=50, high=86), Instrument(56, role="melody", low=52, high=84))
BEATS = (Instrument(0, is_drum=True, role="drums"),)
KINDS = (BASSES, PLUCKED, PLUCKED, SUSTAINED, WINDS, DRUMS)

def band(rng, drums=DRUMS):
    kinds = (*KINDS[:-1], drums)
    chosen = sorted(rng.choice(len(kinds), int(rng.integers(2, len(kinds) + 1)), replace=False))
    return tuple(kinds[i][rng.integers(len(kinds[i]))] for i in chosen)

HOLDERS = (PIANO[0], PIANO[0], PIANO[0], *SUSTAINED, *SUSTAINED, *WINDS, *BASSES, PLUCKED[0])

def held(rng, seconds, holders=HOLDERS):
    rows = []; start = 0.0
    while start < seconds:
        player = holders[rng.integers(len(holders))]
        length = float(np.exp(rng.uniform(np.log(4), np.log(45))))
        count = int(rng.choice([1, 2, 3, 4], p=[0.5, 0.2, 0.2, 0.1]))
        spread = rng.choice([0.0, 0.0, 1.5])
        keys = np.arange(player.low, player.high + 1)
        weight = np.exp(-0.5 * ((keys - 60) / 18) ** 2)
        for pitch in rng.choice(keys, count, replace=False, p=weight / weight.sum()).tolist():
            onset = start + rng.uniform(0, spread)
            rows.append((onset, onset + length, pitch, player.program, False))
        start += length * (rng.uniform(0.4, 1.0) if rng.random() < 0.3 else rng.uniform(1.0, 1.2))
    return as_notes([r for r in rows if r[0] < seconds])

def paused(rng, notes, seconds):
    """The same with pauses of 3 to 15 s, in which nothing sounds."""
    keep = np.ones(len(notes.onset_s), bool); ends = notes.offset_s.copy(); at = rng.uniform(3, 12)
    while at < seconds:
        end = at + rng.uniform(3, 15)
        keep &= ~((notes.onset_s >= at - 0.1) & (notes.onset_s < end))
        ends = np.where((notes.onset_s < at) & (ends > at), at, ends)
        at = end + rng.uniform(3, 15)
    return Notes(*(field[keep] for field in (notes.onset_s, ends, notes.pitch, notes.velocity, notes.program, notes.is_drum)))

def make(index):
    path = Path(__file__).parent / "data" / f"train-{index:05d}.npz"
    if path.exists():
        return
    rng = np.random.default_rng((3, index)); seconds = 160.0
    kind = index % 6 if index < 540 else 2 + index % 4
    if 540 > index >= 480: notes = held(rng, seconds, SUSTAINED)
    elif 480 > index >= 360: notes = held(rng, seconds, PIANO)
    elif kind in (0, 1): notes = held(rng, seconds)
    else:
        players = PIANO if kind in (2, 3) and (index < 940 or index >= 1500) else band(rng, BEATS)
        notes = compose(rng, players, seconds) if rng.random() < 0.6 else medley(rng, seconds, players)
    if index >= 1500: notes = paused(rng, notes, seconds)
    count = len(encode_notes(notes)); audio = np.zeros(count * SEGMENT_SAMPLES, np.float32)
    sound = fluidsynth(notes)[: len(audio)] / GAIN
    audio[: len(sound)] = sound
    mel = log_mel(audio.astype(np.float64)).reshape(count, FRAMES, MELS)
    save_song(Song(np.zeros(0, np.int16), pack_mel(mel), notes), path)

if __name__ == "__main__":
    (Path(__file__).parent / "data").mkdir(exist_ok=True)
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        for k, _ in enumerate(pool.map(make, range(int(sys.argv[1])))):
            if k % 10 == 0: print(k, flush=True)
