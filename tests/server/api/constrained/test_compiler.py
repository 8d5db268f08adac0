"""Grammars of constraints: what they allow, checked by other means, and what is refused."""

import asyncio
import json
import re

import jsonschema
import pytest

from server.api.constrained.constraint import OutputConstraint
from server.api.errors import ApiError
from server.engine.constraint import ConstraintError
from tests.support.grammars import END, Grammars, allowed_tokens
from tests.support.schemas import SCHEMAS, check
from tests.support.tiny import sentencepiece_tokenizer
from tests.support.tokenizers import sentencepiece

SENTENCEPIECE = sentencepiece_tokenizer()
KINDS = {
    "byte-level": Grammars(),
    "unigram": Grammars(SENTENCEPIECE, len(SENTENCEPIECE), frozenset([2])),
    "bpe": Grammars(sentencepiece(), len(sentencepiece()) + 3, frozenset([1])),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


@each_kind
def test_a_choice_allows_the_tokens_that_begin_its_rest_and_no_others(kind):
    grammars, choices = KINDS[kind], ["the fox", "thé", 'a "b"', "a\\c", "the", "\n"]
    compiled = grammars.compile(OutputConstraint("choice", json.dumps(choices)))
    for choice in choices:
        matcher, data = compiled.matcher(grammars.ends), b""
        while not matcher.ended:
            expected = {
                token
                for token in range(grammars.vocab)
                if (more := grammars.texts.written(token))
                and any(one.encode().startswith(data + more) for one in choices)
            }
            if data.decode(errors="replace") in choices:
                expected |= grammars.ends
            allowed = allowed_tokens(matcher.masks(())[0])
            assert set(allowed) == expected
            fits = [
                token
                for token in allowed
                if choice.encode().startswith(data + grammars.texts.written(token))
            ]
            token = max(fits, key=lambda one: len(grammars.texts.written(one)))
            matcher.accept(token)
            data += grammars.texts.written(token)
        assert data.decode() == choice


@each_kind
@pytest.mark.parametrize("name", SCHEMAS)
def test_whatever_a_schema_allows_is_valid(kind, name):
    schema = SCHEMAS[name][1]
    jsonschema.Draft202012Validator.check_schema(schema)
    for seed in range(3):
        text = KINDS[kind].written(OutputConstraint("json_schema", json.dumps(schema)), seed)
        check(text, schema)


@pytest.mark.parametrize("blanks", [False, True])
def test_blanks_are_bounded_or_none(blanks):
    schema = {"type": "object", "properties": {"a": {"const": 1}, "b": {"const": 2}}}
    schema["required"] = ["a", "b"]
    schema["additionalProperties"] = False
    constraint = OutputConstraint("json_schema", json.dumps(schema), blanks)
    texts = {KINDS["byte-level"].written(constraint, seed) for seed in range(20)}
    if not blanks:
        assert texts == {'{"a":1,"b":2}'}
    assert all(json.loads(text) == {"a": 1, "b": 2} for text in texts)
    assert max(map(len, texts)) < 200


@pytest.mark.parametrize("expression", [r"[a-c]{2,5}", r"(ab|cd)+e", r"\d{4}-\d{2}", "x?y"])
def test_whatever_an_expression_allows_matches_it(expression):
    for seed in range(5):
        text = KINDS["byte-level"].written(OutputConstraint("regex", expression), seed)
        assert re.fullmatch(expression, text)


@pytest.mark.parametrize(
    "source",
    ['start: "a" rest\nrest: "b" | "c" rest', 'root ::= "a" rest\nrest ::= "b" | "c" rest'],
)
def test_a_grammar_is_in_the_notation_of_lark_or_of_gbnf(source):
    for seed in range(5):
        assert re.fullmatch(
            "ac*b", KINDS["byte-level"].written(OutputConstraint("grammar", source), seed)
        )


def test_any_json_object_is_an_object():
    for seed in range(10):
        try:
            text = KINDS["byte-level"].written(OutputConstraint("json_object"), seed, 300)
        except AssertionError:  # it may go on for ever
            continue
        assert isinstance(json.loads(text), dict)


REFUSED = [
    (OutputConstraint("json_schema", '{"type":"array","uniqueItems":true}'), "uniqueItems"),
    (OutputConstraint("json_schema", '{"not":{"type":"string"}}'), "not"),
    (OutputConstraint("json_schema", '{"type":"nonsense"}'), "type"),
    (OutputConstraint("json_schema", '{"$ref":"https://example.com/x"}'), "example.com"),
    (OutputConstraint("json_schema", '{"type":"string","format":"nonsense"}'), "format"),
    (OutputConstraint("json_schema", '{"enum":[]}'), ""),
    (OutputConstraint("regex", "(a"), ""),
    (OutputConstraint("regex", "(?=a)b"), ""),
    (OutputConstraint("regex", ""), "no text"),
    (OutputConstraint("grammar", "start: missing"), "missing"),
    (OutputConstraint("grammar", "nonsense"), ""),
    (
        OutputConstraint("json_schema", json.dumps({"x-guidance": {"lenient": True}, "not": {}})),
        "not",
    ),
]


@pytest.mark.parametrize(("constraint", "reason"), REFUSED)
def test_what_cannot_be_compiled_is_refused(constraint, reason):
    with pytest.raises(ApiError) as caught:
        KINDS["byte-level"].compile(constraint)
    assert caught.value.status == 400
    assert reason in caught.value.message
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 600


def test_a_grammar_is_compiled_once_and_the_oldest_is_dropped():
    grammars = Grammars()
    first = OutputConstraint("regex", "a+", param="one")
    compiled = grammars.compile(first)
    assert grammars.compile(OutputConstraint("regex", "a+", param="other")) is compiled
    for count in range(1, 65):
        grammars.compile(OutputConstraint("regex", f"b{{{count}}}"))
    assert grammars.compile(first) is not compiled


def test_many_answers_of_one_grammar_have_states_of_their_own():
    compiled = KINDS["byte-level"].compile(OutputConstraint("regex", "[ab]{3}"))
    one, other = compiled.matcher([END]), compiled.matcher([END])
    for _ in range(3):
        one.accept(allowed_tokens(one.masks(())[0])[0])
    assert one.ended
    assert not other.ended
    assert len(allowed_tokens(other.masks(())[0])) == 2


def test_drafts_are_masked_and_leave_the_state_as_it_was():
    grammars = KINDS["byte-level"]
    compiled = grammars.compile(OutputConstraint("regex", "abcd*"))
    a, b, c, d, x = (grammars.tokenizer.convert_tokens_to_ids(one) for one in "abcdx")
    matcher = compiled.matcher([END])
    assert matcher.agreed([a, b, x]) == 2
    assert matcher.agreed([x]) == 0
    masks = [allowed_tokens(mask) for mask in matcher.masks([a, b, c])]
    assert masks == [[a], [b], [c], sorted([END, d])]
    assert allowed_tokens(matcher.masks(())[0]) == [a]
    assert matcher.forced() == [a, b, c][: len(matcher.forced())]
    for token in (a, b, c, END):
        assert not matcher.ended
        matcher.accept(token)
    assert matcher.ended


def test_a_token_that_does_not_fit_is_an_error():
    matcher = KINDS["byte-level"].compile(OutputConstraint("regex", "a")).matcher([END])
    with pytest.raises(ConstraintError):
        matcher.accept(END + 40)


def test_an_answer_without_end_tokens_ends_where_nothing_may_follow():
    grammars = KINDS["byte-level"]
    a = grammars.tokenizer.convert_tokens_to_ids("a")
    matcher = grammars.compile(OutputConstraint("regex", "a{1,2}")).matcher(())
    for _ in range(2):
        assert allowed_tokens(matcher.masks(())[0]) == [a]
        matcher.accept(a)
    assert matcher.ended


def test_too_many_waiting_compilations_are_refused():
    grammars = Grammars()

    async def many():
        wanted = [
            grammars.compiler.compile(OutputConstraint("regex", f"a{{{count + 1}}}"))
            for count in range(600)
        ]
        return await asyncio.gather(*wanted, return_exceptions=True)

    found = asyncio.run(many())
    statuses = [one.status for one in found if isinstance(one, ApiError)]
    assert set(statuses) == {503}
    assert 0 < len(statuses) < 100
