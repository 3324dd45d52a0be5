"""`band`, trained on: run.py STATE STEPS RATE VOICE SONGS PRETRAINED_RATE.

Four runs, each from what the one before made:
  state1 2000 4e-4 band 360 0.3   without loudness and level in the loss, slow layers at 0.03
  state2 1800 4e-4 v1 480 0.5     loudness at 0.5, slow layers at 0.1
  state4 8000 4e-4 v2 940 0.4     loudness at 0.15, levels astray in half of the contexts, slow layers at 0.1
  state5 5200 3e-4 v4 1240 0.4    as before; 300 songs more of bands with beats
"""

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
    config = parse_config(
        {
            "name": "band",
            "dimensions": {
                "width": 256,
                "heads": 4,
                "head_width": 64,
                "feed_forward": 512,
                "note_encoder_layers": 2,
                "context_encoder_layers": 2,
                "decoder_layers": 5,
            },
            "data": {"songs": int(sys.argv[5]), "held_out_songs": 0, "seconds": 160.0},
            "mel": [
                {
                    "steps": steps,
                    "segments": 8,
                    "frames": 256,
                    "learning_rate": float(sys.argv[3]),
                    "learning_rate_end": 5e-6,
                    "pretrained_rate": float(sys.argv[6]),
                    "context": 1.0,
                    "live": 0.3,
                    "high_noise": 0.6,
                }
            ],
            "validate_seconds": 900,
        }
    )
    origin = Voice.load(sys.argv[4])
    model = trained_model(config, origin)
    print(train_mel(config, here / sys.argv[1], here / "data", model), flush=True)
