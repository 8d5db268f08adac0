"""The part of `trimtab evaluate` that measures readers: answers to prompts, and reading tasks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rich.progress import Progress
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pruners.architecture import LocatedModel
from pruners.artefact.folder import Artefact
from pruners.artefact.table import Accuracy
from pruners.calibration.layer_replay import final_hidden
from pruners.data.corpus import Corpus
from pruners.data.rows import TokenBatch
from pruners.evaluation.accuracy import PromptForward, measure_accuracy
from pruners.evaluation.reading_quality import (
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
from pruners.variant import BASE
from server.jobs.own_answers import ANSWER_TOKENS, MIN_PROMPTS, answer_prompts
from server.jobs.prompt_losses import EncodedPrompt, read_prompts

_LONGEST_PROMPT = 4096


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
            answers = answer_prompts(source, prompts, self.checkpoint, self.progress)
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
        context = self.located.context
        lengths = tuple(length for length in plan.lengths if length + ANSWER_TOKENS <= context)
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
