"""Prompts that readers are fitted to, with the base's own answers, and prompts that are held out.

What a reader loses on other prompts depends on how many of the base's own answers its maps were
trained on, more than on how long.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from pruners.data.corpus import Corpus
from pruners.data.reading_text import fact_pairs
from pruners.data.rows import count_tokens, hash_rows
from pruners.evaluation.reading_quality import PromptAnswer
from server.jobs.own_answers import ANSWER_TOKENS, MIN_PROMPTS
from server.jobs.prompt_losses import EncodedPrompt, TooFewPromptsError, read_prompts

_LONGEST_PROMPT = 1100  # tokens; training needs memory for all of them
_HELD_OUT_SHARE, _MOST_HELD_OUT = 0.25, 96
_FACTS_SHARE = 0.1  # of all tokens


@dataclass(frozen=True, slots=True)
class SplitPrompts:
    """The prompts of the file `name`: what readers are fitted to, and the first ones, held out."""

    name: str
    fitted: Sequence[EncodedPrompt]
    held_out: Sequence[EncodedPrompt]

    def describe(self) -> dict[str, Any]:
        """Return what an artefact's provenance says of the prompts."""
        together = [torch.tensor(one.tokens) for one in (*self.fitted, *self.held_out)]
        return {
            "name": self.name,
            "fitted": len(self.fitted),
            "held_out": len(self.held_out),
            "hash": hash_rows(together),
        }


def split_prompts(
    corpus: Corpus, limit: int, tokenizer: PreTrainedTokenizerBase, context: int
) -> SplitPrompts:
    """Return the first `limit` prompts that fit into the context, the first of them held out.

    A quarter is held out, 96 at most: those that `trimtab evaluate` reads of the same file. Prompts
    about a text that a held-out one is about are left out, and so are those of more than 1,100
    tokens. Raises `TooFewPromptsError`.
    """
    prompts = read_prompts(corpus, tokenizer, limit, MIN_PROMPTS, _longest_prompt(context))
    cut = min(_MOST_HELD_OUT, int(len(prompts) * _HELD_OUT_SHARE))
    held_out, rest = prompts[:cut], prompts[cut:]
    known = {_document(one) for one in held_out}
    fitted = [one for one in rest if _document(one) not in known]
    if len(fitted) < cut:
        raise TooFewPromptsError(
            f"{len(fitted)} of the {len(rest)} prompts of {corpus.name} after the first {cut}, "
            f"which are held out, are about other texts; {cut} are needed to fit readers to"
        )
    return SplitPrompts(corpus.name, fitted, held_out)


def with_look_ups(
    answers: Sequence[PromptAnswer], tokenizer: PreTrainedTokenizerBase, context: int, seed: int
) -> list[PromptAnswer]:
    """Return the answers, and questions about lists of facts with their true answers.

    A tenth of the tokens are of such lists: a reader that is fitted to what the base says alone
    would forget how to look things up.
    """
    own = count_tokens([tokens for one in answers for tokens in (one.prompt, one.answer)])
    facts = int(own * _FACTS_SHARE / (1 - _FACTS_SHARE))
    found = fact_pairs(tokenizer, facts, _longest_prompt(context), seed)
    return [*answers, *(PromptAnswer(*pair) for pair in found)]


def _longest_prompt(context: int) -> int:
    return min(_LONGEST_PROMPT, context - ANSWER_TOKENS)


def _document(prompt: EncodedPrompt) -> str:
    """Return the longest paragraph of a prompt: the text that it is about, if it has one."""
    return max((part.strip() for part in prompt.text.split("\n\n")), key=len)
