"""Sound and its spectrogram: mel analysis, files of sound, the vocoder over a growing mel, pictures, distances."""
