import torch

from pruners.data.rows import (
    count_tokens,
    hash_rows,
    make_batches,
    sample_rows,
    tokenize_text,
    tokenize_wikitext2,
)
from tests.support.models import random_rows


class Letters:
    """A tokenizer with one token for each character."""

    def __init__(self, bos: int | None = None) -> None:
        self.bos_token_id = bos

    def __call__(self, text: str, add_special_tokens: bool = True, verbose: bool = True):
        ids = [ord(letter) for letter in text]
        if add_special_tokens and self.bos_token_id is not None:
            ids.insert(0, self.bos_token_id)
        return type("Encoding", (), {"input_ids": ids})()


def text(rows: list[torch.Tensor]) -> list[str]:
    return ["".join(map(chr, row.tolist())) for row in rows]


def test_text_becomes_full_windows_and_a_shorter_one():
    assert text(tokenize_text(Letters(), "abcdefgh", window=3)) == ["abc", "def", "gh"]
    assert text(tokenize_text(Letters(), "abcdefgh", window=3, limit=5)) == ["abc", "de"]


def test_a_last_row_of_one_token_is_dropped():
    assert text(tokenize_text(Letters(), "abcd", window=3)) == ["abc"]


def test_every_row_begins_with_the_bos_token():
    assert text(tokenize_text(Letters(bos=ord("^")), "abcd", window=3)) == ["^ab", "^cd"]


def test_wikitext_protocol_joins_lines_and_drops_the_rest():
    assert text(tokenize_wikitext2(Letters(), "a\n \nbc\nrest", window=4)) == [
        "a\n\n\n",
        "\n\nbc",
    ]


def test_batches_hold_every_row_once_within_the_limit():
    rows = random_rows(9, (5, 30, 7, 12))
    found = []
    for batch in make_batches(rows, tokens=24):
        assert batch.tokens.numel() <= 24 or len(batch.tokens) == 1
        found += [row[real].tolist() for row, real in zip(batch.tokens, batch.valid, strict=True)]
    assert sorted(found) == sorted(row.tolist() for row in rows)


def test_scored_positions_have_a_real_next_token():
    rows = [torch.tensor([1, 2, 3, 4]), torch.tensor([5, 6])]
    (batch,) = make_batches(rows)
    assert batch.targets(batch.scored_positions()).tolist() == [2, 3, 4, 6]
    assert batch.targets(batch.scored_positions(after=2)).tolist() == [4]


def test_a_sample_depends_on_its_seed_and_has_its_size():
    rows = random_rows(10, (7,))
    drawn = sample_rows(rows, 20, seed=3)
    assert count_tokens(drawn) == 20
    assert hash_rows(drawn) == hash_rows(sample_rows(rows, 20, seed=3))
    assert hash_rows(drawn) != hash_rows(sample_rows(rows, 20, seed=4))
    assert count_tokens(sample_rows(rows, 10**6, seed=0)) == 70


def test_the_hash_depends_on_where_rows_end():
    one, two = torch.tensor([1, 2]), torch.tensor([3])
    assert hash_rows([one, two]) != hash_rows([torch.cat([one, two])])
