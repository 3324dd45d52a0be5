"""Songs: MIDI to notes, notes to tokens and back."""
