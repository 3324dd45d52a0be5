import sys, json, hashlib
from pathlib import Path
from notewave.export.graphs.restore import restore_vocoder
from notewave.export.training.train import LICENCE, SAMPLING, write_voice
from notewave.export.training.weights import load_weights, weights_about
from notewave.export.convert import export_voice
from notewave.export.training.diffusion import PREDICTION, SCHEDULE
from notewave.song.dialect import Dialect
from notewave.sampling.options import Sampling
from notewave.voice.folder import Voice
weights, out = Path(sys.argv[1]), Path(sys.argv[2])
band = Voice.load("band")
about = weights_about(weights); print(about)
export_voice(load_weights(weights), out, name="band", licence=LICENCE, provenance=sys.argv[3], prediction=PREDICTION, schedule=SCHEDULE,
    sampling=SAMPLING, dialect=Dialect(**about["dialect"]), precision="fp16", vocoder=restore_vocoder(band, {}))
for f in sorted(out.iterdir()): print(f.name, f.stat().st_size, hashlib.sha256(f.read_bytes()).hexdigest()[:12])
