"""The part of `trimtab evaluate` that measures readers: answers to prompts, and reading tasks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rich.progress import Progress
from torch import Tensor, tensor
from transformers import PreTrainedTokenizerBase

from pruners.architecture import LocatedModel
from pruners.artefact.folder import Artefact
from pruners.artefact.table import Accuracy
from pruners.calibration.layer_replay import final_hidden
from pruners.data.corpus import Corpus
from pruners.data.rows import TokenBatch
from pruners.evaluation.accuracy import PromptForward, measure_accuracy
from pruners.evaluation.reading_quality import (
    PromptAnswer,
    ReaderMeasurements,
    ReaderSet,
    cut_answers,
    measure_readers,
)
from pruners.evaluation.reading_tasks import ReadingPlan, make_reading_tasks
from pruners.evaluation.tasks import Task, TaskError
from pruners.reading.reader import PromptReader, token_kinds
from pruners.reading.realize import read_by
from pruners.support.checkpoint import Checkpoint
from pruners.support.progress import track
from pruners.variant import BASE
from server.engine.config import EngineConfig
from server.engine.loading.load import LoadedModel, load_model
from server.engine.offline import answer_all, sampled_requests
from server.engine.runner import Runner
from server.engine.runner_factory import build_runner
from server.jobs.prompt_losses import EncodedPrompt, read_prompts

_ANSWER_TOKENS = 48
_LONGEST_PROMPT = 4096
_BATCH = 8  # prompts that are answered together
MIN_PROMPTS = 8
"""Fewest prompts that readers are measured on."""


@dataclass(frozen=True, slots=True)
class ReadingEvaluation:
    """What readers are measured on: the first `limit` of `prompts`, and tasks.

    Without prompts, text that variants are measured on is cut into prompts and what follows.
    """

    prompts: Corpus | None = None
    limit: int = 96
    tasks: ReadingPlan = field(default_factory=ReadingPlan)

    def read(self, tokenizer: PreTrainedTokenizerBase) -> list[EncodedPrompt] | None:
        """Return the prompts, None without any. Raises `TooFewPromptsError`."""
        if self.prompts is None:
            return None
        return read_prompts(self.prompts, tokenizer, self.limit, MIN_PROMPTS, _LONGEST_PROMPT)


@dataclass(frozen=True, slots=True)
class ReadingJob:
    """What the measurements of one artefact's readers share."""

    artefact: Artefact
    located: LocatedModel
    tokenizer: PreTrainedTokenizerBase
    checkpoint: Checkpoint
    progress: Progress

    @property
    def readers(self) -> ReaderSet:
        """The artefact's readers."""
        kinds = token_kinds(self.tokenizer, self.located.shape.vocab)
        return ReaderSet(self.artefact.readers, self.artefact.maps, kinds)

    def measure_losses(
        self, source: Path, prompts: Sequence[EncodedPrompt] | None, rows: Sequence[Tensor]
    ) -> ReaderMeasurements:
        """Measure readers on the base's answers to `prompts`, or without them on pieces of rows."""
        if prompts is None:
            answers = cut_answers(rows)
        else:
            answers = _answer(source, prompts, self.checkpoint, self.progress)
        if len(answers) < 2:
            return ReaderMeasurements({}, {})
        return measure_readers(self.located, self.readers, answers, self.checkpoint, self.progress)

    def measure_tasks(
        self, tasks: Mapping[str, Task], variants: Mapping[str, PromptForward]
    ) -> dict[str, dict[str, Accuracy]]:
        """Return accuracies by task, and by what answers: base, readers and then variants."""
        readers = self.readers
        forwards: dict[str, PromptForward] = {
            BASE: variants[BASE],
            **{
                name: partial(_read, self.located, readers, reader)
                for name, reader in readers.readers.items()
            },
            **variants,
        }
        return {
            name: measure_accuracy(
                self.located, self.tokenizer, forwards, task, self.checkpoint, self.progress
            )
            for name, task in tasks.items()
        }

    def make_tasks(
        self, rows: Sequence[Tensor], plan: ReadingPlan, given: Mapping[str, Task]
    ) -> dict[str, Task]:
        """Return the given tasks and the made ones that fit into the model's context."""
        context = self.located.model.config.max_position_embeddings
        lengths = tuple(length for length in plan.lengths if length + _ANSWER_TOKENS <= context)
        made = make_reading_tasks(self.tokenizer, rows, ReadingPlan(lengths, plan.items, plan.seed))
        taken = sorted(made.keys() & given.keys())
        if taken:
            raise TaskError(f"a file of tasks is named {taken[0]}, as a reading task is; rename it")
        return {**made, **given}


def _read(
    located: LocatedModel,
    readers: ReaderSet,
    reader: PromptReader,
    batch: TokenBatch,
    prompts: Tensor,
) -> Tensor:
    """Run the base after a reader has read the prompts; a `PromptForward` with three bound."""
    maps = readers.maps[reader.depth]
    with read_by(located, reader, maps, prompts, batch.tokens, readers.kinds):
        return final_hidden(located, batch)


def _answer(
    source: Path, prompts: Sequence[EncodedPrompt], checkpoint: Checkpoint, progress: Progress
) -> list[PromptAnswer]:
    """Let the base answer each prompt at temperature 1, as it is served.

    Finished batches are saved in the checkpoint. The model is loaded when one is missing there.
    """
    longest = max(len(one.tokens) for one in prompts)
    answering = _Answering(source, _BATCH * (longest + 2 * _ANSWER_TOKENS))
    made: list[PromptAnswer] = []
    for first in track(range(0, len(prompts), _BATCH), "Answering prompts", progress):
        batch = prompts[first : first + _BATCH]
        key = f"answers from {first}, {' '.join(one.name for one in batch)}"
        saved = checkpoint.get_or_compute(key, partial(answering.answer, batch, first))
        made += [
            PromptAnswer(tensor(one.tokens), tensor(answer))
            for one, answer in zip(batch, saved, strict=True)
        ]
    return made


class _Answering:
    """The base as it is served, loaded when it has to answer for the first time."""

    def __init__(self, source: Path, kv_tokens: int) -> None:
        self._source = source
        self._kv_tokens = kv_tokens
        self._served: tuple[LoadedModel, Runner] | None = None

    def answer(self, prompts: Sequence[EncodedPrompt], first: int) -> list[list[int]]:
        """Return sampled answers; numbers from `first` on are their seeds."""
        if self._served is None:
            model = load_model(self._source, self._source.name)
            config = EngineConfig(max_running=_BATCH, kv_tokens=self._kv_tokens)
            self._served = model, build_runner(model, config, None)
        model, runner = self._served
        tokens = (one.tokens for one in prompts)
        requests = sampled_requests(
            tokens, model.variants[BASE], model.eos_token_ids, _ANSWER_TOKENS, first
        )
        return [list(one.output) for one in answer_all(runner, model.tokenizer, requests)]
