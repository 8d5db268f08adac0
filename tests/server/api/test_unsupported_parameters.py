"""What changes the answer and is not supported gets 400 with its name; the rest is ignored."""

import pytest

from server.api.errors import ApiError
from server.api.unsupported_parameters import refuse_unsupported

REFUSED = [
    ("guided_whitespace_pattern", " "),
    ("guided_whatever_comes_next", 1),
    ("grammar", "root ::= x"),
    ("json_schema", {"type": "object"}),
    ("functions", [{"name": "f"}]),
    ("function_call", {"name": "f"}),
    ("tools", [{"type": "function"}]),
    ("tool_choice", "required"),
    ("best_of", 3),
    ("prompt_logprobs", 0),
    ("use_beam_search", True),
    ("num_beams", 4),
    ("length_penalty", 0.5),
    ("typical_p", 0.9),
    ("top_a", 0.1),
    ("mirostat", 2),
    ("dry_multiplier", 0.8),
    ("xtc_probability", 0.5),
    ("repeat_penalty", 1.1),
    ("bad_words", ["x"]),
    ("allowed_token_ids", [1]),
    ("n_probs", 3),
    ("logits_processors", ["x"]),
    ("spaces_between_special_tokens", False),
    ("return_token_ids", True),
    ("modalities", ["text", "audio"]),
    ("audio", {"voice": "x"}),
    ("n_predict", 5),
    ("max_new_tokens", 5),
    ("do_sample", False),
    ("chat_template", "{{ 1 }}"),
    ("echo", True),
    ("sampling_params", {"temperature": 0}),
    ("lora_request", {"name": "x"}),
]
IGNORED = [
    *[(name, None) for name, _ in REFUSED],
    *[(name, False) for name, value in REFUSED if value is not False],
    ("guided_decoding_backend", "auto"),
    ("best_of", 1),
    ("best_of", 2),
    ("tool_choice", "auto"),
    ("tool_choice", "none"),
    ("tools", []),
    ("bad_words", []),
    ("grammar", ""),
    ("length_penalty", 1.0),
    ("repeat_penalty", 1),
    ("mirostat", 0),
    ("do_sample", True),
    ("modalities", ["text"]),
    ("top_n_sigma", -1),
    *[(name, "x") for name in ("user", "store", "metadata", "service_tier", "prediction")],
    *[(name, "x") for name in ("prompt_cache_key", "safety_identifier", "cache_prompt", "zzz")],
    ("parallel_tool_calls", True),
]


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_what_changes_the_answer_is_refused_by_name(name, value):
    with pytest.raises(ApiError, match=f"^{name} is not supported") as raised:
        refuse_unsupported({"user": "me", name: value}, 2)
    assert (raised.value.status, raised.value.param) == (400, name)


@pytest.mark.parametrize(("name", "value"), IGNORED)
def test_what_asks_for_nothing_is_ignored(name, value):
    refuse_unsupported({name: value}, 2)


def test_tools_that_are_not_to_be_used_are_ignored():
    refuse_unsupported({"tools": [{"type": "function"}], "tool_choice": "none"}, 1)


def test_a_hint_says_what_to_use():
    with pytest.raises(ApiError, match="use max_tokens"):
        refuse_unsupported({"max_new_tokens": 7}, 1)
