"""Training a voice: data, the two stages of the diffusion networks, the vocoder."""
