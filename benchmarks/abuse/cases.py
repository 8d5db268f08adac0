"""Hostile requests for `benchmarks.abuse`, as data: bodies that are well-formed HTTP.

Each kind has some payloads and the statuses that are right for them. A payload is JSON text, an
object, or a function that makes a large one when it is needed.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

HOST = b"@HOST@"
"""Stands for the server's address in a payload."""
GENERATE, COMPLETIONS, CHAT = "/generate", "/v1/completions", "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}
BAD, MISSING, FINE = frozenset({"400"}), frozenset({"404"}), frozenset({"200"})
ANY = frozenset({"200", "400"})
Body = str | bytes | dict[str, object] | Callable[[], str | bytes]


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of request. `enveloped`: what is refused carries the OpenAI error object."""

    kind: str
    payloads: tuple[Callable[[], bytes], ...]
    expected: frozenset[str]
    enveloped: bool = True


def request(
    method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> bytes:
    """One HTTP/1.1 request, after which the connection is closed."""
    fields = {"Host": HOST.decode(), "Connection": "close", "Content-Length": str(len(body))}
    lines = [f"{name}: {value}" for name, value in {**fields, **(headers or {})}.items()]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode() + body


def post(path: str, body: Body, headers: dict[str, str] | None = None) -> bytes:
    """A JSON body to a path."""
    made = body() if callable(body) else body
    made = json.dumps(made) if isinstance(made, dict) else made
    raw = made.encode() if isinstance(made, str) else made
    return request("POST", path, raw, JSON | (headers or {}))


def _bodies(kind: str, path: str, expected: frozenset[str], *bodies: Body) -> Case:
    return Case(kind, tuple(partial(post, path, body) for body in bodies), expected)


def _prompts(kind: str, expected: frozenset[str], *fields: dict[str, object]) -> Case:
    """`/v1/completions` with these fields; ten tokens at most are written."""
    made = ({"prompt": "x", "max_tokens": 10, **more} for more in fields)
    return _bodies(kind, COMPLETIONS, expected, *made)


def _chats(kind: str, expected: frozenset[str], *fields: dict[str, object]) -> Case:
    messages = [{"role": "user", "content": "hi"}]
    made = ({"messages": messages, "max_tokens": 10, **more} for more in fields)
    return _bodies(kind, CHAT, expected, *made)


def _field(name: str, *values: str) -> tuple[str, ...]:
    """Bodies whose field has a value that is written as given."""
    return tuple(_written({"prompt": '"x"', "max_tokens": "4", name: value}) for value in values)


def _said(**message: str) -> str:
    """A chat whose one message has these fields, each written as given."""
    inner = _written({"role": '"user"', "content": '"hi"', **message})
    return _written({"max_tokens": "4", "messages": f"[{inner}]"})


def _written(fields: dict[str, str]) -> str:
    """An object of values that are JSON text, or try to be."""
    return "{" + ", ".join(f'"{name}": {value}' for name, value in fields.items()) + "}"


_LONE = '"\\ud800 lone"'
_LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
_RECURSION = "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"
_KWARGS = "chat_template_kwargs"

CASES: tuple[Case, ...] = (
    # What is no JSON, or not of the right form
    _bodies(
        "broken JSON", GENERATE, BAD, '{"prompt": ', '{"prompt": "x",}', "", "\0", "{'a': 1}", "nul"
    ),
    _bodies("JSON that is no object", GENERATE, BAD, "null", "[1, 2]", '"x"', "7", "true", "[]"),
    _bodies(
        "deep lists", COMPLETIONS, BAD,
        *_field("prompt", "[" * 900 + "]" * 900), *_field("stop", "[" * 900 + "]" * 900),
        *_field("user", '{"a":' * 900 + "1" + "}" * 900), "[" * 100_000,
        lambda: '{"prompt": ' + "[" * 900_000 + "]" * 900_000 + "}",
    ),
    _bodies("no UTF-8", GENERATE, BAD, b'{"prompt": "\xff\xfe"}', b'{"prompt": "\xed\xa0\x80"}',
            '{"prompt": "x"}'.encode("utf-16")),
    _bodies("no right types", GENERATE, BAD, *_field("prompt", "5", "null", "{}", "[1]", "true")),
    _bodies(
        "parameters of other types", COMPLETIONS, BAD, *_field("temperature", '"hot"', "[]", "{}"),
        *_field("stop", "7", "[7]", "{}"), *_field("logit_bias", "[]", '"x"', '{"a": 1}'),
        *_field("stream", '"maybe"', "7"), *_field("max_tokens", '"ten"', "1.5", "[]"),
    ),
    # Text that is no text
    _bodies("surrogates in prompts", GENERATE, BAD, f'{{"prompt": {_LONE}}}'),
    _bodies("surrogates in messages", CHAT, BAD, _said(content=_LONE), _said(name=_LONE)),
    _bodies("surrogates in roles", CHAT, BAD, _said(role=_LONE)),
    _bodies("surrogates in parameters", COMPLETIONS, BAD | MISSING, *_field("stop", _LONE),
            *_field("model", _LONE), *_field("user", _LONE)),
    _bodies("surrogates in variants", GENERATE, BAD, *_field("trimtab", f'{{"variant": {_LONE}}}')),
    # Numbers
    _bodies("1e400", GENERATE, BAD, *_field("temperature", "1e400", "-1e400"),
            *_field("top_p", "1e400"), *_field("max_tokens", "1e400"), *_field("seed", "1e400")),
    _bodies("NaN and Infinity", GENERATE, BAD, *_field("temperature", "NaN", "Infinity"),
            *_field("min_p", "NaN", "-Infinity"), *_field("presence_penalty", "NaN")),
    _bodies("numbers of many digits", GENERATE, BAD, *_field("seed", "9" * 400, "9" * 5000),
            *_field("max_tokens", "9" * 25, "-" + "9" * 25), *_field("temperature", "9" * 400)),
    _prompts("parameters out of range", BAD, {"temperature": -0.5}, {"top_p": 0}, {"top_p": 1.5},
             {"min_p": 2}, {"top_k": -7}, {"repetition_penalty": 0}, {"presence_penalty": 3},
             {"logprobs": 500}, {"max_tokens": -1}, {"seed": 2**64}, {"n": 0}, {"n": -1}),
    _prompts("extreme parameters", ANY, {"temperature": 5e-324}, {"temperature": 100},
             {"temperature": -0.0}, {"top_p": 1e-300}, {"top_k": 2**31}, {"min_p": 1},
             {"repetition_penalty": 1e-30}, {"logit_bias": {"5": -100}}, {"seed": -(2**63)}),
    # Too much
    _bodies("huge strings", GENERATE, BAD, lambda: '{"prompt": "' + "word " * 780_000 + '"}',
            lambda: '{"prompt": "' + "x" * 3_900_000 + '"}',
            lambda: '{"prompt": "' + "é" * 1_900_000 + '"}'),
    _bodies("huge messages", CHAT, BAD, lambda: _said(content='"' + "word " * 780_000 + '"')),
    _bodies("a million empty prompts", COMPLETIONS, BAD,
            lambda: '{"prompt": [' + ",".join(['""'] * 1_000_000) + "]}"),
    _bodies("a million token ids", COMPLETIONS, BAD,
            lambda: '{"prompt": [' + ",".join(["5"] * 1_000_000) + "]}"),
    _bodies("very many messages", CHAT, BAD,
            lambda: '{"messages": [' + ",".join(['{"role":"user","content":""}'] * 120_000) + "]}",
            lambda: '{"messages": [' + ",".join(["{}"] * 1_000_000) + "]}"),
    _bodies("very many stop strings", COMPLETIONS, BAD,
            lambda: '{"prompt": "x", "stop": [' + ",".join(['"s"'] * 500_000) + "]}"),
    _bodies("very many biases", COMPLETIONS, BAD, lambda: json.dumps(
        {"prompt": "x", "logit_bias": {str(9_000_000 + i): 1 for i in range(150_000)}})),
    _bodies("bodies beyond the limit", GENERATE, frozenset({"413"}),
            lambda: '{"prompt": "' + "x" * 6_000_000 + '"}'),
    _prompts("too many answers", BAD, {"n": 1000}, {"n": 10**12}, {"n": 10**30},
             {"prompt": ["x"] * 5000}, {"prompt": [[5]] * 5000}, {"prompt": ["x"] * 60, "n": 60}),
    _prompts("prompts beyond the context", BAD, {"prompt": "word " * 9000},
             {"prompt": [5] * 9000}, {"max_tokens": 10**6}, {"prompt": ["x", "word " * 9000]}),
    # Ids
    _prompts("ids outside the vocabulary", BAD, {"prompt": [-1]}, {"prompt": [10**6]},
             {"prompt": [2**31]}, {"prompt": [2**70]}, {"prompt": [5, 10**6]},
             {"prompt": [[5], [10**6]]}, {"prompt": [5, "x"]}, {"prompt": [0.5]}),
    _prompts("biases outside the vocabulary", BAD, {"logit_bias": {"99999999": 1}},
             {"logit_bias": {"-1": 1}}, {"logit_bias": {"5": 101}}, {"logit_bias": {"5": "x"}},
             {"logit_bias": {"2147483648": 1}}, {"logit_bias": {"x": 1}}),
    _prompts("stop ids outside the vocabulary", BAD, {"stop_token_ids": [10**7]},
             {"stop_token_ids": [-1]}, {"stop_token_ids": [2**40]}, {"stop_token_ids": 5}),
    _prompts("more tokens at least than at most", BAD, {"min_tokens": 11},
             {"min_tokens": 10**9}, {"min_tokens": -1}),
    # Templates
    _chats("templates in requests", BAD, {_KWARGS: {"chat_template": _LOOP}},
           {_KWARGS: {"chat_template": "{{ 1 / 0 }}"}}, {_KWARGS: {"chat_template": _RECURSION}},
           {"chat_template": _LOOP}),
    _chats("reserved template keywords", BAD, {_KWARGS: {"tokenizer_kwargs": {"padding": True}}},
           {_KWARGS: {"tokenize": True}}, {_KWARGS: {"conversation": []}},
           {_KWARGS: {"return_tensors": "pt"}}, {_KWARGS: {"messages": []}}, {_KWARGS: [1]}),
    # What is not supported
    _prompts("parameters of other servers", BAD, {"guided_json": {"type": "none"}},
             {"guided_regex": "a("}, {"structured_outputs": {"regex": 5}}, {"best_of": 300},
             {"prompt_logprobs": 200}, {"truncate_prompt_tokens": 0},
             {"response_format": {"type": "xml"}}, {"suffix": "y"}),
    _chats("tools and formats", BAD, {"tools": [{"type": "function"}]},
           {"functions": [{"name": "f"}]}, {"response_format": {"type": "json_schema"}},
           {"guided_choice": []}, {"top_logprobs": 3}),
    _bodies("parts that are no text", CHAT, BAD, _said(content='[{"type": "image_url"}]'),
            _said(content='[{"type": "text"}]'), _said(content="7"), _said(content="[[]]")),
    _prompts("unknown variants", BAD, {"trimtab": {"variant": "nope"}}, {"trimtab": {"x": 1}},
             {"trimtab": {"kv_budget": 1}}, {"trimtab": {"kv_budget": 10**30}}, {"trimtab": 5},
             {"trimtab": {"ttft_ms": -3}}, {"trimtab": {"variant": ""}}),
    _prompts("unknown models", MISSING, {"model": "gpt-9"}, {"model": "x@y"}, {"model": "@"},
             {"model": "../../etc/passwd"}, {"model": ""}, {"model": "x" * 500}),
    _prompts("contradictions", BAD, {"max_tokens": 0}, {"stream_options": {"include_usage": True}},
             {"stream": True, "echo": True, "logprobs": 1}, {"stop": [""]}, {"stop": ""}),
    # Nothing
    _bodies("empty everything", COMPLETIONS, BAD, "{}", '{"prompt": ""}', '{"prompt": []}',
            '{"prompt": [[]]}', '{"prompt": [""]}', '{"prompt": ["x", ""]}', '{"prompt": null}'),
    _bodies("empty chats", CHAT, BAD, "{}", '{"messages": []}', '{"messages": null}',
            '{"messages": [{}]}', '{"messages": ["x"]}', '{"messages": "hi"}'),
    # Good, if odd
    _prompts("odd but right", FINE, {"stop": None}, {"trimtab": None}, {"user": "\u2028\x85"},
             {"n": None}, {"prompt": "\0"}, {"prompt": "\u202e\ufeff🙂" * 9}),
    _prompts("prompts scored with many alternatives", ANY,
             {"prompt": "word " * 1500, "echo": True, "max_tokens": 0, "logprobs": 20}),
    _prompts("tokens that control", ANY, {"prompt": "<|im_end|><|im_start|>system\n"},
             {"prompt": "<s></s><|endoftext|>"}, {"prompt": "<0xFF><unk>"}),
)  # fmt: skip
