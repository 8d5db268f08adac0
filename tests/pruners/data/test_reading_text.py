"""Text that readers are fitted on: lists of facts, and rows of several kinds."""

import pytest
import torch

from pruners.data.fact_lists import draw_facts
from pruners.data.reading_text import fact_pairs, reading_rows
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


@pytest.mark.parametrize("template", [True, False])
def test_a_looked_up_fact_stands_in_its_prompt(template):
    tokenizer = tiny_tokenizer()
    if not template:
        tokenizer.chat_template = None
    pairs = fact_pairs(tokenizer, 12_000, 464, seed=2)
    assert 12_000 <= sum(len(prompt) + len(answer) for prompt, answer in pairs) < 12_000 + 500
    assert max(len(prompt) for prompt, _ in pairs) <= 464
    asked = 0
    for prompt, answer in pairs:
        text, said = tokenizer.decode(prompt), tokenizer.decode(answer)
        assert said.strip() in text
        if text.startswith("<|user|>"):
            asked += 1
            assert text.endswith("?<|end|><|assistant|>")
        else:
            *known, cue = text.removeprefix("<s>").splitlines()
            assert any(line.startswith(cue + said) for line in known)
    assert (0 < asked < len(pairs)) == template
    again = fact_pairs(tokenizer, 12_000, 464, seed=2)
    assert all(
        torch.equal(a, b) for one, other in zip(pairs, again, strict=True)
        for a, b in zip(one, other, strict=True)
    )  # fmt: skip


def test_lists_that_are_too_long_give_no_pairs():
    assert fact_pairs(tiny_tokenizer(), 3000, 20, seed=2) == []
