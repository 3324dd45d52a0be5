"""Published checkpoints, each in its own layout, to networks."""
