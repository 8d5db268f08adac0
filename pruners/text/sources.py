"""Text from the user: a file of plain text, JSON lines or CSV, or a Hugging Face dataset."""

import csv
import importlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pruners.errors import UserError
from pruners.text.rows import text_rows, wikitext2_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HUB = "hf:"
_DOCUMENTS = 20_000  # read from one source at most
_TEXT_FIELDS = ("text", "content", "prompt")


class SourceError(UserError):
    """Text that cannot be found or read. One clear line."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents, and what they are called in a report. `wikitext` asks for WikiText-2's protocol.

    A conversation is a list of `{role, content}`; everything else is plain text.
    """

    name: str
    documents: tuple[str | list[dict[str, str]], ...]
    wikitext: bool = False

    def rows(
        self, tokenizer: "PreTrainedTokenizerBase", window: int, limit: int | None = None
    ) -> list[torch.Tensor]:
        """Rows of at most `window` tokens, about `limit` tokens in all, none over two documents.

        Raises `SourceError` for a conversation without a chat template to write it in.
        """
        if self.wikitext:
            rows = wikitext2_rows(tokenizer, _plain(self.documents[0]), window)
            wanted = len(rows) if limit is None else min(len(rows), max(1, limit // window))
            # Evenly spaced, so that a part stands for the whole.
            return [rows[index * len(rows) // wanted] for index in range(wanted)]
        rows, left = [], limit
        for document in self.documents:
            made = text_rows(tokenizer, self._written(tokenizer, document), window, left)
            rows += made
            if left is not None:
                left -= sum(map(len, made))
                if left < 2:
                    break
        return rows

    def _written(
        self, tokenizer: "PreTrainedTokenizerBase", document: str | list[dict[str, str]]
    ) -> str:
        if isinstance(document, str):
            return document
        if tokenizer.chat_template is None:
            raise SourceError(f"{self.name} holds conversations, the model has no chat template")
        return str(tokenizer.apply_chat_template(document, tokenize=False))

    def split(self, share: float) -> tuple["Corpus", "Corpus"]:
        """The first `share` of the documents (of the text, if there is one) and the rest."""
        first: tuple[str | list[dict[str, str]], ...]
        rest: tuple[str | list[dict[str, str]], ...]
        if len(self.documents) == 1:
            text = _plain(self.documents[0])
            cut = int(len(text) * share)
            first, rest = (text[:cut],), (text[cut:],)
        else:
            cut = max(1, int(len(self.documents) * share))
            first, rest = self.documents[:cut], self.documents[cut:]
        return Corpus(self.name, first), Corpus(self.name, rest)


def read_corpus(source: str) -> Corpus:
    """Reads `source`: a path, or `hf:NAME[:SPLIT[:COLUMN]]`. Raises `SourceError`.

    `.jsonl` holds an object a line: `messages`, or `instruction` with `context` and `response`, or
    one of `text`, `content`, `prompt`. `.csv` has a header with one of the latter, or its first
    column is taken. `.raw` is WikiText's raw form, read by its protocol. Anything else is text.
    """
    if source.startswith(HUB):
        return Corpus(source, tuple(_some(source, _from_hub(source))))
    path = Path(source)
    readers: dict[str, Callable[[str], Iterable[Any]]] = {".jsonl": _json_lines, ".csv": _csv}
    try:
        text = path.read_text(encoding="utf-8")
        found = readers.get(path.suffix, lambda whole: [whole])(text)
        documents = tuple(_some(path.name, found))
    except (OSError, UnicodeDecodeError, ValueError, csv.Error) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"cannot read {source}: {error}") from error
    return Corpus(path.name, documents, wikitext=path.suffix == ".raw")


def _some(name: str, documents: Iterable[Any]) -> Iterator[Any]:
    empty = True
    for document in islice(documents, _DOCUMENTS):
        if document:
            empty = False
            yield document
    if empty:
        raise SourceError(f"{name} holds no text")


def _json_lines(text: str) -> Iterator[Any]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            row = json.loads(line)
            document = _document(row) if isinstance(row, dict) else None
            if document is None:
                raise SourceError(f"line {number} has none of the fields {', '.join(_TEXT_FIELDS)}")
            yield document


def _csv(text: str) -> Iterator[str]:
    rows = csv.DictReader(text.splitlines(keepends=True))
    names = rows.fieldnames or [""]
    column = next((name for name in _TEXT_FIELDS if name in names), names[0])
    return (row[column] or "" for row in rows)


def _document(row: Mapping[str, Any]) -> str | list[dict[str, str]] | None:
    if isinstance(row.get("messages"), list):
        return [{"role": str(m["role"]), "content": str(m["content"])} for m in row["messages"]]
    if "instruction" in row:
        asked = "\n\n".join(str(row[k]) for k in ("instruction", "context") if row.get(k))
        turns = [{"role": "user", "content": asked}]
        answer = row.get("response") or row.get("output")
        return [*turns, {"role": "assistant", "content": str(answer)}] if answer else turns
    field = next((name for name in _TEXT_FIELDS if isinstance(row.get(name), str)), None)
    return None if field is None else str(row[field])


def _from_hub(source: str) -> Iterator[Any]:
    name, _, rest = source.removeprefix(HUB).partition(":")
    split, _, column = rest.partition(":")
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise SourceError(
            "a Hugging Face dataset needs `pip install 'trimtab[datasets]'`"
        ) from error
    try:
        rows = datasets.load_dataset(name, split=split or "train", streaming=True)
        for row in rows:
            document = row[column] if column else _document(row)
            if document is None:
                raise SourceError(f"{source}: no text among {', '.join(row)}; name the column")
            yield document
    except SourceError:
        raise
    except Exception as error:  # the library raises whatever its transports do
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SourceError(f"cannot read {source}: {reason}") from error


def _plain(document: str | list[dict[str, str]]) -> str:
    return document if isinstance(document, str) else "\n".join(t["content"] for t in document)
