"""Where models come from: the hub, Ollama's store, and the package index for the default model."""
