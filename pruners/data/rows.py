"""Rows of token ids: made from text, sampled, hashed and joined into batches.

A row is one int64 tensor `[tokens]`; rows may differ in length.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH_TOKENS = 1024
_HELD_OUT_EVERY = 4


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Rows padded on the right.

    `tokens` are int64 `[rows, length]`, `valid` is bool `[rows, length]` and false on padding. In a
    causal model no token attends to the padding on its right, so no attention mask is needed; only
    what is measured must leave padding out.
    """

    tokens: torch.Tensor
    valid: torch.Tensor

    def scored_positions(self, after: int = 0) -> torch.Tensor:
        """Return a mask, bool `[rows, length]`, of positions >= `after` with a real next token."""
        scored = self.valid.roll(-1, dims=1)
        scored[:, -1] = False
        scored[:, :after] = False
        return scored

    def targets(self, scored: torch.Tensor) -> torch.Tensor:
        """Return the next token of each scored position, `[positions]`."""
        return self.tokens.roll(-1, dims=1)[scored]


def make_batches(rows: Sequence[torch.Tensor], tokens: int = BATCH_TOKENS) -> Iterator[TokenBatch]:
    """Yield batches of rows of similar length, each of at most `tokens` tokens with padding.

    A row longer than `tokens` is a batch of its own.
    """
    for group in group_by_length([len(row) for row in rows], tokens):
        yield pad_rows([rows[index] for index in group])


def group_by_length(lengths: Sequence[int], tokens: int = BATCH_TOKENS) -> Iterator[list[int]]:
    """Yield row indices, longest first, of batches of at most `tokens` tokens with padding."""
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        if group and (len(group) + 1) * lengths[group[0]] > tokens:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def pad_rows(rows: Sequence[torch.Tensor]) -> TokenBatch:
    """Return one batch of these rows."""
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    return TokenBatch(tokens, torch.arange(tokens.shape[1]) < lengths[:, None])


def tokenize_text(
    tokenizer: "PreTrainedTokenizerBase", text: str, window: int, limit: int | None = None
) -> list[torch.Tensor]:
    """Tokenize a text into consecutive rows of `window` tokens, of its first `limit` tokens.

    The last row may be shorter; a row of a single token is dropped. If the tokenizer begins a text
    with the `bos` token, so does each row.
    """
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids[:limit]
    bos = tokenizer.bos_token_id
    start = [bos] if bos is not None and tokenizer("").input_ids[:1] == [bos] else []
    step = window - len(start)
    rows = [start + ids[i : i + step] for i in range(0, len(ids), step)]
    return [torch.tensor(row) for row in rows if len(row) > 1]


def tokenize_wikitext2(
    tokenizer: "PreTrainedTokenizerBase", raw: str, window: int = 1024
) -> list[torch.Tensor]:
    """Tokenize WikiText-2's raw file by the usual protocol: lines joined by blank lines.

    The rows are consecutive full windows; the remainder is dropped. Report `window` with every
    perplexity, since a shorter context gives a higher one.
    """
    lines = ["" if not line.strip() else line + "\n" for line in raw.split("\n")[:-1]]
    rows = tokenize_text(tokenizer, "\n\n".join(lines), window)
    return [row for row in rows if len(row) == window]


def count_tokens(rows: Sequence[torch.Tensor]) -> int:
    """Return the number of tokens in all rows."""
    return sum(len(row) for row in rows)


def hash_rows(rows: Sequence[torch.Tensor]) -> str:
    """Return 32 hexadecimal digits that identify these rows in this order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(len(row).to_bytes(8, "little"))
        digest.update(row.to(torch.int32).contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def describe_rows(rows: Sequence[torch.Tensor], source: str) -> dict[str, Any]:
    """Return a summary of rows, for the provenance of a result file."""
    return {
        "source": source,
        "rows": len(rows),
        "tokens": count_tokens(rows),
        "hash": hash_rows(rows),
    }


def fitting_rows(rows: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return the three of four calibration rows on which corrections are fitted."""
    return [row for index, row in enumerate(rows) if index % _HELD_OUT_EVERY]


def held_out_rows(rows: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return every fourth calibration row, on which no correction is fitted.

    They serve to choose between corrections and to check them.
    """
    return list(rows[::_HELD_OUT_EVERY])


def sample_rows(rows: Sequence[torch.Tensor], tokens: int, seed: int) -> list[torch.Tensor]:
    """Draw rows without replacement up to `tokens` tokens; the last one is cut to fit."""
    drawn: list[torch.Tensor] = []
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    for index in order.tolist():
        room = tokens - count_tokens(drawn)
        if room < 2:  # a single token predicts nothing
            break
        drawn.append(rows[index][:room])
    return drawn
