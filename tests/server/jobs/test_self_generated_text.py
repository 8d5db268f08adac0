"""Text that a model writes itself: as many rows as are asked for, whatever is kept already."""

import pytest
import torch
from rich.progress import Progress

from pruners.support.checkpoint import Checkpoint
from server.jobs.self_generated_text import SelfGeneratedText
from tests.support.tiny import tiny_model, tiny_tokenizer


@pytest.mark.slow
def test_rows_are_kept_and_never_too_few_or_too_many(tiny_folder, tmp_path):
    def rows(count: int, length: int = 40, seed: int = 1) -> list[torch.Tensor]:
        with Progress(disable=True) as progress:
            own = SelfGeneratedText(tiny_folder, Checkpoint(tmp_path / "text", "tiny"), progress)
            return own.rows(count, length, seed)

    three = rows(3)
    assert [len(row) for row in three] == [40] * 3
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "text").iterdir()}
    again = rows(3)
    assert all(torch.equal(one, other) for one, other in zip(three, again, strict=True))
    assert kept == {path: path.stat().st_mtime_ns for path in (tmp_path / "text").iterdir()}
    assert len(rows(5)) == 5
    assert len(rows(2)) == 2
    assert not torch.equal(rows(3, seed=2)[0], three[0])
    # A row in three begins as a text, one as an opened conversation, and so on.
    assert three[0][0] != three[1][0] or not torch.equal(three[0][:3], three[1][:3])


def test_rows_begin_with_tokens_that_the_model_knows(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"unk_token": "<unk>"})
    tokenizer.save_pretrained(tmp_path / "tiny")
    size = tokenizer.unk_token_id
    tiny_model(vocab_size=size).save_pretrained(tmp_path / "tiny")
    with Progress(disable=True) as progress:
        own = SelfGeneratedText(tmp_path / "tiny", Checkpoint(tmp_path / "text", "tiny"), progress)
        rows = own.rows(2, 12, 1)
    assert rows[0][0] == tokenizer.bos_token_id
    assert all(int(row.max()) < size for row in rows)
