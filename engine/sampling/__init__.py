"""How a mel is drawn out of noise: schedules, samplers as tables, what a caller may choose."""
