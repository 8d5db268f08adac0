"""Calibration text for readers: text as it is, conversations about a text, and lists of facts."""

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, tensor

from pruners.data.fact_lists import Fact, draw_facts
from pruners.data.rows import count_tokens, tokenize_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROW_TOKENS = 512
_PASSAGE_TOKENS = 448
_FACTS = (8, 36)
_LEAST_LIST = 32  # tokens; no list of facts is shorter
_SPARE_DRAWS = 16  # of lists, some of which are too long
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


def fact_pairs(
    tokenizer: "PreTrainedTokenizerBase", tokens: int, longest: int, seed: int
) -> list[tuple[Tensor, Tensor]]:
    """Return prompts that look up one of a list of facts, each with the true answer; 1-D token ids.

    They are about `tokens` in all. A prompt is a conversation that ends in a question, or text that
    ends where the fact goes on, which is all that a model without a chat template is given. None
    has more than `longest` tokens. The same arguments give the same pairs.
    """
    rng = random.Random(seed)
    made: list[tuple[Tensor, Tensor]] = []
    room = tokens
    for _ in range(_SPARE_DRAWS + tokens // _LEAST_LIST):
        prompt, answer = _looked_up(tokenizer, rng, 2 * longest)
        if len(prompt) <= longest:
            made.append((prompt, answer))
            room -= len(prompt) + len(answer)
        if room <= 0:
            break
    return made


def _about_text(tokenizer: "PreTrainedTokenizerBase", piece: Tensor, rng: random.Random) -> Tensor:
    """Return a conversation that asks about a text."""
    text = str(tokenizer.decode(piece, skip_special_tokens=True)).strip()
    request = rng.choice(_REQUESTS)
    parts = (request, text) if rng.random() < 0.5 else (text, request)
    return _as_prompt(tokenizer, "\n\n".join(parts))


def _about_facts(tokenizer: "PreTrainedTokenizerBase", rng: random.Random) -> Tensor:
    """Return a list of facts, in half of the cases with a question about one of them."""
    lines, asked = _draw_asked(rng)
    if rng.random() < 0.5:
        return _as_prompt(tokenizer, f"{lines}\n\n{asked.question}")
    return tokenize_text(tokenizer, f"{lines}\n\n{asked.cue} {asked.answer}", _ROW_TOKENS)[0]


def _looked_up(
    tokenizer: "PreTrainedTokenizerBase", rng: random.Random, window: int
) -> tuple[Tensor, Tensor]:
    """Return a list that ends in a question or a cue, and the answer. Text ends at the window."""
    lines, asked = _draw_asked(rng)
    if tokenizer.chat_template is not None and rng.random() < 0.5:
        prompt = _as_prompt(tokenizer, f"{lines}\n\n{asked.question}")
        return prompt, tensor(tokenizer.encode(asked.answer, add_special_tokens=False))
    text = f"{lines}\n\n{asked.cue}"
    cut = len(tokenize_text(tokenizer, text, window)[0])
    whole = tokenize_text(tokenizer, f"{text} {asked.answer}", window)[0]
    return whole[:cut], whole[cut:]


def _draw_asked(rng: random.Random) -> tuple[str, Fact]:
    """Return a list of facts, one a line, and the fact that is asked for."""
    facts = draw_facts(rng.randint(*_FACTS), rng.randrange(2**31))
    return "\n".join(fact.line for fact in facts), rng.choice(facts)


def _as_prompt(tokenizer: "PreTrainedTokenizerBase", text: str) -> Tensor:
    """Return the tokens of a conversation after which the model answers, or of the plain text."""
    if tokenizer.chat_template is None:
        return tokenize_text(tokenizer, text, _ROW_TOKENS)[0]
    turns = [{"role": "user", "content": text}]
    shown = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return tensor(tokenizer.encode(str(shown), add_special_tokens=False))
