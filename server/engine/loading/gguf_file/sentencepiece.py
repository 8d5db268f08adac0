"""Tokenizers of SentencePiece's kind, GGUF's `llama`: the best scored pair is merged first."""

from gguf import TokenType
from tokenizers import Tokenizer, decoders, models, normalizers

from server.engine.loading.gguf_file.vocabulary import Vocabulary

_BLANK = "\u2581"


def sentencepiece_tokenizer(
    vocabulary: Vocabulary, unknown: str | None, leading_blank: bool
) -> Tokenizer:
    """Return the tokenizer without its added tokens.

    With `leading_blank`, each stretch of text between added tokens begins with a blank. Characters
    that are no token are spelled in byte tokens, or are `unknown`.
    """
    bpe = models.BPE(
        vocabulary.ids(),
        _merges(vocabulary),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=bool(vocabulary.of_type(TokenType.BYTE)),
    )
    tokenizer = Tokenizer(bpe)
    blanks = normalizers.Replace(" ", _BLANK)
    steps = [decoders.Replace(_BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
    if leading_blank:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_BLANK), blanks])
        steps.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = blanks
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def _merges(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Return the pairs of tokens that make a token, those with the best score first.

    Only what text is written in counts: control tokens and the like are never merged.
    """
    written = (TokenType.NORMAL, TokenType.UNUSED)
    scores = {
        token: score
        for token, score, kind in zip(
            vocabulary.tokens, vocabulary.scores, vocabulary.types, strict=True
        )
        if kind in written
    }
    pairs = [
        (score, token[:at], token[at:])
        for token, score in scores.items()
        for at in range(1, len(token))
        if token[:at] in scores and token[at:] in scores
    ]
    pairs.sort(key=lambda pair: -pair[0])
    return [(left, right) for _, left, right in pairs]
