"""`band`, trained on."""
import logging, sys
from dataclasses import replace
from pathlib import Path
import torch
from notewave.export.material.songs import Data
from notewave.export.training.config import parse_config
from notewave.export.training.stages import train_mel, trained_model
from notewave.voice.folder import Voice

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    here = Path(__file__).parent
    steps = int(sys.argv[2])
    config = parse_config({
      "name": "band",
      "dimensions": {"width": 256, "heads": 4, "head_width": 64, "feed_forward": 512, "note_encoder_layers": 2, "context_encoder_layers": 2, "decoder_layers": 5},
      "data": {"songs": int(sys.argv[5]), "held_out_songs": 0, "seconds": 160.0},
      "mel": [{"steps": steps, "segments": 8, "frames": 256, "learning_rate": float(sys.argv[3]), "learning_rate_end": 5e-6, "pretrained_rate": float(sys.argv[6]), "context": 1.0, "live": 0.6, "high_noise": 0.6}],
      "validate_seconds": 900})
    origin = Voice.load(sys.argv[4])
    model = trained_model(config, origin)
    print(train_mel(config, here / sys.argv[1], here / "run9/data", model), flush=True)
