"""Checkpoints and training to voices, voices to plans: all that needs PyTorch or builds for a GPU."""
