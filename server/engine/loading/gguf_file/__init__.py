"""GGUF files: what they say, checked key by key and tensor by tensor, as a Hugging Face folder."""

from server.engine.loading.gguf_file.convert import convert_gguf
from server.engine.loading.gguf_file.parts import part_paths

__all__ = ["convert_gguf", "part_paths"]
