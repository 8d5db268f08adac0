"""`trimtab lm-eval`: EleutherAI's evaluation harness on the base, a variant or a live server."""

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import torch

from pruners.support.errors import UserError
from pruners.variant import BASE
from server.engine.loading.checkpoint import description_folder
from server.engine.loading.load import load_tokenizer, load_transformers
from server.engine.loading.source import resolve_model
from server.jobs.export import merged_variant


class HarnessError(UserError):
    """The harness is missing, or cannot do what it is asked. The message is one line."""


@dataclass(frozen=True, slots=True)
class HarnessRequest:
    """What the harness shall do.

    `tasks` are its own names, or those of tasks in the folder `include`. `limit` is the number of
    questions of each task, `shots` that of examples before a question; None leaves both to it.
    """

    tasks: tuple[str, ...]
    limit: int | None = None
    shots: int | None = None
    include: Path | None = None


def run_harness(
    model: str, artefact: Path | None, variant: str, request: HarnessRequest
) -> dict[str, Any]:
    """Return the harness's results by task for a variant, computed by `transformers` in fp32.

    The corrections of the variant are merged. Raises `HarnessError`, `ArtefactError`,
    `ModelSourceError` or `UnsupportedModelError`.
    """
    harness = _import_harness()
    from lm_eval.models.huggingface import HFLM

    source = resolve_model(model)
    if variant == BASE:
        computed = load_transformers(source, torch.float32)
    else:
        computed, _ = merged_variant(model, artefact, variant)
    loaded = HFLM(pretrained=computed, tokenizer=load_tokenizer(source), batch_size=8)
    return _run(harness, loaded, None, request)


def run_harness_on_server(
    url: str, model: str, variant: str, request: HarnessRequest
) -> dict[str, Any]:
    """Return the harness's results by task for a running server at `url`.

    Each request names the variant. Raises `HarnessError`.
    """
    harness = _import_harness()
    try:
        (served, *_) = httpx.get(f"{url}/v1/models", timeout=10).json()["data"]
    except (httpx.HTTPError, ValueError, KeyError) as error:
        raise HarnessError(f"no server answers at {url}: {error!r}") from error
    name = served["id"] if variant == BASE else f"{served['id']}@{variant}"
    settings = {
        "base_url": f"{url}/v1/completions",
        "model": name,
        "tokenizer": str(description_folder(resolve_model(model))),
        "tokenized_requests": True,
        "num_concurrent": 4,
    }
    return _run(harness, "local-completions", settings, request)


def _import_harness() -> ModuleType:
    try:
        import lm_eval
        import lm_eval.tasks
    except ImportError as error:
        raise HarnessError(f"{error}: pip install 'trimtab[eval]'") from error
    harness: ModuleType = lm_eval
    return harness


def _run(
    harness: ModuleType, model: object, settings: dict[str, object] | None, request: HarnessRequest
) -> dict[str, Any]:
    manager = harness.tasks.TaskManager(
        include_path=None if request.include is None else str(request.include)
    )
    unknown = [name for name in request.tasks if name not in manager.all_tasks]
    if unknown:
        raise HarnessError(f"the harness has no task '{unknown[0]}'")
    evaluated = harness.simple_evaluate(
        model=model,
        model_args=settings,
        tasks=list(request.tasks),
        num_fewshot=request.shots,
        limit=request.limit,
        task_manager=manager,
        bootstrap_iters=1000,
    )
    results: dict[str, Any] = evaluated["results"]
    return results
