"""`prompt_logprobs` and `best_of`, against ranks and means by hand."""

import math

from server.api.openai.best_answers import best_answers
from server.api.openai.prompt_scores import prompt_scores
from server.api.openai.token_text import TokenText
from server.api.responses import GeneratedAnswer
from server.engine.sequence import TokenLogprob
from tests.support.tiny import tiny_tokenizer


def test_each_token_has_its_rank_and_the_first_has_nothing():
    texts = TokenText(tiny_tokenizer())
    scored = [
        TokenLogprob(70, -5.0, ((70, -5.0), (71, -1.0), (72, -2.0)), 2, rank=40),
        TokenLogprob(71, -0.5, ((71, -0.5), (70, -math.inf)), 2, rank=1),
    ]
    first, other, likeliest = prompt_scores(texts, scored)
    assert first is None
    assert {token: (one["logprob"], one["rank"]) for token, one in other.items()} == {
        "70": (-5.0, 40), "71": (-1.0, 1), "72": (-2.0, 2),
    }  # fmt: skip
    assert other["71"]["decoded_token"] == texts.shown(71)
    assert likeliest["71"]["rank"] == 1
    assert likeliest["70"]["logprob"] == -9999.0


def _answer(text, *logprobs):
    return GeneratedAnswer(text, [TokenLogprob(1, value, (), 0, rank=1) for value in logprobs])


def test_the_answers_with_the_highest_mean_are_chosen_of_each_prompt():
    first = [_answer("a", -1.0, -3.0), _answer("b", -1.0), _answer("c", -0.5, -0.5, -0.6)]
    second = [_answer("d", -9.0), _answer("e", -2.0), _answer("f", -8.0)]
    chosen = best_answers([*first, *second], written=3, wanted=2)
    assert [answer.text for answer in chosen] == ["c", "b", "e", "f"]
