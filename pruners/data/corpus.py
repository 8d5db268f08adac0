"""Text from the user: files of plain text, JSON lines or CSV, and Hugging Face data sets."""

import importlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pruners.data.readers import read_csv, read_json_lines, read_text
from pruners.data.rows import tokenize_text, tokenize_wikitext2
from pruners.support.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HUB = "hf:"
_MAX_DOCUMENTS = 20_000  # of one source; the rest is not read
_TEXT_FIELDS = ("text", "content", "prompt")


class SourceError(UserError):
    """A source holds no usable text. The message is one line for the user."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents under a name for reports.

    A document is plain text, or a conversation: a list of `{role, content}`. With `wikitext`, the
    only document is tokenized by WikiText-2's protocol.
    """

    name: str
    documents: tuple[str | list[dict[str, str]], ...]
    wikitext: bool = False

    def rows(
        self, tokenizer: "PreTrainedTokenizerBase", window: int, limit: int | None = None
    ) -> list[torch.Tensor]:
        """Return rows of at most `window` tokens, about `limit` tokens in all.

        No row spans two documents. Raises `SourceError` for conversations if the tokenizer has no
        chat template.
        """
        if self.wikitext:
            rows = tokenize_wikitext2(tokenizer, _plain_text(self.documents[0]), window)
            wanted = len(rows) if limit is None else min(len(rows), max(1, limit // window))
            # Evenly spaced rows represent the whole text.
            return [rows[index * len(rows) // wanted] for index in range(wanted)]
        rows, remaining = [], limit
        for document in self.documents:
            added = tokenize_text(tokenizer, self._as_text(tokenizer, document), window, remaining)
            rows += added
            if remaining is not None:
                remaining -= sum(map(len, added))
                if remaining < 2:
                    break
        return rows

    def _as_text(
        self, tokenizer: "PreTrainedTokenizerBase", document: str | list[dict[str, str]]
    ) -> str:
        if isinstance(document, str):
            return document
        if tokenizer.chat_template is None:
            raise SourceError(f"{self.name} holds conversations, the model has no chat template")
        return str(tokenizer.apply_chat_template(document, tokenize=False))

    def split(self, share: float) -> tuple["Corpus", "Corpus"]:
        """Return the first `share` (0 to 1) of the documents and the rest.

        A single document is split by characters.
        """
        first: tuple[str | list[dict[str, str]], ...]
        rest: tuple[str | list[dict[str, str]], ...]
        if len(self.documents) == 1:
            text = _plain_text(self.documents[0])
            cut = int(len(text) * share)
            first, rest = (text[:cut],), (text[cut:],)
        else:
            cut = max(1, int(len(self.documents) * share))
            first, rest = self.documents[:cut], self.documents[cut:]
        return Corpus(self.name, first), Corpus(self.name, rest)


def read_corpus(source: str) -> Corpus:
    """Read `source`: a path, or `hf:NAME[:SPLIT[:COLUMN]]` for a Hugging Face data set.

    A `.jsonl` file holds one object a line with `messages`, or `instruction` (and `context`,
    `response`), or one of `text`, `content`, `prompt`. A `.csv` file has a header; the column
    `text`, `content` or `prompt` is read, or else the first. A `.raw` file is read by WikiText-2's
    protocol. Any other file is plain text. Raises `SourceError` or `ReadError`.
    """
    if source.startswith(HUB):
        return Corpus(source, tuple(_check_not_empty(source, _from_hub(source))))
    path = Path(source)
    match path.suffix.lower():
        case ".jsonl":
            read: Iterable[Any] = _json_lines_documents(path)
        case ".csv":
            read = _csv_documents(path)
        case _:
            read = [read_text(path)]
    documents = tuple(_check_not_empty(path.name, read))
    return Corpus(path.name, documents, wikitext=path.suffix == ".raw")


def _check_not_empty(name: str, documents: Iterable[Any]) -> Iterator[Any]:
    """Yield the documents that are not empty; raise `SourceError` if there are none."""
    empty = True
    for document in islice(documents, _MAX_DOCUMENTS):
        if document:
            empty = False
            yield document
    if empty:
        raise SourceError(f"{name} holds no text")


def _json_lines_documents(path: Path) -> Iterator[Any]:
    for number, row in read_json_lines(path):
        try:
            document = _document(row) if isinstance(row, dict) else None
        except ValueError as error:
            raise SourceError(f"{path.name} line {number}: {error}") from error
        if document is None:
            fields = ", ".join(_TEXT_FIELDS)
            raise SourceError(f"{path.name} line {number} has none of the fields {fields}")
        yield document


def _csv_documents(path: Path) -> Iterator[str]:
    for _, row in read_csv(path):
        yield next((row[name] for name in _TEXT_FIELDS if name in row), next(iter(row.values())))


def _document(row: Mapping[str, Any]) -> str | list[dict[str, str]] | None:
    """Return a row's document, or None if it has no known field.

    Raises `ValueError` for fields that hold no text.
    """
    if row.get("messages") is not None:
        if not isinstance(row["messages"], list):
            raise ValueError("messages is no list")
        return [_message(number, one) for number, one in enumerate(row["messages"], 1)]
    if row.get("instruction") is not None:
        parts = [_text_field(row, name) for name in ("instruction", "context")]
        turns = [{"role": "user", "content": "\n\n".join(part for part in parts if part)}]
        answer = _text_field(row, "response") or _text_field(row, "output")
        return [*turns, {"role": "assistant", "content": answer}] if answer else turns
    return next((row[name] for name in _TEXT_FIELDS if isinstance(row.get(name), str)), None)


def _text_field(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{name} is no text")
    return value


def _message(number: int, message: object) -> dict[str, str]:
    """Return a message whose content is one string.

    Parts of type `text` are joined, as the HTTP API does. Raises `ValueError` for any other.
    """
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise ValueError(f"message {number} has no role")
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not all(map(_is_text, parts)):
        raise ValueError(f"message {number} has content that is no text")
    return {"role": message["role"], "content": "".join(part["text"] for part in parts)}


def _is_text(part: object) -> bool:
    return (
        isinstance(part, Mapping)
        and part.get("type") == "text"
        and isinstance(part.get("text"), str)
    )


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
            document = _document(row) if not column else _column(row[column])
            if document is None:
                raise SourceError(f"{source}: no text among {', '.join(row)}; name the column")
            yield document
    except SourceError:
        raise
    except Exception as error:  # the library raises whatever its transports do
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SourceError(f"cannot read {source}: {reason}") from error


def _column(value: object) -> str | list[dict[str, str]] | None:
    """Return the document in a named column, None if it holds no text. Raises `ValueError`."""
    if isinstance(value, list):
        return _document({"messages": value})
    return value if isinstance(value, str) else None


def _plain_text(document: str | list[dict[str, str]]) -> str:
    return document if isinstance(document, str) else "\n".join(t["content"] for t in document)
