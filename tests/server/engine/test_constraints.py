"""Answers under a constraint: by every variant, with drafts, sampled, and beside others."""

import json
import re

import pytest
import torch

from server.api.constrained.constraint import OutputConstraint
from server.engine.backends.pytorch.graph_decoder import GraphDecoder
from server.engine.detokenizer import StopRules
from server.engine.sampling import SamplingParams
from server.engine.sequence import FinishReason
from tests.support.driving import (
    GREEDY,
    TOKENIZER,
    run,
    runner_of,
    submit,
    variants_of,
    weights_of,
)
from tests.support.grammars import END, Grammars
from tests.support.schemas import SCHEMAS, check
from tests.support.tiny import tiny_model

GRAMMARS = Grammars()
CHOICES = ["the quick fox", "the lazy dog", "zebra", "the fox"]
PROMPT = [5, 6, 7]


def fresh(speculate=True, **limits):
    runner = runner_of(weights_of(tiny_model()), **limits)
    if not speculate:
        runner.scheduler.limits = type(runner.scheduler.limits)(8, 32, speculate=False)
    return runner, variants_of(runner.decoder.weights)


def constrained(constraint, **more):
    """The arguments of a request under a constraint, with the tiny tokenizer's end token."""
    ends = more.pop("eos_token_ids", frozenset([END]))
    stop = more.get("stop", StopRules())
    matcher = GRAMMARS.compile(constraint).matcher(ends | stop.token_ids)
    return {"constraint": matcher, "eos_token_ids": ends, **more}


def choice_of(*texts):
    return OutputConstraint("choice", json.dumps(texts))


def test_the_likeliest_allowed_tokens_are_those_of_transformers():
    """`generate` asks a function of its own which tokens may come."""
    pieces = {token: GRAMMARS.texts.written(token) for token in range(GRAMMARS.vocab)}

    def allowed(_, ids):
        data = b"".join(pieces[token] for token in ids[len(PROMPT) :].tolist())
        fits = [
            token
            for token, more in pieces.items()
            if more and any(one.encode().startswith(data + more) for one in CHOICES)
        ]
        return fits or [END]

    model = tiny_model()
    model.generation_config.eos_token_id = END
    ids = torch.tensor([PROMPT])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=40,
        do_sample=False,
        prefix_allowed_tokens_fn=allowed,
    )
    expected = out[0, len(PROMPT) :].tolist()
    runner, variants = fresh()
    _, answer = submit(runner, PROMPT, variants["base"], 40, **constrained(choice_of(*CHOICES)))
    run(runner)
    assert answer.text in CHOICES
    assert answer.tokens == expected[: len(answer.tokens)]
    assert answer.last.finish_reason is FinishReason.STOP


@pytest.mark.parametrize("kind", ["PyTorchDecoder", "GraphDecoder"])
@pytest.mark.parametrize(
    "sampling", [GREEDY, SamplingParams(seed=3), SamplingParams(top_p=0.9, seed=4)]
)
def test_every_variant_writes_what_the_schema_asks_for_with_drafts_as_without(sampling, kind):
    found = []
    for speculate in (True, False):
        runner, variants = fresh(speculate)
        if kind == "GraphDecoder":
            decoder = runner.decoder
            runner = runner_of(decoder.weights, kind=GraphDecoder)
        answers = {}
        for number, (name, (_, schema)) in enumerate(SCHEMAS.items()):
            if number % 8:
                continue
            variant = list(variants.values())[number % len(variants)]
            given = constrained(
                OutputConstraint("json_schema", json.dumps(schema)), sampling=sampling
            )
            answers[name] = submit(runner, PROMPT, variant, 200, **given)[1]
        _, plain = submit(runner, PROMPT, variants["base"], 30, sampling=sampling)
        run(runner)
        for name, answer in answers.items():
            if answer.last.finish_reason is FinishReason.LENGTH:
                continue  # a random model may write long numbers
            assert answer.last.finish_reason is FinishReason.STOP, answer.last.error
            check(answer.text, SCHEMAS[name][1])
        ended = [a for a in answers.values() if a.last.finish_reason is FinishReason.STOP]
        assert len(ended) > len(answers) / 2
        found.append([one.tokens for one in (*answers.values(), plain)])
    assert found[0] == found[1]


