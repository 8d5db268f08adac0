"""Prompts that readers are fitted to with the base's own answers."""

import pytest
import torch

from pruners.data.corpus import Corpus
from pruners.evaluation.reading_quality import PromptAnswer
from pruners.support.checkpoint import Checkpoint
from pruners.support.progress import progress_bars
from server.jobs import own_answers
from server.jobs.own_answers import answer_prompts
from server.jobs.prompt_losses import TooFewPromptsError, read_prompts
from server.jobs.reading_prompts import split_prompts, with_look_ups
from tests.support.tiny import save_tiny, tiny_tokenizer

DOCUMENTS = tuple(f"Is it {n}?\n\nthe quick fox jumps {n} times over the dog" for n in range(40))


def split(documents, limit=1000):
    return split_prompts(Corpus("mine.jsonl", tuple(documents)), limit, tiny_tokenizer(), 512)


def test_the_first_quarter_is_held_out():
    found = split(DOCUMENTS)
    assert [one.text for one in found.held_out] == list(DOCUMENTS[:10])
    assert [one.text for one in found.fitted] == list(DOCUMENTS[10:])
    fewer = split(DOCUMENTS, limit=12)
    assert [one.text for one in (*fewer.held_out, *fewer.fitted)] == list(DOCUMENTS[:12])
    assert len(fewer.held_out) == 3


def test_at_most_96_are_held_out():
    found = split(f"{document} {more}" for document in DOCUMENTS for more in "abcdefghijklm")
    assert (len(found.fitted), len(found.held_out)) == (520 - 96, 96)


def test_nothing_is_held_out_about_a_text_that_is_fitted_to():
    again = f"And why?\n\n{DOCUMENTS[3].split(chr(10))[-1]}"
    found = split([*DOCUMENTS[:37], DOCUMENTS[5], again, DOCUMENTS[37]])
    assert [one.text for one in found.fitted] == [*DOCUMENTS[10:37], DOCUMENTS[37]]
    with pytest.raises(TooFewPromptsError, match=r"1 of the 9 prompts of mine.jsonl after the"):
        split(
            [
                *DOCUMENTS[:3],
                *DOCUMENTS[:3],
                *DOCUMENTS[:3],
                DOCUMENTS[1],
                DOCUMENTS[2],
                DOCUMENTS[10],
            ]
        )


def test_prompts_are_as_short_as_the_context_asks():
    long = "the dog " * 450
    assert len(tiny_tokenizer()(long).input_ids) > 512 - own_answers.ANSWER_TOKENS
    assert long not in [one.text for one in split([long, *DOCUMENTS]).fitted]
    with pytest.raises(TooFewPromptsError, match="7 usable prompts; 8 are needed"):
        split([long, *DOCUMENTS[:7]])


def test_a_change_of_a_prompt_shows_in_what_is_told_of_them():
    told = split(DOCUMENTS).describe()
    assert told == split(DOCUMENTS).describe()
    assert (told["name"], told["fitted"], told["held_out"]) == ("mine.jsonl", 30, 10)
    assert split([*DOCUMENTS[:39], "another one"]).describe()["hash"] != told["hash"]


def test_a_tenth_of_the_tokens_are_look_ups():
    own = [PromptAnswer(torch.arange(200), torch.arange(48)) for _ in range(150)]
    pairs = with_look_ups(own, tiny_tokenizer(), 512, seed=4)
    assert pairs[:150] == own
    lengths = [len(one.prompt) + len(one.answer) for one in pairs]
    assert sum(lengths[150:]) / sum(lengths) == pytest.approx(0.1, abs=0.02)
    other = with_look_ups(own, tiny_tokenizer(), 512, seed=5)
    assert not torch.equal(pairs[150].prompt, other[150].prompt)


def test_answers_are_saved_and_read_again(tmp_path, monkeypatch):
    folder = save_tiny(tmp_path / "mine")
    prompts = read_prompts(Corpus("mine", DOCUMENTS), tiny_tokenizer(), 11)
    monkeypatch.setattr(own_answers, "_SAVED", 4)
    with progress_bars() as progress:
        expected = answer_prompts(folder, prompts, Checkpoint(None, None), progress)
        first = answer_prompts(folder, prompts[:8], Checkpoint(tmp_path / "run", "id"), progress)
        kept = Checkpoint(tmp_path / "run", "id")
        seeds, real = [], own_answers.answer_all

        def answer(runner, tokenizer, requests):
            seeds.append([one.sampling.seed for one in requests])
            return real(runner, tokenizer, requests)

        monkeypatch.setattr(own_answers, "answer_all", answer)
        found = answer_prompts(folder, prompts, kept, progress)
    assert seeds == [[8, 9, 10]]
    assert [one.answer.tolist() for one in found] == [one.answer.tolist() for one in expected]
    assert [one.answer.tolist() for one in first] == [one.answer.tolist() for one in found[:8]]
    assert [tuple(one.prompt.tolist()) for one in found] == [one.tokens for one in prompts]
    assert all(2 <= len(one.answer) <= 48 for one in found)
    assert len({tuple(one.answer.tolist()) for one in found}) == 11
