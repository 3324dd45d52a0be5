"""TensorRT and TensorRT-RTX: a voice's plans, and executors of them."""
