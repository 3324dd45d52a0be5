"""A voice's graphs rewritten for a GPU: fewer launches, products in low precision. They need the package onnx."""
