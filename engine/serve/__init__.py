"""Voices over HTTP: songs in, sound out as it is made; a page to hear them on; keys to play them by."""
