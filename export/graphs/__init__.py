"""Networks to ONNX graphs and back: translated, stored smaller, held against PyTorch."""
