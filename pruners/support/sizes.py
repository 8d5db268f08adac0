"""Numbers of bytes as people read them."""


def size_text(count: float) -> str:
    """Return a number of bytes in words, such as `4.9 GB`."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"
