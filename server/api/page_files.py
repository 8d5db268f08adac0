"""The files of the live page, and the paths at which anybody may have them."""

PAGE_FILES = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
}
"""Names and media types."""
PUBLIC_PATHS = {"/", *(f"/{name}" for name in PAGE_FILES)}
