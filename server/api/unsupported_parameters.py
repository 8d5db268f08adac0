"""Parameters of other servers that would change the answer, but are not supported: they get 400.

Parameters that only concern speed, caching or accounting are ignored, and so are unknown names.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from server.api.errors import misfit, unsupported
from server.api.schemas import DetailedBody


@dataclass(frozen=True, slots=True)
class _UnsupportedParameter:
    """A parameter that is refused unless its value is null, false or one of the `neutral` ones.

    `hint` tells what to use instead.
    """

    neutral: tuple[object, ...] = ("", [], {})
    hint: str = ""


def _of(names: str, *neutral: object, hint: str = "") -> dict[str, _UnsupportedParameter]:
    """Return entries for some names. Without `neutral`, empty values are neutral."""
    parameter = (
        _UnsupportedParameter(neutral, hint) if neutral else _UnsupportedParameter(hint=hint)
    )
    return dict.fromkeys(names.split(), parameter)


_UNSUPPORTED: dict[str, _UnsupportedParameter] = {
    # The form of the answer
    **_of("grammar json_schema regex ebnf format", hint="use structured_outputs"),
    **_of("structural_tag"),
    **_of("functions tools mcp_servers"),
    **_of("function_call tool_choice", "none", "auto"),
    **_of("audio web_search_options"),
    **_of("modalities", ["text"], []),
    **_of("verbosity", "medium"),
    **_of("thinking_token_budget thinking_budget_tokens reasoning_budget", -1),
    # Sampling
    **_of("best_of", 1, hint="use n"),
    **_of("use_beam_search early_stopping watermark samplers sampler_seq"),
    **_of("mirostat", 0),
    **_of("num_beams beam_width", 1),
    **_of("length_penalty", 1, 1.0),
    **_of("typical_p typ_p tfs_z encoder_repetition_penalty guidance_scale", 1, 1.0),
    **_of("repeat_penalty", 1, 1.0, hint="use repetition_penalty"),
    **_of("top_a dry_multiplier xtc_probability dynatemp_range smoothing_factor", 0, 0.0),
    **_of("epsilon_cutoff eta_cutoff penalty_alpha no_repeat_ngram_size", 0, 0.0),
    **_of("top_n_sigma adaptive_target", -1, -1.0, 0, 0.0),
    **_of("do_sample", True, hint="use temperature: 0"),
    **_of("bad_words bad_words_ids allowed_token_ids suppress_tokens", hint="use logit_bias"),
    **_of("logits_processors logits_processor negative_prompt vllm_xargs custom_params"),
    # Length
    **_of("n_predict max_new_tokens max_completion_tokens num_predict", hint="use max_tokens"),
    **_of("max_length max_time t_max_predict_ms n_indent", hint="use max_tokens"),
    **_of("min_new_tokens min_length", 0, hint="use min_tokens"),
    **_of("stop_regex stop_sequences", hint="use stop"),
    **_of("no_stop_trim", hint="use include_stop_str_in_output"),
    # Input
    **_of("truncate chat_template documents prompt_embeds"),
    **_of("input_ids inputs", hint="use prompt"),
    **_of("images image_data video_data audio_data multimodal_data mm_processor_kwargs"),
    **_of("lora lora_path lora_request adapter_id", hint="use trimtab.variant"),
    **_of("sampling_params parameters options", hint="its members go into the body itself"),
    # Output
    **_of("echo suffix return_full_text", hint="see /v1/completions"),
    **_of("logprobs", hint="see /v1/completions"),
    **_of("top_logprobs", 0, hint="use logprobs of /v1/completions"),
    **_of("prompt_logprobs", hint="use echo and logprobs of /v1/completions"),
    **_of("n_probs top_n_tokens top_logprobs_num", 0, hint="use logprobs"),
    **_of("return_logprob post_sampling_probs details decoder_input_details"),
    **_of("return_token_ids return_tokens return_tokens_as_token_ids return_hidden_states"),
    **_of("spaces_between_special_tokens detokenize", True),
    **_of("include_reasoning separate_reasoning", True),
}
_GUIDED = _UnsupportedParameter()  # guided_whitespace_pattern and so on


def refuse_unsupported(extra: Mapping[str, object], n: int) -> None:
    """Raise `ApiError` 400 if the undeclared fields of a body ask for something unsupported.

    `n` is the number of answers to each prompt.
    """
    for name, value in extra.items():
        guided = name.startswith("guided_") and name != "guided_decoding_backend"
        parameter = _GUIDED if guided else _UNSUPPORTED.get(name)
        if parameter is None or value is None or _is_neutral(value, parameter.neutral):
            continue
        if (name, value) == ("best_of", n):
            continue
        if name == "tools" and extra.get("tool_choice") == "none":
            continue
        hint = f"; {parameter.hint}" if parameter.hint else ""
        raise unsupported(f"{name} is not supported{hint}", name)


def check_details(body: DetailedBody) -> None:
    """Raise `ApiError` 400 for fields that do not go with a stream, or only with one."""
    if body.stream_options is not None and not body.stream:
        raise misfit("stream_options needs stream: true", "stream_options")
    if body.stream and body.prompt_logprobs is not None:
        raise misfit("prompt_logprobs are not available in a stream", "prompt_logprobs")


def _is_neutral(value: object, neutral: tuple[object, ...]) -> bool:
    """Whether a value is one of the neutral ones, with their type (0 is not False), or false."""
    if value is False:
        return not any(other is True for other in neutral)
    return any(value == other and type(value) is type(other) for other in neutral)
