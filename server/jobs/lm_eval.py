"""`trimtab lm-eval`: EleutherAI's evaluation harness on the base, a variant or a live server."""

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import torch

from pruners.support.errors import UserError
from pruners.variant import BASE
from server.engine.loading.load import load_tokenizer, load_transformers
from server.engine.loading.source import resolve_model
from server.jobs.export import merged_variant


class HarnessError(UserError):
    """The harness is missing, or cannot do what it is asked. One clear line."""


@dataclass(frozen=True, slots=True)
class HarnessRequest:
    """What the harness is asked. `tasks` are its names, looked up in `include` too."""

    tasks: tuple[str, ...]
    limit: int | None = None
    shots: int | None = None
    include: Path | None = None


def run_harness(
    model: str, artefact: Path | None, variant: str, exam: HarnessRequest
) -> dict[str, Any]:
    """Results by task of a variant with its corrections merged, computed by `transformers` in fp32.

    Raises `HarnessError`, `ArtefactError`, `ModelSourceError` or `UnsupportedModelError`.
    """
    harness = _harness()
    from lm_eval.models.huggingface import HFLM

    source = resolve_model(model)
    if variant == BASE:
        made = load_transformers(source, torch.float32)
    else:
        made, _ = merged_variant(model, artefact, variant)
    loaded = HFLM(pretrained=made, tokenizer=load_tokenizer(source), batch_size=8)
    return _run(harness, loaded, None, exam)


def run_harness_on_server(
    url: str, model: str, variant: str, exam: HarnessRequest
) -> dict[str, Any]:
    """The same of a running server, whose answers are pinned to the variant.

    Raises `HarnessError`.
    """
    harness = _harness()
    try:
        (served, *_) = httpx.get(f"{url}/v1/models", timeout=10).json()["data"]
    except (httpx.HTTPError, ValueError, KeyError) as error:
        raise HarnessError(f"no server answers at {url}: {error!r}") from error
    name = served["id"] if variant == BASE else f"{served['id']}@{variant}"
    settings = {
        "base_url": f"{url}/v1/completions",
        "model": name,
        "tokenizer": str(resolve_model(model)),
        "tokenized_requests": True,
        "num_concurrent": 4,
    }
    return _run(harness, "local-completions", settings, exam)


def _harness() -> ModuleType:
    try:
        import lm_eval
        import lm_eval.tasks
    except ImportError as error:
        raise HarnessError(f"{error}: pip install 'trimtab[eval]'") from error
    found: ModuleType = lm_eval
    return found


def _run(
    harness: ModuleType, model: object, settings: dict[str, object] | None, exam: HarnessRequest
) -> dict[str, Any]:
    manager = harness.tasks.TaskManager(
        include_path=None if exam.include is None else str(exam.include)
    )
    unknown = [name for name in exam.tasks if name not in manager.all_tasks]
    if unknown:
        raise HarnessError(f"the harness has no task '{unknown[0]}'")
    found = harness.simple_evaluate(
        model=model,
        model_args=settings,
        tasks=list(exam.tasks),
        num_fewshot=exam.shots,
        limit=exam.limit,
        task_manager=manager,
        bootstrap_iters=1000,
    )
    results: dict[str, Any] = found["results"]
    return results
