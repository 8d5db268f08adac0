"""What tells one model on the disk from another without reading it: names, sizes and times."""

from pathlib import Path

from server.engine.loading.gguf_file import part_paths

_READ = (".json", ".safetensors", ".txt", ".jinja", ".model")


def source_identity(path: Path) -> list[list[str | int]]:
    """Return the whole path of a model, then name, size and time in ns of each of its files.

    `path` is a folder or a GGUF file. Raises `UnsupportedModelError` for parts that are missing,
    and `OSError`.
    """
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in _READ)
    else:
        files = part_paths(path)
    found: list[list[str | int]] = [[str(path.resolve())]]
    for file in files:
        stat = file.stat()
        found.append([file.name, stat.st_size, stat.st_mtime_ns])
    return found
