"""GGUF files: what they say, checked key by key and tensor by tensor."""

from server.engine.loading.gguf_file.parts import GgufModel, open_gguf, part_paths

__all__ = ["GgufModel", "open_gguf", "part_paths"]
