"""The tokenizer that a GGUF file describes."""

import json
import tempfile
from pathlib import Path

from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from pruners.architecture import UnsupportedModelError
from server.engine.loading.gguf_file.parts import GgufModel

# How a byte-level vocabulary splits text: llama.cpp's names that `transformers` knows. Those of
# Llama 3 take a piece that is a token whole, and begin with BOS unless the file says otherwise.
_LLAMA3 = frozenset({"llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "midm-2.0", "tekken"})
_OTHERS = frozenset({"gpt-2", "dbrx", "smaug-bpe", "qwen2", "deepseek-r1-qwen", "kormo", "megrez"})
_DIGITS = "smollm"  # and one that it does not: every digit stands alone
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
    stated = {
        key.removeprefix("tokenizer.ggml."): value
        for key, value in model.metadata.items()
        if key.startswith("tokenizer.ggml.")
    }
    for key in stated:
        if key not in _APPLIED | _HARMLESS:
            raise _refused(where, key, stated[key])
    kind, split = stated.get("model"), stated.get("pre")
    if kind not in ("gpt2", "llama"):
        raise _refused(where, "model", kind)
    splits = {*_LLAMA3, *_OTHERS, _DIGITS} if kind == "gpt2" else {None, "default"}
    if split not in splits:
        raise _refused(where, "pre", split)
    spaced = stated.get("add_space_prefix", True)
    if kind == "llama" and spaced is not _spaced(model):
        raise _refused(where, "add_space_prefix", spaced)
    rows = int(model.tensors["token_embd.weight"].shape[1])
    if stated.get("tokens", 0) > rows:
        raise UnsupportedModelError(
            f"{where}: tokenizer.ggml.tokens holds {stated['tokens']} tokens, the model {rows}"
        )
    begins = {"add_bos_token": stated.get("add_bos_token", True)} if split in _LLAMA3 else {}
    tokenizer = _read(model.path, begins)
    tokenizer = _without_added_tokens(tokenizer, int(stated.get("tokens", 0)))
    if split in _LLAMA3:
        tokenizer.backend_tokenizer.model.ignore_merges = True
    if split == _DIGITS:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    return tokenizer


def named_ends(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the control tokens whose names say that a text, turn or message ends.

    As llama.cpp has it: many files leave out the keys for them.
    """
    added = tokenizer.added_tokens_decoder.items()
    return [token for token, entry in added if entry.special and entry.content in _ENDS]


def _without_added_tokens(
    tokenizer: PreTrainedTokenizerBase, count: int
) -> PreTrainedTokenizerBase:
    """Take away what `transformers` adds to the file's `count` tokens; no model knows it."""
    for name, text in list(tokenizer.special_tokens_map.items()):
        if isinstance(text, str) and tokenizer.convert_tokens_to_ids(text) >= count:
            setattr(tokenizer, name, None)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = [added for added in state["added_tokens"] if added["id"] < count]
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))
    return tokenizer


def _spaced(model: GgufModel) -> bool:
    """Return whether the family's tokenizer puts a space in front of a text."""
    return not str(model.metadata["general.architecture"]).startswith("gemma")


def _refused(where: str, key: str, value: object) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{where}: GGUF key tokenizer.ggml.{key} = {value!r} is not supported"
    )


def _read(path: Path, begins: dict[str, bool]) -> PreTrainedTokenizerBase:
    # Read from an empty folder, since files beside it would be read, too.
    with tempfile.TemporaryDirectory() as alone:
        (Path(alone) / path.name).symlink_to(path.resolve())
        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                alone, gguf_file=path.name, trust_remote_code=False, **begins
            )
        except Exception as error:  # of many types, where the file is damaged
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UnsupportedModelError(
                f"cannot read the tokenizer of {path.name}: {reason}"
            ) from error
    return tokenizer
