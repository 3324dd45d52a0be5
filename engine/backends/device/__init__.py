"""One GPU's driver, its memory, and the shapes that networks run at there."""
