"""The forward pass over weights in 4 or 8 bits, by C++ kernels (`csrc`)."""
