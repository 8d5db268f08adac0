"""What the benchmark runs on: the default model, its ways of reading, requests and tasks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.reading.examples import Example, read_examples
from benchmarks.reading.questions import make_tasks
from benchmarks.reading.tasks import Tasks
from benchmarks.reading.ways import Way, compared_ways
from pruners.architecture import LocatedModel, locate
from pruners.artefact.folder import load_artefact
from pruners.reading.reader import token_kinds
from pruners.realization.variant_set import VariantSet
from pruners.support.errors import UserError
from pruners.variant import BASE
from server.engine.config import EngineConfig, ModelConfig
from server.engine.loading.artefact_lookup import shipped_artefact
from server.engine.loading.configured_model import load_configured_model
from server.engine.loading.load import LoadedModel, load_transformers
from server.engine.loading.source import DEFAULT_MODEL, resolve_model
from server.engine.offline import answer_all, sampled_requests
from server.engine.runner_factory import build_runner

_RUNNING = 8  # answers that are written together
_VARIANTS = 4  # at most so many of the artefact's are compared, evenly spaced


class NoReadersError(UserError):
    """The artefact holds no readers. The message is one line."""


@dataclass(frozen=True, slots=True)
class ReadingStudy:
    """A model, the ways that are compared on it, requests with the base's answers, and tasks."""

    located: LocatedModel
    ways: Sequence[Way]
    examples: Sequence[Example]
    tasks: Tasks


@dataclass(frozen=True, slots=True)
class StudyPlan:
    """What to measure: prompts with documents from a file, and files of questions.

    `counts` says how many prompts of each group of lengths, `tasks` how many questions of each
    file.
    """

    prompts: Path
    counts: Mapping[str, int]
    tasks: Mapping[Path, int]
    answer_tokens: int = 48


def default_study(plan: StudyPlan) -> ReadingStudy:
    """Return a study of the default model and its artefact.

    Raises `NoReadersError`, `PromptsError`, `TaskError` or `ReadError`.
    """
    model = load_configured_model(ModelConfig())
    folder, context = shipped_artefact(model.name), model.weights.context
    artefact = None if folder is None else load_artefact(folder)  # a served model keeps no maps
    if artefact is None or not artefact.readers:
        raise NoReadersError(f"the artefact of {model.name} holds no readers; see `trimtab build`")
    longest = context - plan.answer_tokens
    examples = read_examples(plan.prompts, model.tokenizer, plan.counts, longest)
    tasks = make_tasks(model.tokenizer, examples, plan.tasks, longest)
    answered = _answered(model, examples, plan.answer_tokens)
    kinds = token_kinds(model.tokenizer, model.weights.shape.vocab)
    located = locate(load_transformers(resolve_model(DEFAULT_MODEL), torch.float32))
    specs = artefact.variants[:: -(-len(artefact.variants) // _VARIANTS)]
    variants = VariantSet(artefact.order, specs, artefact.corrections)
    ways = compared_ways(located, variants, list(artefact.readers.values()), artefact.maps, kinds)
    return ReadingStudy(located, ways, answered, tasks)


def _answered(model: LoadedModel, examples: Sequence[Example], answer_tokens: int) -> list[Example]:
    """Return the requests with the base's own answers, sampled at temperature 1."""
    longest = max(example.length for example in examples) + answer_tokens
    slots = _RUNNING * (longest + 64)
    config = EngineConfig(max_running=_RUNNING, kv_tokens=slots, speculate=False)
    runner = build_runner(model, config, None)
    requests = sampled_requests(
        (example.prompt for example in examples),
        model.variants[BASE],
        model.eos_token_ids,
        answer_tokens,
    )
    return [
        replace(example, answer=tuple(answer.output))
        for example, answer in zip(
            examples, answer_all(runner, model.tokenizer, requests), strict=True
        )
    ]
