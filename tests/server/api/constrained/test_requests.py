"""Constrained answers over HTTP, by the names of OpenAI and of vLLM, on the tiny model."""

import json

import httpx
import openai
import pytest
from pydantic import BaseModel

from tests.support.schemas import SCHEMAS, check

CHAT, COMPLETIONS, GENERATE = "/v1/chat/completions", "/v1/completions", "/generate"
HI = [{"role": "user", "content": "hi"}]
SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "n": {"enum": [1, 2, 3]}},
    "required": ["ok", "n"],
    "additionalProperties": False,
}


def ask(server, route, **fields):
    """Return the first answer's text and why it ended."""
    prompt = {"messages": HI} if route == CHAT else {"prompt": "hi"}
    response = httpx.post(
        server.url + route, json={"max_tokens": 200, **prompt, **fields}, timeout=60
    )
    assert response.status_code == 200, response.text
    body = response.json()
    choice = body["choices"][0] if "choices" in body else body
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    return text, choice["finish_reason"]


@pytest.mark.parametrize("route", [CHAT, COMPLETIONS, GENERATE])
@pytest.mark.parametrize(
    "fields",
    [
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": SCHEMA},
            }
        },
        {"structured_outputs": {"json": SCHEMA}},
        {"structured_outputs": {"json": json.dumps(SCHEMA), "disable_any_whitespace": True}},
        {"guided_json": SCHEMA, "guided_decoding_backend": "auto"},
    ],
)
def test_json_of_a_schema_has_many_names(tiny_server, route, fields):
    text, reason = ask(tiny_server, route, **fields)
    assert reason == "stop"
    check(text, SCHEMA)
    if "disable_any_whitespace" in str(fields):
        assert not set(text) & set(" \n\t")


@pytest.mark.parametrize("prefix", ["guided_{}", "structured_outputs"])
def test_choices_expressions_and_grammars(tiny_server, prefix):
    for name, value, expected in (
        ("choice", ["only this"], "only this"),
        ("regex", "a{3}b", "aaab"),
        ("grammar", 'root ::= "x" "y"', "xy"),
        ("grammar", 'start: "x" "z"', "xz"),
    ):
        fields = {"guided_" + name: value} if "{}" in prefix else {prefix: {name: value}}
        assert ask(tiny_server, CHAT, **fields) == (expected, "stop")


def test_openai_parses_answers_into_a_model(tiny_server):
    class Answer(BaseModel):
        ok: bool
        n: int

    client = openai.OpenAI(base_url=f"{tiny_server.url}/v1", api_key="x", max_retries=0)
    found = client.chat.completions.parse(
        model="tiny-llama",
        messages=HI,
        response_format=Answer,
        max_tokens=300,
        temperature=0.3,
        seed=4,
    )
    assert isinstance(found.choices[0].message.parsed, Answer)


def test_streams_several_answers_and_log_probabilities(tiny_server):
    client = openai.OpenAI(base_url=f"{tiny_server.url}/v1", api_key="x", max_retries=0)
    stream = client.chat.completions.create(
        model="tiny-llama", messages=HI, n=3, stream=True, logprobs=True, top_logprobs=2,
        max_tokens=200, temperature=1.0, seed=1,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
    )  # fmt: skip
    texts, reasons, tokens = [""] * 3, [None] * 3, [0] * 3
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
            tokens[choice.index] += len(choice.logprobs.content) if choice.logprobs else 0
    for text, reason, count in zip(texts, reasons, tokens, strict=True):
        assert reason == "stop"
        check(text, SCHEMA)
        assert count > 5


def test_an_answer_that_is_cut_is_disclosed(tiny_server):
    text, reason = ask(tiny_server, CHAT, guided_regex="[ab]{500}", max_tokens=7)
    assert (len(text), reason) == (7, "length")


def test_any_object_begins_as_one(tiny_server):
    text, _ = ask(tiny_server, CHAT, response_format={"type": "json_object"})
    assert text.startswith("{")


REFUSED = [
    ({"response_format": {"type": "nonsense"}}, "response_format"),
    ({"response_format": {"type": "json_schema"}}, "schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "schema"),
    ({"guided_json": "{"}, "guided_json"),
    ({"guided_json": "[]"}, "guided_json"),
    ({"guided_json": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
    ({"guided_regex": "("}, "guided_regex"),
    ({"guided_regex": "a", "guided_choice": ["b"]}, "only one"),
    ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "only one"),
    ({"structured_outputs": {}}, "needs one of"),
    ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs"),
    ({"structured_outputs": {"whitespace_pattern": " "}}, "whitespace_pattern"),
    ({"guided_choice": []}, "guided_choice"),
    ({"guided_choice": ["a"] * 2000}, "guided_choice"),
    ({"guided_choice": [1]}, "guided_choice"),
    ({"guided_grammar": "start: nowhere"}, "nowhere"),
    ({"guided_grammar": "x" * 300_000}, "guided_grammar"),
    ({"guided_whitespace_pattern": " "}, "guided_whitespace_pattern"),
    ({"guided_json": {"$ref": "https://example.com/schema"}}, "example.com"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED)
def test_what_is_wrong_or_not_supported_is_refused_in_one_line(tiny_server, fields, message):
    response = httpx.post(tiny_server.url + CHAT, json={"messages": HI, **fields})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert message in error["message"]
    assert "\n" not in error["message"]
    assert len(error["message"]) < 1000
    assert error["param"]


@pytest.mark.slow
def test_answers_by_mixed_schemas_are_valid(tiny_server):
    for number, (question, schema) in enumerate(SCHEMAS.values()):
        text, reason = ask(
            tiny_server, CHAT, messages=[{"role": "user", "content": question}], max_tokens=400,
            temperature=number % 2, seed=number,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        )  # fmt: skip
        if reason != "length":  # as a random model writes
            check(text, schema)
