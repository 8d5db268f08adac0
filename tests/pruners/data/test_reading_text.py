"""Text that readers are fitted on: lists of facts, and rows of several kinds."""

import pytest
import torch

from pruners.data.fact_lists import draw_facts
from pruners.data.reading_text import reading_rows
from tests.support.tiny import tiny_tokenizer

PASSAGE = "the quick brown fox jumps over the lazy dog. "


@pytest.mark.parametrize("seed", range(12))
def test_a_line_says_what_its_cue_goes_on_with(seed: int):
    facts = draw_facts(30, seed)
    assert len({fact.cue for fact in facts}) == 30
    for fact in facts:
        assert fact.line.startswith(f"{fact.cue} {fact.answer}")
        assert fact.answer not in fact.question
    assert facts == draw_facts(30, seed)
    assert facts != draw_facts(30, seed + 100)


def test_all_kinds_of_lists_are_drawn():
    assert len({draw_facts(1, seed)[0].question.split()[0] for seed in range(60)}) >= 3


@pytest.fixture(scope="module")
def given() -> list[torch.Tensor]:
    tokens = tiny_tokenizer()(PASSAGE * 400, add_special_tokens=False).input_ids
    return list(torch.tensor(tokens).split(700))


def test_rows_are_text_conversations_and_facts(given):
    tokenizer = tiny_tokenizer()
    rows = reading_rows(tokenizer, given, 6000, seed=1)
    assert sum(map(len, rows)) <= 6000
    assert max(map(len, rows)) <= 512
    texts = [tokenizer.decode(row) for row in rows]
    asked = [text for text in texts if text.startswith("<|user|>")]
    assert any("fox" in text for text in asked)
    assert any("fox" not in text for text in texts)  # facts
    assert any("fox" in text for text in texts if text not in asked)
    again = reading_rows(tokenizer, given, 6000, seed=1)
    assert all(torch.equal(one, other) for one, other in zip(rows, again, strict=True))


def test_a_model_without_a_chat_template_reads_plain_text(given):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    rows = reading_rows(tokenizer, given, 3000, seed=1)
    assert not any("<|user|>" in tokenizer.decode(row) for row in rows)


def test_no_text_gives_no_rows():
    assert reading_rows(tiny_tokenizer(), [], 3000, seed=1) == []
