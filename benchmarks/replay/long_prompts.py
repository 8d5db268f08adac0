"""Real prompts of given lengths: texts one after the other, the first cut at its beginning."""

import random
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from pruners.data.corpus import read_corpus
from server.jobs.prompt_losses import read_prompts

_LIMIT = 4000  # texts that prompts are made of
_PARTED_BY = "\n\n"
_UNREADABLE = "\ufffd"
"""What a decoder writes for a letter of which some bytes are missing."""


def prompts_of_lengths(
    source: str, lengths: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> list[tuple[str, int]]:
    """Return a prompt for each length, and the tokens that it really has.

    The texts of `source` (questions with their documents, or code) are joined in random order, the
    same in every call, until there are enough tokens. What is too much is cut at the beginning, so
    that the last question is whole and no two prompts begin alike. Exits if `source` has no text.
    """
    texts = [one.text for one in read_prompts(read_corpus(source), tokenizer, _LIMIT)]
    if not texts:
        raise SystemExit(f"{source} holds no prompt of up to 512 tokens; name another file")
    parts = [tokenizer.encode(_PARTED_BY + text, add_special_tokens=False) for text in texts]
    chance = random.Random(0)
    found = []
    for length in lengths:
        tokens: list[int] = []
        while len(tokens) < length:
            tokens = parts[chance.randrange(len(parts))] + tokens
        text = str(tokenizer.decode(tokens[-length:])).lstrip().lstrip(_UNREADABLE)
        found.append((text, len(tokenizer.encode(text, add_special_tokens=False))))
    return found
