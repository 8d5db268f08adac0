"""Read the pages of the documentation: their fenced blocks, code spans, links and headings."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = tuple(
    path.relative_to(ROOT)
    for path in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "SECURITY.md",
        *sorted((ROOT / "docs").rglob("*.md")),
    )
)
_FENCE = re.compile(r"^\s*```(\w*)\s*$")
_NOT_RUN = re.compile(r"^<!-- not run: (\S.*) -->$")


@dataclass(frozen=True, slots=True)
class CodeBlock:
    """A fenced block. `not_run` is the reason of `<!-- not run: REASON -->` right before it."""

    page: Path
    line: int
    language: str
    text: str
    not_run: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True, slots=True)
class Page:
    """A page's blocks, and its text without them."""

    path: Path
    blocks: tuple[CodeBlock, ...]
    prose: str

    @property
    def spans(self) -> list[str]:
        """All texts between single backquotes."""
        return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", self.prose)

    @property
    def links(self) -> list[str]:
        """The targets of all links and pictures."""
        return re.findall(r"\]\(([^)\s]+)\)", self.prose)

    @property
    def anchors(self) -> set[str]:
        """The anchors that MkDocs and GitHub give to the headings."""
        headings = re.findall(r"^#+ (.+)$", self.prose, re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


@cache
def read_page(path: Path) -> Page:
    """Return a page, by its path from the root. Raises `ValueError` if a block has no end."""
    return parse_page(path, (ROOT / path).read_text())


def parse_page(path: Path, text: str) -> Page:
    """Return the page that `text` is. Raises `ValueError` if a block has no end."""
    blocks, prose = [], []
    lines = iter(enumerate(text.splitlines(), 1))
    previous = ""
    for number, line in lines:
        if fence := _FENCE.match(line):
            body = []
            for _, inner in lines:
                if inner.strip() == "```":
                    break
                body.append(inner)
            else:
                raise ValueError(f"{path}:{number}: the block has no end")
            note = _NOT_RUN.match(previous.strip())
            reason = note.group(1) if note else None
            blocks.append(CodeBlock(path, number, fence.group(1), "\n".join(body) + "\n", reason))
        else:
            prose.append(line)
        if line.strip():
            previous = line
    return Page(path, tuple(blocks), "\n".join(prose))


def all_blocks(*languages: str) -> Iterator[CodeBlock]:
    """Yield every block of all pages in one of these languages."""
    for path in PAGES:
        yield from (block for block in read_page(path).blocks if block.language in languages)
