"""Graphs to TensorRT plans: typed by precision, built for one kind of GPU."""
