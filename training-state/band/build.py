"""The voice folder of averaged weights, with the vocoder of `band`: build.py WEIGHTS OUT PROVENANCE."""

import sys
from pathlib import Path

from notewave.export.convert import export_voice
from notewave.export.graphs.restore import restore_vocoder
from notewave.export.training.diffusion import PREDICTION, SCHEDULE
from notewave.export.training.train import LICENCE, SAMPLING
from notewave.export.training.weights import load_weights
from notewave.voice.folder import Voice

export_voice(
    load_weights(Path(sys.argv[1])),
    Path(sys.argv[2]),
    name="band",
    licence=LICENCE,
    provenance=sys.argv[3],
    prediction=PREDICTION,
    schedule=SCHEDULE,
    sampling=SAMPLING,
    precision="fp16",
    vocoder=restore_vocoder(Voice.load("band"), {}),
)
