"""Statistics of activations, gathered layer by layer from rows of tokens."""
