"""Requests whose answers are known: prompts of which the middle may be cut, and answers to them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pruners.data.readers import read_json_lines
from pruners.support.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LENGTHS = (256, 512, 1024)
"""Prompts are reported by length: up to each of these, and above the last."""
_PLACEHOLDER = "\u241f"  # a character that no prompt holds; the frame around it is the template's


class PromptsError(UserError):
    """A file holds no prompts that can be used. The message is one line."""


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of a request in order: `before`, `context`, `after` and the `answer`.

    `context` is a document or a list of facts, which may be truncated; the question and the frame
    of the chat lie around it.
    """

    before: tuple[int, ...]
    context: tuple[int, ...]
    after: tuple[int, ...]
    answer: tuple[int, ...] = ()

    @property
    def prompt(self) -> tuple[int, ...]:
        """Return the token ids of the whole prompt."""
        return (*self.before, *self.context, *self.after)

    @property
    def length(self) -> int:
        """Return the number of tokens of the prompt."""
        return len(self.before) + len(self.context) + len(self.after)

    @property
    def tokens(self) -> list[int]:
        """Return the token ids of prompt and answer."""
        return [*self.prompt, *self.answer]

    def truncated(self, tokens: int) -> "Example":
        """Return the same request with only the last `tokens` tokens of its context."""
        return replace(self, context=self.context[len(self.context) - tokens :])


def length_name(tokens: int) -> str:
    """Return the name of the group of lengths that a prompt of `tokens` tokens belongs to."""
    for limit in LENGTHS:
        if tokens <= limit:
            return f"up to {limit}"
    return f"above {LENGTHS[-1]}"


def split_text(tokenizer: "PreTrainedTokenizerBase", parts: Sequence[str], chat: bool) -> Example:
    """Return the request of a text in three parts: before the context, the context, after it.

    With `chat` the whole text is what a user says, if the tokenizer has a chat template. A token
    belongs to the part in which it begins.
    """
    before, context, after = parts
    if chat and tokenizer.chat_template is not None:
        frame = str(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": _PLACEHOLDER}],
                tokenize=False,
                add_generation_prompt=True,
            )
        )
        start, _, end = frame.partition(_PLACEHOLDER)
        before, after = start + before, after + end
    encoded = tokenizer(
        before + context + after,
        add_special_tokens=not chat,
        return_offsets_mapping=True,
        verbose=False,
    )
    first, last = len(before), len(before) + len(context)
    groups: list[list[int]] = [[], [], []]
    place = 0
    for token, (start_of_token, _) in zip(encoded.input_ids, encoded.offset_mapping, strict=True):
        place = max(place, 0 if start_of_token < first else 1 if start_of_token < last else 2)
        groups[place].append(token)
    return Example(*(tuple(group) for group in groups))


def read_examples(
    path: Path, tokenizer: "PreTrainedTokenizerBase", counts: Mapping[str, int], longest: int
) -> list[Example]:
    """Return requests about a document from a JSONL file of `{instruction, context}`, unanswered.

    Of each group of lengths the first `counts` are taken; prompts above `longest` tokens are left
    out. Raises `PromptsError` if there are none, and `ReadError`.
    """
    found: dict[str, list[Example]] = {name: [] for name in counts}
    for _, row in read_json_lines(path):
        fields = row if isinstance(row, dict) else {}
        instruction, context = fields.get("instruction"), fields.get("context")
        if not (isinstance(instruction, str) and isinstance(context, str) and context.strip()):
            continue
        one = split_text(tokenizer, (f"{instruction}\n\n", context, ""), chat=True)
        name = length_name(one.length)
        if one.length <= longest and len(found[name]) < counts[name]:
            found[name].append(one)
        if all(len(group) == counts[name] for name, group in found.items()):
            break
    examples = [one for group in found.values() for one in group]
    if not examples:
        raise PromptsError(
            f"{path.name} holds no prompts with a document: lines of {{instruction, context}}"
        )
    return examples
