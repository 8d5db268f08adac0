"""The files of the page: what is served of them, at which paths, and with which headers."""

from functools import cache
from importlib import resources
from typing import NamedTuple

_FOLDER = resources.files("server") / "page"
_MEDIA_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",  # no text becomes markup, by whatever mistake
        "trusted-types 'none'",
    )
)
PAGE_HEADERS = {
    "Content-Security-Policy": _SECURITY_POLICY,
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
"""Headers of every file of the page."""


class PageFile(NamedTuple):
    """The content of a file, and its media type."""

    body: bytes
    media_type: str


def _paths() -> dict[str, str]:
    """Return the name of the file at each path, `/` included."""
    names = sorted(
        entry.name for entry in _FOLDER.iterdir() if entry.name.endswith((".css", ".js"))
    )
    return {"/": "index.html", **{f"/page/{name}": name for name in names}}


PUBLIC_PATHS = _paths()
"""The paths at which anybody may have a file of the page, and the files' names."""


@cache
def page_file(path: str) -> PageFile | None:
    """Return the file at a path, None where there is none."""
    name = PUBLIC_PATHS.get(path)
    if name is None:
        return None
    media_type = _MEDIA_TYPES[name.rpartition(".")[2]]
    return PageFile((_FOLDER / name).read_bytes(), f"{media_type}; charset=utf-8")
