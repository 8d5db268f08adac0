"""A chat template is rendered as `transformers` does it, and can harm nobody."""

import logging
import time

import pytest

from server.api.prompt.chat_template import Chat, ChatTemplate, TemplateFailedError, open_template
from server.api.prompt.template_worker import MAX_MEMORY, environment
from tests.support.tiny import CHAT, tiny_tokenizer

RICH = """{%- macro turn(role, text) -%}
<|{{ role }}|>{{ text | trim }}<|end|>
{%- endmacro %}
{%- set ns = namespace(count=0) %}
{{- bos_token }}
{%- if style is defined and style == 'loud' %}{{ 'LOUD' }}{% endif %}
{%- for m in messages %}
    {%- if m.role == 'skip' %}{% continue %}{% endif %}
    {%- set ns.count = ns.count + 1 %}
    {%- if m.tool_calls %}{{ m.tool_calls | tojson(indent=2) }}{% endif %}
    {%- if m.reasoning_content is defined %}<think>{{ m.reasoning_content }}</think>{% endif %}
    {% generation %}{{ turn(m['role'], m['content']) }}{% endgeneration %}
{%- endfor %}
{{ ns.count }} {{ dict(a='é') | tojson }} {{ strftime_now('%Y') | length }} {{ tools is none }}
{%- if add_generation_prompt %}<|assistant|>{% endif %}"""
PLAIN = """{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>
{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""
HI = [{"role": "user", "content": "hi"}]


def rendered(template, messages=HI, begun=True, continued=False, most=10**6, **variables):
    return template.render(Chat(messages, variables, begun, continued), most)


@pytest.mark.parametrize("source", [CHAT, RICH, PLAIN])
def test_the_text_is_that_of_transformers(source):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = source
    messages = [
        {"role": "system", "content": " be kind \n"},
        {"role": "skip", "content": "x"},
        {"role": "user", "content": "é 😀 {{ 1 }}", "name": "me"},
        {"role": "assistant", "content": "so  ", "tool_calls": [{"a": [1, "é"]}], "thinking": "t"},
    ]
    template = ChatTemplate(source, tokenizer.special_tokens_map)
    for begun, continued in ((True, False), (False, False), (False, True)):
        if continued and source == RICH:
            continue
        for variables in ({}, {"style": "loud"}):
            assert rendered(
                template, messages, begun, continued, **variables
            ) == tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=begun,
                continue_final_message=continued,
                **variables,
            )
    assert template.variables == ({"style"} if source == RICH else frozenset())
    template.close()


def test_the_environment_offers_what_that_of_transformers_does():
    utilities = pytest.importorskip("transformers.utils.chat_template_utils")
    theirs = utilities._compile_jinja_template("").environment
    ours = environment()
    assert ours.globals.keys() == theirs.globals.keys()
    assert ours.filters.keys() == theirs.filters.keys()
    assert ours.tests.keys() == theirs.tests.keys()


def test_a_default_model_template_is_rendered_as_transformers_does(default_model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(default_model)
    template = open_template(tokenizer)
    assert rendered(template) == tokenizer.apply_chat_template(
        HI, tokenize=False, add_generation_prompt=True
    )
    template.close()


_NAMES = "{% set n = messages[0].content %}"
HOSTILE = (
    _NAMES
    + """
{%- if n == 'zero' %}{{ 1 / 0 }}
{%- elif n == 'recursion' %}{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}
{%- elif n == 'power' %}{{ 'x' * 10 ** 10 }}
{%- elif n == 'doubling' %}{% set ns = namespace(s='xxxxxxxx') %}
    {%- for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}
{%- elif n == 'width' %}{{ 'x' | center(10 ** 10) }}
{%- elif n == 'output' %}{% for i in range(99999) %}{{ 'xxxxxxxxxxxxxxxxxxxx' }}{% endfor %}
{%- elif n == 'raise' %}{{ raise_exception('only\n\nkind words') }}
{%- elif n == 'undefined' %}{{ nothing.at.all }}
{%- elif n == 'sandbox' %}{{ messages.__class__.__mro__ }}
{%- elif n == 'surrogate' %}{{ '\\ud800' }}
{%- elif n == 'type' %}{{ 1 + 'x' }}
{%- elif n == 'loop' %}
    {%- for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}
{%- else %}fine{% endif %}"""
)


def test_whatever_a_template_does_is_one_line_and_the_next_chat_is_served():
    template = ChatTemplate(HOSTILE, {})
    for name, says in {
        "zero": "ZeroDivisionError",
        "recursion": "RecursionError",
        "power": "memory",
        "doubling": "memory",
        "width": "memory",
        "output": "more than 1000000 bytes",
        "raise": "^only kind words$",
        "undefined": "'nothing' is undefined",
        "sandbox": "unsafe",
        "surrogate": "surrogates not allowed",
        "type": "TypeError",
        "loop": "longer than 2 s",
    }.items():
        began = time.monotonic()
        with pytest.raises(TemplateFailedError, match=says) as raised:
            rendered(template, [{"role": "user", "content": name}])
        assert "\n" not in str(raised.value)
        assert time.monotonic() - began < 60
        assert rendered(template) == "fine"
    assert MAX_MEMORY <= 2**30
    template.close()
    with pytest.raises(TemplateFailedError, match="too large"):
        rendered(template, [{"role": "user", "content": "x", "y": float("inf")}])
    template.close()


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{% if", "end of template"),
        ("{% frob %}", "frob"),
        ("{{ raise_exception('a system message must come first') }}", "must come first"),
    ],
)
def test_a_template_that_fails_is_told_at_the_start(source, says, caplog):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = source
    with caplog.at_level(logging.WARNING):
        found = open_template(tokenizer)
    (record,) = caplog.records
    assert says in record.getMessage()
    assert "\n" not in record.getMessage()
    if isinstance(found, ChatTemplate):
        found.close()
    else:
        assert says in str(found)


def test_a_model_without_a_template_says_so():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    assert "no chat template" in str(open_template(tokenizer))
