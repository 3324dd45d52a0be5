"""What voices are taught and judged on: scores, procedural pieces, FluidSynth. Needs no PyTorch."""
