"""Calibration text for readers: text as it is, conversations about a text, and lists of facts."""

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, tensor

from pruners.data.fact_lists import draw_facts
from pruners.data.rows import count_tokens, tokenize_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROW_TOKENS = 512
_PASSAGE_TOKENS = 448
_FACTS = (8, 36)
_REQUESTS = (
    "Summarize the text.",
    "What is the main point of this text?",
    "List the names and the numbers in it.",
    "Explain this to someone who has not read it.",
    "Answer from the text alone: who or what is it about?",
    "Rewrite it in simple words.",
)


def reading_rows(
    tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Tensor], tokens: int, seed: int
) -> list[Tensor]:
    """Return rows of at most 512 token ids, about `tokens` in all, to fit readers' maps on.

    Half of them are pieces of `rows` (1-D token ids) as they are; a quarter are conversations that
    ask about such a piece, or plain text without a chat template; a quarter are lists of facts,
    some of which end in a question and its answer. The same arguments give the same rows.
    """
    rng = random.Random(seed)
    pieces = [piece for row in rows for piece in row.split(_ROW_TOKENS) if len(piece) > 1]
    rng.shuffle(pieces)
    made: list[Tensor] = []
    room = tokens
    for number in range(len(pieces) * 2):
        if room < 2:
            break
        if number % 2 == 0:
            row = pieces[number // 2]
        elif number % 4 == 1:
            row = _about_text(tokenizer, pieces[-1 - number // 2][:_PASSAGE_TOKENS], rng)
        else:
            row = _about_facts(tokenizer, rng)
        made.append(row[: min(room, _ROW_TOKENS)])
        room = tokens - count_tokens(made)
    return made


def _about_text(tokenizer: "PreTrainedTokenizerBase", piece: Tensor, rng: random.Random) -> Tensor:
    """Return a conversation that asks about a text."""
    text = str(tokenizer.decode(piece, skip_special_tokens=True)).strip()
    request = rng.choice(_REQUESTS)
    parts = (request, text) if rng.random() < 0.5 else (text, request)
    return _as_prompt(tokenizer, "\n\n".join(parts))


def _about_facts(tokenizer: "PreTrainedTokenizerBase", rng: random.Random) -> Tensor:
    """Return a list of facts, in half of the cases with a question about one of them."""
    facts = draw_facts(rng.randint(*_FACTS), rng.randrange(2**31))
    lines = "\n".join(fact.line for fact in facts)
    asked = rng.choice(facts)
    if rng.random() < 0.5:
        return _as_prompt(tokenizer, f"{lines}\n\n{asked.question}")
    return tokenize_text(tokenizer, f"{lines}\n\n{asked.cue} {asked.answer}", _ROW_TOKENS)[0]


def _as_prompt(tokenizer: "PreTrainedTokenizerBase", text: str) -> Tensor:
    """Return the tokens of a conversation after which the model answers, or of the plain text."""
    if tokenizer.chat_template is None:
        return tokenize_text(tokenizer, text, _ROW_TOKENS)[0]
    turns = [{"role": "user", "content": text}]
    shown = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return tensor(tokenizer.encode(str(shown), add_special_tokens=False))
