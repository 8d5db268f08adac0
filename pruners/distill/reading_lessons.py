"""What the base computes for answered prompts, kept so that training maps need not repeat it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.progress import Progress
from torch import Tensor

from pruners.architecture import LocatedModel
from pruners.calibration.layer_replay import final_hidden
from pruners.data.rows import TokenBatch, group_by_length, pad_rows
from pruners.evaluation.reading_quality import PromptAnswer
from pruners.kv.base import SINK_TOKENS
from pruners.reading.maps import features
from pruners.support.progress import track

_BATCH_TOKENS = 2048
_PROMPT_END = 16  # tokens of a prompt's end that are learnt from too


@dataclass(frozen=True, slots=True)
class Lesson:
    """One answered prompt.

    `tokens` `[length]` are those of its prompt, of which there are `prompt`, and of the answer.
    `hidden` `[length, hidden]` is the input of the layer at the depth, `final` `[length - 1 -
    first, hidden]` what the base passes to its head for the tokens from `first` on, each of which
    has a next one.
    """

    tokens: Tensor
    prompt: int
    first: int
    hidden: Tensor
    final: Tensor


@torch.no_grad()
def make_lessons(
    located: LocatedModel,
    depth: int,
    pairs: Sequence[PromptAnswer],
    progress: Progress | None = None,
) -> tuple[list[Lesson], Tensor]:
    """Return a lesson for each pair, in order, and E[x x^T], fp64 `[hidden + 1, hidden + 1]`.

    The latter is that of the features at `depth` of all prompt tokens but the first ones.
    """
    rows = [torch.cat([pair.prompt, pair.answer]) for pair in pairs]
    lessons: dict[int, Lesson] = {}
    size = located.shape.hidden + 1
    total, count = torch.zeros(size, size, dtype=torch.float64), 0
    groups = list(group_by_length([len(row) for row in rows], _BATCH_TOKENS))
    for group in track(groups, "Running the base", progress):
        hidden, final = _run(located, depth, pad_rows([rows[index] for index in group]))
        for row, index in enumerate(group):
            length, prompt = len(rows[index]), len(pairs[index].prompt)
            first = max(0, prompt - _PROMPT_END)
            lessons[index] = Lesson(
                tokens=rows[index],
                prompt=prompt,
                first=first,
                hidden=hidden[row, :length].clone(),
                final=final[row, first : length - 1].clone(),
            )
            x = features(hidden[row, SINK_TOKENS:prompt])
            total += (x.T @ x).double().cpu()
            count += len(x)
    return [lessons[index] for index in range(len(pairs))], total / max(1, count)


def _run(located: LocatedModel, depth: int, batch: TokenBatch) -> tuple[Tensor, Tensor]:
    """Return the input of layer `depth` and of the head, both `[rows, length, hidden]`."""
    found: list[Tensor] = []
    hook = located.layers[depth].module.register_forward_pre_hook(
        lambda module, args: found.append(args[0])
    )
    try:
        final = final_hidden(located, batch)
    finally:
        hook.remove()
    return found[0], final
