"""Token rows: where they come from, and how ragged ones become batches."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH_TOKENS = 1024
_HELD_BACK = 4


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Rows padded on the right, `[rows, length]`; `valid` is false on padding.

    A causal model's real tokens never see what stands to their right, so that padding needs no
    attention mask; it only has to be left out of what is measured.
    """

    tokens: torch.Tensor
    valid: torch.Tensor

    def scored_positions(self, after: int = 0) -> torch.Tensor:
        """Positions from `after` on whose next token is real, `[rows, length]`."""
        scored = self.valid.roll(-1, dims=1)
        scored[:, -1] = False
        scored[:, :after] = False
        return scored

    def targets(self, scored: torch.Tensor) -> torch.Tensor:
        """The next token of each scored position, `[positions]`."""
        return self.tokens.roll(-1, dims=1)[scored]


def make_batches(rows: Sequence[torch.Tensor], tokens: int = BATCH_TOKENS) -> Iterator[TokenBatch]:
    """Joins rows of similar length, up to `tokens` with padding; a longer row stands alone."""
    for group in group_by_length([len(row) for row in rows], tokens):
        yield pad_rows([rows[index] for index in group])


def group_by_length(lengths: Sequence[int], tokens: int = BATCH_TOKENS) -> Iterator[list[int]]:
    """Indices of rows, the longest first, that make a batch of at most `tokens` with padding."""
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        if group and (len(group) + 1) * lengths[group[0]] > tokens:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def pad_rows(rows: Sequence[torch.Tensor]) -> TokenBatch:
    """One batch of these rows."""
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    return TokenBatch(tokens, torch.arange(tokens.shape[1]) < lengths[:, None])


def tokenize_text(
    tokenizer: "PreTrainedTokenizerBase", text: str, window: int, limit: int | None = None
) -> list[torch.Tensor]:
    """Cuts a text into non-overlapping rows of `window` tokens, `limit` tokens in all.

    The last row may be shorter. Each row starts as the tokenizer starts a text (such as `<bos>`).
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
    """WikiText-2 as the field measures it: lines of the raw file joined by blank lines.

    Non-overlapping full windows; the remainder is dropped. State `window` with any figure: a
    shorter context gives a higher perplexity.
    """
    lines = ["" if not line.strip() else line + "\n" for line in raw.split("\n")[:-1]]
    rows = tokenize_text(tokenizer, "\n\n".join(lines), window)
    return [row for row in rows if len(row) == window]


def count_tokens(rows: Sequence[torch.Tensor]) -> int:
    """Tokens in all rows."""
    return sum(len(row) for row in rows)


def hash_rows(rows: Sequence[torch.Tensor]) -> str:
    """Identity of a set of rows, in order: 32 hexadecimal digits."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(len(row).to_bytes(8, "little"))
        digest.update(row.to(torch.int32).contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def describe_rows(rows: Sequence[torch.Tensor], source: str) -> dict[str, Any]:
    """What rows are, for a file that says what was done with them."""
    return {
        "source": source,
        "rows": len(rows),
        "tokens": count_tokens(rows),
        "hash": hash_rows(rows),
    }


def fitting_rows(rows: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The calibration rows that corrections are fitted on: three of four."""
    return [row for index, row in enumerate(rows) if index % _HELD_BACK]


def held_out_rows(rows: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The other calibration rows, which no fit sees: choices are made and checked on them."""
    return list(rows[::_HELD_BACK])


def sample_rows(rows: Sequence[torch.Tensor], tokens: int, seed: int) -> list[torch.Tensor]:
    """Rows drawn without replacement until there are `tokens`; the last one is cut to fit."""
    drawn: list[torch.Tensor] = []
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    for index in order.tolist():
        room = tokens - count_tokens(drawn)
        if room < 2:  # a single token predicts nothing
            break
        drawn.append(rows[index][:room])
    return drawn