def test_forced_text_is_drafted_and_confirmed():
    runner, variants = fresh()
    text = "the quick brown fox jumps over the lazy dog"
    _, answer = submit(runner, PROMPT, variants["base"], 60, **constrained(choice_of(text)))
    steps = run(runner)
    assert answer.text == text
    assert steps < len(answer.tokens)


def test_an_answer_that_is_cut_ends_by_length():
    runner, variants = fresh()
    _, answer = submit(
        runner, PROMPT, variants["base"], 3, **constrained(OutputConstraint("regex", "(abc){20}"))
    )
    run(runner)
    assert answer.last.finish_reason is FinishReason.LENGTH
    assert answer.text == "abc"


def test_an_answer_that_is_whole_with_its_last_token_ends_by_stop():
    runner, variants = fresh()
    _, answer = submit(
        runner, PROMPT, variants["base"], 3, **constrained(OutputConstraint("regex", "abc"))
    )
    run(runner)
    assert (answer.text, answer.last.finish_reason) == ("abc", FinishReason.STOP)


@pytest.mark.parametrize("ends", [frozenset(), frozenset([END])])
def test_min_tokens_holds_as_long_as_the_form_allows(ends):
    runner, variants = fresh()
    given = constrained(OutputConstraint("regex", "a{1,5}"), eos_token_ids=ends, min_tokens=9)
    _, answer = submit(runner, PROMPT, variants["base"], 20, **given)
    run(runner)
    assert (answer.text, answer.last.finish_reason) == ("aaaaa", FinishReason.STOP)


def test_stop_strings_stop_tokens_and_biases_hold_too():
    runner, variants = fresh()
    x, y = (TOKENIZER.convert_tokens_to_ids(one) for one in "xy")
    biased = SamplingParams(temperature=0.0, logit_bias={x: 100.0})
    either = OutputConstraint("regex", "[xy]{8}")
    _, string = submit(
        runner, PROMPT, variants["base"], 20,
        **constrained(either, sampling=biased, stop=StopRules(("xxx",))),
    )  # fmt: skip
    _, token = submit(
        runner, PROMPT, variants["base"], 20,
        **constrained(either, sampling=biased, stop=StopRules(token_ids=frozenset([x]))),
    )  # fmt: skip
    _, plain = submit(runner, PROMPT, variants["base"], 20, **constrained(either, sampling=biased))
    run(runner)
    assert (string.text, string.last.stop_reason) == ("", "xxx")
    assert (token.text, token.last.stop_reason) == ("", x)
    assert plain.text == "x" * 8
    assert y not in plain.tokens


def test_log_probabilities_are_those_among_all_tokens():
    runner, variants = fresh()
    given = constrained(choice_of("zebra"), logprobs=2)
    _, answer = submit(runner, PROMPT, variants["base"], 20, **given)
    run(runner)
    with torch.inference_mode():
        ids = torch.tensor([[*PROMPT, *answer.tokens]])
        logits = tiny_model()(ids).logits[0, len(PROMPT) - 1 : -1]
    expected = logits.log_softmax(-1)
    for row, delta in zip(expected, [d for d in answer.deltas if d.token is not None], strict=True):
        assert delta.logprob.logprob == pytest.approx(float(row[delta.token]), abs=1e-4)
        assert delta.logprob.top[0][0] == delta.token


def test_a_preempted_answer_goes_on_in_its_form():
    runner, variants = fresh(capacity=256)
    pairs = OutputConstraint("regex", "(ab|cd){45}")
    answers = [
        submit(runner, [i, i + 1], variants["base"], 100, **constrained(pairs))[1]
        for i in range(3, 9)
    ]
    run(runner)
    assert runner.scheduler.preemptions > 0
    assert all(re.fullmatch("(ab|cd){45}", answer.text) for answer in answers)


def test_a_broken_constraint_ends_its_own_answer_only():
    runner, variants = fresh()
    given = constrained(choice_of("zebra"))
    given["constraint"]._matcher.consume_token(END + 40)  # now it is in an error state
    _, broken = submit(runner, PROMPT, variants["base"], 20, **given)
    _, other = submit(runner, PROMPT, variants["base"], 20, **constrained(choice_of("zebra")))
    run(runner)
    assert broken.last.finish_reason is FinishReason.ERROR
    assert "form of the answer" in broken.last.error
    assert other.text == "zebra"
