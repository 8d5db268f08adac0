"""The base's own answers to prompts, sampled as it is served."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.progress import Progress
from torch import tensor

from pruners.data.rows import hash_rows
from pruners.evaluation.reading_quality import PromptAnswer
from pruners.support.checkpoint import Checkpoint
from pruners.support.progress import track
from pruners.variant import BASE
from server.engine.config import EngineConfig
from server.engine.loading.load import LoadedModel, load_model
from server.engine.offline import answer_all, sampled_requests
from server.engine.runner import Runner
from server.engine.runner_factory import build_runner
from server.jobs.prompt_losses import EncodedPrompt

ANSWER_TOKENS = 48
"""Most tokens of an answer."""
MIN_PROMPTS = 8
"""Fewest prompts that readers are fitted to or measured on."""
_RUNNING = 8  # prompts that are answered together
_SAVED = 32  # prompts whose answers are saved together


def answer_prompts(
    source: Path, prompts: Sequence[EncodedPrompt], checkpoint: Checkpoint, progress: Progress
) -> list[PromptAnswer]:
    """Let the base in the folder `source` answer each prompt at temperature 1.

    An answer depends on its prompt and the prompt's number, up to the rounding of batches. Finished
    ones are saved in the checkpoint. The model is loaded when one is missing there.
    """
    longest = max(len(one.tokens) for one in prompts)
    answering = _Answering(source, _RUNNING * (longest + 2 * ANSWER_TOKENS))
    made: list[PromptAnswer] = []
    for first in track(range(0, len(prompts), _SAVED), "Answering prompts", progress):
        some = prompts[first : first + _SAVED]
        rows = [tensor(one.tokens) for one in some]
        key = f"answers of {ANSWER_TOKENS} tokens from {first} to {hash_rows(rows)}"
        saved = checkpoint.get_or_compute(key, partial(answering.answer, some, first))
        made += [PromptAnswer(row, tensor(answer)) for row, answer in zip(rows, saved, strict=True)]
    return made


class _Answering:
    """The base as it is served, loaded when it has to answer for the first time."""

    def __init__(self, source: Path, kv_tokens: int) -> None:
        self._source = source
        self._kv_tokens = kv_tokens
        self._served: tuple[LoadedModel, Runner] | None = None

    def answer(self, prompts: Sequence[EncodedPrompt], first: int) -> list[list[int]]:
        """Return sampled answers; numbers from `first` on are their seeds.

        Nothing is drafted: what speculation does depends on time, and so would rounding.
        """
        if self._served is None:
            model = load_model(self._source, self._source.name)
            config = EngineConfig(max_running=_RUNNING, kv_tokens=self._kv_tokens, speculate=False)
            self._served = model, build_runner(model, config, None)
        model, runner = self._served
        tokens = (one.tokens for one in prompts)
        requests = sampled_requests(
            tokens, model.variants[BASE], model.eos_token_ids, ANSWER_TOKENS, first
        )
        return [list(one.output) for one in answer_all(runner, model.tokenizer, requests)]
