"""Live play: notes arrive while the sound goes out."""
