"""The forward pass in PyTorch, on a CPU or a GPU."""
