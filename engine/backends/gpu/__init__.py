"""The backend on a GPU, whichever engine runs the networks."""
