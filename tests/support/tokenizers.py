"""Tokenizers of several kinds, and texts that are hard for them."""

from tokenizers import Tokenizer, decoders, models, normalizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from tests.support.tiny import tiny_tokenizer

TEXTS = [
    "the quick brown fox",
    "  two  blanks\n\nand lines \t",
    "é 日本語 😀",
    "<s>the fox<|end|>",
    "\x04\x06\x00 control",
    "f" * 100,
    " " * 200,
    "Å̂ K ﬁ",
]


def with_affixes(prefix, suffix):
    """Return the tiny tokenizer, which puts special tokens around a text."""
    tokenizer = tiny_tokenizer()
    names = {name: tokenizer.convert_tokens_to_ids(name) for name in (*prefix, *suffix)}
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=[*prefix, "$A", *suffix], pair=None, special_tokens=list(names.items())
    )
    return tokenizer


def sentencepiece(normalizer=None):
    """Return a BPE as converted from SentencePiece: `▁` for blanks, bytes for unknown letters."""
    pieces = ["<unk>", "<s>", "▁", "t", "h", "e", "th", "the", "▁the"]
    pieces += [f"<0x{byte:02X}>" for byte in range(256)]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    merges = [("t", "h"), ("th", "e"), ("▁", "the")]
    bpe = models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(bpe)
    blanks = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), blanks] if normalizer is None else [normalizer, blanks]
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")
