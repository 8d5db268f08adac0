"""Tokenizers whose tokens spell bytes: GGUF's `gpt2`, one way of splitting text for each name.

The names and what they mean are those of llama.cpp's `llama-vocab.cpp`; the expressions are those
of the models' own `tokenizer.json`, from which it adapts its own.
"""

from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.pre_tokenizers import PreTokenizer

from server.engine.loading.gguf_file.vocabulary import Vocabulary

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_LOWER, _UPPER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]", r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ENDING}"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ENDING}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class Splitting:
    """How text is split before its bytes are merged.

    `expression` is None for GPT-2's own. With `digits` each digit stands alone. With `whole` a
    piece that is a token is not merged from its bytes. `begins` is whether a text begins with BOS
    if the file does not say. With `composed` letters and their accents are composed.
    """

    expression: str | None
    digits: bool = False
    whole: bool = False
    begins: bool = False
    composed: bool = False

    def pre_tokenizer(self) -> PreTokenizer:
        """Return what splits a text and spells the bytes."""
        own = self.expression is None
        steps: list[PreTokenizer] = []
        if self.expression is not None:
            steps.append(pre_tokenizers.Split(Regex(self.expression), "isolated"))
        if self.digits:
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=own))
        return pre_tokenizers.Sequence(steps)


def _named(names: str, splitting: Splitting) -> dict[str, Splitting]:
    return dict.fromkeys(names.split(), splitting)


SPLITTINGS = {
    **_named(
        "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2",
        Splitting(_LLAMA3, whole=True, begins=True),
    ),
    **_named("dbrx smaug-bpe", Splitting(_LLAMA3)),  # OLMo 2, Phi-4, Granite 4
    **_named("qwen2 deepseek-r1-qwen kormo f2llmv2 megrez", Splitting(_QWEN2, composed=True)),
    **_named("tekken", Splitting(_TEKKEN, whole=True, begins=True)),
    **_named("gpt-4o llama4 kanana2", Splitting(_GPT4O)),  # Phi-4 mini
    **_named("gpt-2 phi-2 olmo granite-docling", Splitting(None)),
    **_named("smollm refact starcoder", Splitting(None, digits=True)),  # refact: Granite 3
}


def byte_level_tokenizer(
    vocabulary: Vocabulary, merges: list[str], splitting: Splitting
) -> Tokenizer:
    """Return the tokenizer without its added tokens. Raises an exception if a merge is wrong."""
    pairs = []
    for merge in merges:
        at = merge.index(" ", 1)
        pairs.append((merge[:at], merge[at + 1 :]))
    bpe = models.BPE(vocabulary.ids(), pairs, ignore_merges=splitting.whole)
    tokenizer = Tokenizer(bpe)
    if splitting.composed:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = splitting.pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
