"""The averaged weights of general-midi.npz as a checkpoint that the mel stage can start from (start.pt)."""

import json
import sys

import numpy as np
import torch

arrays = np.load(sys.argv[1])
print(json.loads(str(arrays["about"])))
state = {}
for name in arrays.files:
    if name.endswith(".int8"):
        stem = name.removesuffix(".int8")
        state[stem] = torch.from_numpy(arrays[name].astype(np.float32) * arrays[f"{stem}.scale"])
    elif name != "about" and not name.endswith(".scale"):
        state[name] = torch.from_numpy(arrays[name].astype(np.float32))
torch.save(state, sys.argv[2])  # of a plain SpectrogramDiffusion: load_state_dict, then scale_queries
