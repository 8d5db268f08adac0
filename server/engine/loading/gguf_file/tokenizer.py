"""The tokenizer that a GGUF file describes, with the meaning that llama.cpp gives the keys."""

from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from pruners.architecture import UnsupportedModelError
from server.engine.loading.gguf_file.byte_level import SPLITTINGS, byte_level_tokenizer
from server.engine.loading.gguf_file.parts import GgufModel
from server.engine.loading.gguf_file.sentencepiece import sentencepiece_tokenizer
from server.engine.loading.gguf_file.vocabulary import Vocabulary, read_vocabulary

_APPLIED = frozenset(
    {
        "model",
        "pre",
        "tokens",
        "scores",
        "token_type",
        "merges",
        "add_bos_token",
        "add_eos_token",
        "add_space_prefix",
        "bos_token_id",
        "eos_token_id",
        "unknown_token_id",
        "padding_token_id",
    }
)
# Names of tokens, and what only other kinds of vocabulary read.
_HARMLESS = frozenset(
    {
        "eot_token_id",
        "eom_token_id",
        "eog_token_ids",
        "seperator_token_id",
        "separator_token_id",
        "cls_token_id",
        "mask_token_id",
        "prefix_token_id",
        "suffix_token_id",
        "middle_token_id",
        "fim_pre_token_id",
        "fim_suf_token_id",
        "fim_mid_token_id",
        "fim_pad_token_id",
        "fim_rep_token_id",
        "fim_sep_token_id",
        "token_type_count",
        "precompiled_charsmap",
        "remove_extra_whitespaces",
        "add_sep_token",
    }
)
_NAMED = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
_SENTENCEPIECE_IDS = {"bos": 1, "eos": 2, "unk": 0}  # llama.cpp's, where a file names none
_TEMPLATE = "tokenizer.chat_template"
# The names of the served families' control tokens at which llama.cpp stops.
_ENDS = frozenset(
    {
        "</s>",
        "<eos>",
        "<end_of_turn>",
        "<|end|>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|eom_id|>",
        "<|eot_id|>",
        "<|im_end|>",
    }
)


def tokenizer_of(model: GgufModel) -> PreTrainedTokenizerBase:
    """Build the tokenizer. Raises `UnsupportedModelError` with the key that is in the way."""
    where = model.path.name
    stated = _checked_keys(model)
    vocabulary = read_vocabulary(model)
    rows = int(model.tensors["token_embd.weight"].shape[1])
    if len(vocabulary.tokens) > rows:
        raise UnsupportedModelError(
            f"{where}: tokenizer.ggml.tokens holds {len(vocabulary.tokens)} tokens, "
            f"the model {rows}"
        )
    named = _named_tokens(model, vocabulary, stated["model"] == "llama")
    backend, begins = _backend(model, vocabulary, stated, named)
    backend.add_tokens(vocabulary.added())
    adds = {"bos": stated.get("add_bos_token", begins), "eos": stated.get("add_eos_token", False)}
    for name, wanted in adds.items():
        if wanted and name not in named:
            raise UnsupportedModelError(
                f"{where}: GGUF key tokenizer.ggml.{name}_token_id is missing"
            )
    tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        add_bos_token=bool(adds["bos"]),
        add_eos_token=bool(adds["eos"]),
        **{f"{name}_token": token for name, token in named.items()},
    )
    tokenizer.chat_template = _chat_template(model)
    return tokenizer


def named_ends(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the control tokens whose names say that a text, turn or message ends.

    As llama.cpp has it: many files leave out the keys for them.
    """
    added = tokenizer.added_tokens_decoder.items()
    return [token for token, entry in added if entry.special and entry.content in _ENDS]


def _checked_keys(model: GgufModel) -> dict[str, Any]:
    """Return the keys `tokenizer.ggml.*`, after refusing those that are not supported."""
    prefix, where = "tokenizer.ggml.", model.path.name
    stated = {
        key.removeprefix(prefix): value
        for key, value in model.metadata.items()
        if key.startswith(prefix)
    }
    for key, value in stated.items():
        if key not in _APPLIED | _HARMLESS:
            raise _refused(where, key, value)
    kind, split = stated.get("model"), stated.get("pre")
    if kind not in ("gpt2", "llama"):
        raise _refused(where, "model", kind)
    if split not in (SPLITTINGS if kind == "gpt2" else (None, "default")):
        raise _refused(where, "pre", split)
    for key in ("add_bos_token", "add_eos_token", "add_space_prefix"):
        if not isinstance(stated.get(key, True), bool):
            raise _refused(where, key, stated[key])
    return stated


def _named_tokens(model: GgufModel, vocabulary: Vocabulary, sentencepiece: bool) -> dict[str, str]:
    """Return the tokens that begin and end a text, stand for what is unknown, and fill gaps."""
    found = {}
    for name, in_file in _NAMED.items():
        default = _SENTENCEPIECE_IDS.get(name) if sentencepiece else None
        token = model.metadata.get(f"tokenizer.ggml.{in_file}_token_id", default)
        if token is not None and token < len(vocabulary.tokens):
            found[name] = vocabulary.tokens[token]
    return found


def _backend(
    model: GgufModel, vocabulary: Vocabulary, stated: dict[str, Any], named: dict[str, str]
) -> tuple[Tokenizer, bool]:
    """Return the tokenizer, and whether it begins a text with BOS unless the file says."""
    where = model.path.name
    try:
        if stated["model"] == "llama":
            if not vocabulary.scores:
                raise ValueError("tokenizer.ggml.scores is missing")
            blank = stated.get("add_space_prefix", True)
            return sentencepiece_tokenizer(vocabulary, named.get("unk"), blank), True
        splitting = SPLITTINGS[stated["pre"]]
        merges = [str(merge) for merge in model.array("tokenizer.ggml.merges")]
        return byte_level_tokenizer(vocabulary, merges, splitting), splitting.begins
    except Exception as error:  # the library raises plain ones for what does not fit together
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UnsupportedModelError(f"cannot read the tokenizer of {where}: {reason}") from error


def _chat_template(model: GgufModel) -> str | None:
    """Return the template of plain chats. Those that a file has for tools and the like rest."""
    named = (_TEMPLATE, f"{_TEMPLATE}.default")
    found = (model.metadata[key] for key in named if key in model.metadata)
    return next((str(template) for template in found), None)


def _refused(where: str, key: str, value: object) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{where}: GGUF key tokenizer.ggml.{key} = {value!r} is not supported"
    )
