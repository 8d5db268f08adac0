"""Tasks that need what stands somewhere in a prompt: a likelihood of usual text hardly sees them.

Each question is answered if greedy decoding writes the answer. They are made from any text; the
same seed gives the same questions.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from pruners.data.fact_lists import Fact, draw_facts
from pruners.evaluation.tasks import Choice, Question, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_COPIED_CUE, _COPIED_ANSWER = 8, 4  # words
_FEWEST_WORDS = 24
_KEY_TOKENS = 64  # of a prompt for a passkey that are no filler


@dataclass(frozen=True, slots=True)
class ReadingPlan:
    """Prompts of about each of the `lengths` in tokens, `items` of each task."""

    lengths: tuple[int, ...] = (200, 1000)
    items: int = 40
    seed: int = 0


def make_reading_tasks(
    tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Tensor], plan: ReadingPlan
) -> dict[str, Task]:
    """Return tasks by name, such as `passkey-1000`, with filler from `rows` of token ids (1-D).

    `passkey` asks for a number that stands in other text, `lookup` for a line of a list of facts,
    `copy` for how a passage of the text goes on. Text of a few words gives `lookup` alone.
    """
    filler = _Filler(tokenizer, [token for row in rows for token in row.tolist()])
    kinds: dict[str, Callable[[int, random.Random], Question | None]] = {
        "passkey": filler.passkey,
        "lookup": lambda length, rng: _lookup(tokenizer, length, rng),
        "copy": filler.copy,
    }
    tasks = {}
    for length in plan.lengths:
        for kind, make in kinds.items():
            rng = random.Random(f"{plan.seed} {kind} {length}")
            made = [make(length, rng) for _ in range(plan.items)]
            questions = [one for one in made if one is not None]
            if questions:
                tasks[f"{kind}-{length}"] = Task(f"{kind}-{length}", questions)
    return tasks


@dataclass(frozen=True, slots=True)
class _Filler:
    """Text to hide something in: token ids that are cut at any place."""

    tokenizer: "PreTrainedTokenizerBase"
    tokens: Sequence[int]

    def words(self, count: int, rng: random.Random) -> list[str]:
        """Return the words of about `count` tokens in a row; they repeat if there are fewer."""
        if not self.tokens:
            return []
        start = rng.randrange(len(self.tokens))
        chosen = [self.tokens[(start + i) % len(self.tokens)] for i in range(count)]
        text = str(self.tokenizer.decode(chosen, skip_special_tokens=True))
        # The first and the last may be cut within a word or a character.
        return text.split()[1:-1]

    def passkey(self, length: int, rng: random.Random) -> Question | None:
        words = self.words(max(length - _KEY_TOKENS, 1), rng)
        if len(words) < _FEWEST_WORDS:
            return None
        key = rng.randrange(10_000, 100_000)
        place = rng.randrange(len(words) // 10, len(words) - len(words) // 10)
        parts = (
            "There is a pass key in the text below. Remember it.\n",
            " ".join(words[:place]),
            f"The pass key is {key}. Remember it, {key} is the pass key.",
            " ".join(words[place:]),
            "\nWhat is the pass key? The pass key is",
        )
        return _written("\n".join(parts), f" {key}")

    def copy(self, length: int, rng: random.Random) -> Question | None:
        words = self.words(max(length - _KEY_TOKENS // 2, 1), rng)
        if len(words) < _FEWEST_WORDS:
            return None
        place = rng.randrange(len(words) - _COPIED_CUE - _COPIED_ANSWER)
        middle, end = place + _COPIED_CUE, place + _COPIED_CUE + _COPIED_ANSWER
        cue = " ".join(words[place:middle])
        context = f"{' '.join(words)}\n\nA passage of the text above, word for word: {cue}"
        return _written(context, f" {' '.join(words[middle:end])}")


def _lookup(tokenizer: "PreTrainedTokenizerBase", length: int, rng: random.Random) -> Question:
    facts = draw_facts(max(2, length // 5), rng.randrange(2**31))
    shown: list[Fact] = []
    used = 0
    for fact, tokens in zip(facts, _counted(tokenizer, [f.line for f in facts]), strict=True):
        if len(shown) > 1 and used + 2 * tokens > length:
            break
        shown.append(fact)
        used += tokens
    asked = rng.choice(shown)
    return _written("\n".join(fact.line for fact in shown) + f"\n\n{asked.cue}", f" {asked.answer}")


def _counted(tokenizer: "PreTrainedTokenizerBase", lines: Sequence[str]) -> Iterator[int]:
    """Yield the number of tokens of each line, its end included."""
    for line in lines:
        yield len(tokenizer(f"{line}\n", add_special_tokens=False).input_ids)


def _written(context: str, continuation: str) -> Question:
    return Question((Choice(context, continuation),), None)
