"""ONNX Runtime: its providers and sessions, and the backend on the CPU."""
