"""The arithmetic of the denoising loop: CUDA C++ kernels, and a NumPy twin of each that the CPU backend runs."""
