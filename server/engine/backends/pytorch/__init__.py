"""The forward pass in PyTorch, on a CPU or a GPU: matrices used by prefix, rows of all variants."""
