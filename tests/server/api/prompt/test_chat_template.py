"""A chat template is rendered as by `transformers`, and cannot harm the server."""

import logging
import time

import pytest

from server.api.prompt.chat_template import Chat, ChatTemplate, TemplateFailedError, open_template
from server.api.prompt.template_worker import MAX_MEMORY, environment
from server.engine.loading.checkpoint import description_folder
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


def render(template, messages=HI, ending=(True, False), **variables):
    """Return a chat; `ending` are `add_generation_prompt` and `continue_final_message`."""
    return template.render(Chat(messages, variables, *ending), max_bytes=10**6)


MESSAGES = [
    {"role": "system", "content": " be kind \n"},
    {"role": "skip", "content": "x"},
    {"role": "user", "content": "é 😀 {{ 1 }}", "name": "me"},
    {"role": "assistant", "content": "so  ", "tool_calls": [{"a": [1, "é"]}], "thinking": "t"},
]


@pytest.fixture(scope="module", params=[CHAT, RICH, PLAIN], ids=["tiny", "rich", "plain"])
def template(request):
    template = ChatTemplate(request.param, tiny_tokenizer().special_tokens_map)
    template.source = request.param
    yield template
    template.close()


@pytest.mark.parametrize("ending", [(True, False), (False, False), (False, True)])
@pytest.mark.parametrize("variables", [{}, {"style": "loud"}])
def test_the_text_is_that_of_transformers(template, ending, variables):
    if template.source == RICH and ending == (False, True):
        pytest.skip("this template changes the final message")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template.source
    assert render(template, MESSAGES, ending, **variables) == tokenizer.apply_chat_template(
        MESSAGES,
        tokenize=False,
        add_generation_prompt=ending[0],
        continue_final_message=ending[1],
        **variables,
    )


def test_the_variables_of_a_template_are_those_that_it_reads(template):
    assert template.variables == ({"style"} if template.source == RICH else frozenset())


def test_the_environment_offers_what_that_of_transformers_does():
    utilities = pytest.importorskip("transformers.utils.chat_template_utils")
    theirs = utilities._compile_jinja_template("").environment
    ours = environment()
    assert ours.globals.keys() == theirs.globals.keys()
    assert ours.filters.keys() == theirs.filters.keys()
    assert ours.tests.keys() == theirs.tests.keys()


def test_a_default_model_template_is_rendered_as_transformers_does(default_model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(description_folder(default_model))
    template = open_template(tokenizer)
    assert render(template) == tokenizer.apply_chat_template(
        HI, tokenize=False, add_generation_prompt=True
    )
    template.close()


HOSTILE = """{% set n = messages[0].content %}
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


@pytest.fixture(scope="module")
def hostile_template():
    template = ChatTemplate(HOSTILE, {})
    yield template
    template.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("zero", "ZeroDivisionError"),
        ("recursion", "RecursionError"),
        ("power", "memory"),
        ("doubling", "memory"),
        ("width", "memory"),
        ("output", "more than 1000000 bytes"),
        ("raise", "^only kind words$"),
        ("undefined", "'nothing' is undefined"),
        ("sandbox", "unsafe"),
        ("surrogate", "surrogates not allowed"),
        ("type", "TypeError"),
        ("loop", "longer than 2 s"),
    ],
)
def test_a_failing_template_gives_one_line_and_renders_the_next_chat(
    hostile_template, name, message
):
    began = time.monotonic()
    with pytest.raises(TemplateFailedError, match=message) as raised:
        render(hostile_template, [{"role": "user", "content": name}])
    assert "\n" not in str(raised.value)
    assert time.monotonic() - began < 60
    assert render(hostile_template) == "fine"


def test_the_memory_of_a_template_is_bounded():
    assert MAX_MEMORY <= 2**30


def test_a_number_that_json_does_not_have_is_refused():
    template = ChatTemplate(HOSTILE, {})
    with pytest.raises(TemplateFailedError, match="too large"):
        render(template, [{"role": "user", "content": "x", "y": float("inf")}])
    template.close()


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{% if", "end of template"),
        ("{% frob %}", "frob"),
        ("{{ raise_exception('a system message must come first') }}", "must come first"),
    ],
)
def test_a_template_that_fails_is_logged_at_the_start(source, says, caplog):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = source
    with caplog.at_level(logging.WARNING):
        opened = open_template(tokenizer)
    (record,) = caplog.records
    assert says in record.getMessage()
    assert "\n" not in record.getMessage()
    if isinstance(opened, ChatTemplate):
        opened.close()
    else:
        assert says in str(opened)


def test_a_model_without_a_template_says_so():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    assert "no chat template" in str(open_template(tokenizer))
