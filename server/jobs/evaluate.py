"""`trimtab evaluate`: measures an artefact's variants, and writes its table and report."""

from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path

import torch
from rich.progress import Progress
from transformers import PreTrainedTokenizerBase

from pruners.architecture import LocatedModel, locate
from pruners.artefact.folder import Artefact, load_artefact
from pruners.artefact.table import Quality, Table
from pruners.calibration.layer_replay import final_hidden
from pruners.data.corpus import Corpus, SourceError
from pruners.data.rows import hash_rows
from pruners.evaluation.accuracy import measure_accuracy
from pruners.evaluation.cost import compute_cost
from pruners.evaluation.evaluate import VariantForward, evaluate, masked_variants
from pruners.evaluation.report import REPORT, write_report
from pruners.evaluation.tasks import Task, TaskError, read_task
from pruners.kv import KV_SCORERS, Eviction
from pruners.kv.budget_quality import measure_budgets
from pruners.kv.transformers_cache import forward_with_eviction
from pruners.realization.variant_set import VariantSet
from pruners.support.checkpoint import Checkpoint
from pruners.support.files import check_file, check_folder
from pruners.support.fingerprint import fingerprint
from pruners.support.progress import progress_bars
from pruners.variant import BASE, base_spec
from server.engine.config import DEFAULT_KV_BUDGETS
from server.engine.loading.load import (
    load_model,
    load_tokenizer,
    load_transformers,
    preferred_device,
)
from server.engine.loading.source import resolve_model
from server.jobs.build import SELF
from server.jobs.kv_budget_timing import time_budgets
from server.jobs.memory_log import MemoryLog
from server.jobs.sample_answers import sample_answers
from server.jobs.self_generated_text import SelfGeneratedText
from server.jobs.step_timing import time_variants

SHARES = (0.25, 0.5, 0.75)
"""Of a long prompt, what KV budgets keep when scorers are compared."""
_SEED = 2  # of fresh rows: `build` takes others
_OWN_ROWS = 8


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    """What to measure. `tasks` are JSONL files, of which `task_limit` questions are asked.

    `window` and `limit` are in tokens; `kv_prompt` is how long a prompt is before its cache is cut.
    """

    corpus: Corpus | None = None
    tasks: tuple[Path, ...] = ()
    window: int = 1024
    limit: int | None = None
    task_limit: int | None = None
    kv_prompt: int = 512
    timing: bool = True


def evaluate_artefact(model: str, folder: Path, plan: EvaluationPlan) -> Artefact:
    """Measures everything in the plan anew and writes `table.json` and the report into `folder`.

    An interrupted call goes on where it stopped, from a folder beside it. Raises `ArtefactError`,
    `SourceError`, `TaskError`, `ModelSourceError` or `UnsupportedModelError`.
    """
    artefact = load_artefact(folder)
    check_file(folder / "table.json")
    check_folder(folder / "report", REPORT)
    items = _questions(plan)
    source = resolve_model(model)
    artefact.check_base(fingerprint(load_transformers(source, torch.float32)))
    memory = MemoryLog()
    tokenizer = load_tokenizer(source)
    rows = None
    if plan.corpus is not None:
        rows = plan.corpus.rows(tokenizer, plan.window, plan.limit)
        if not rows:
            raise SourceError(
                f"{plan.corpus.name} is shorter than a window of {plan.window} tokens; give more "
                "text, or a smaller window"
            )
    identity = {
        "artefact": artefact.identity(),
        "plan": [plan.window, plan.limit, plan.kv_prompt],
        "tasks": {name: sha256(repr(task).encode()).hexdigest() for name, task in items.items()},
        "text": None if rows is None else hash_rows(rows),
    }
    kept = folder.parent / f".{folder.name}-evaluate"
    with progress_bars() as progress, Checkpoint(kept, identity) as checkpoint:
        if rows is None:
            limit = _OWN_ROWS * plan.window if plan.limit is None else plan.limit
            wanted = max(1, limit // plan.window)
            rows = SelfGeneratedText(source, checkpoint, progress).rows(wanted, plan.window, _SEED)
        table = _offline(artefact, source, rows, plan, items, tokenizer, checkpoint, progress)
        if plan.timing:
            memory.note("before")
            device = preferred_device()  # as it is served
            loaded = load_model(source, artefact.model_name, artefact=artefact, device=device)
            memory.note("base and variants loaded")
            speed = time_variants(loaded, progress=progress)
            memory.note("after all variants ran")
            for found in speed.values():
                found["memory"] = memory.readings()
                found["kv"] = time_budgets(loaded, table.kv_quality, progress=progress)
            speed = {**artefact.table.speed, **speed}
            table = replace(table, speed=speed, samples=sample_answers(loaded))
        artefact = replace(artefact, table=table)
        table.save(folder / "table.json")
        write_report(artefact, folder / "report")
    return artefact


def _questions(plan: EvaluationPlan) -> dict[str, Task]:
    """By task, which is called as its file is."""
    items: dict[str, Task] = {}
    for path in plan.tasks:
        if path.stem in items:
            raise TaskError(f"two files of tasks are named {path.stem}; rename one")
        items[path.stem] = read_task(path, plan.task_limit)
    return items


def _offline(
    artefact: Artefact,
    source: Path,
    rows: list[torch.Tensor],
    plan: EvaluationPlan,
    items: dict[str, Task],
    tokenizer: PreTrainedTokenizerBase,
    checkpoint: Checkpoint,
    progress: Progress,
) -> Table:
    """Everything that `transformers` measures: quality, tasks, eviction and cost."""
    located = locate(load_transformers(source, torch.float32))
    own, known = artefact.corrections, artefact.table.kv_quality
    budgets = sorted({*known, *DEFAULT_KV_BUDGETS})  # what the server offers, too
    readers = masked_variants(located, VariantSet(artefact.order, artefact.variants, own))
    found = evaluate(located, readers, rows, progress=progress, checkpoint=checkpoint)
    base: dict[str, VariantForward] = {BASE: partial(final_hidden, located)}
    return Table(
        evaluation={
            **found.describe(
                rows, f"{SELF}, other rows" if plan.corpus is None else plan.corpus.name
            ),
            "protocol": "WikiText-2" if plan.corpus and plan.corpus.wikitext else "rows",
        },
        quality=found.quality,
        # What no row is long enough for stays as it was.
        kv_quality={**known, **measure_budgets(located, rows, budgets, progress, checkpoint)},
        cost={
            spec.name: compute_cost(spec, own.get(spec.name, {}), located)
            for spec in (base_spec(located.shape), *artefact.variants)
        },
        eviction=_evictions(located, rows, plan.kv_prompt, checkpoint, progress),
        tasks={
            name: measure_accuracy(
                located, tokenizer, {**base, **readers}, task, checkpoint, progress
            )
            for name, task in items.items()
        },
    )


def _evictions(
    located: LocatedModel,
    rows: list[torch.Tensor],
    prompt: int,
    checkpoint: Checkpoint,
    progress: Progress,
) -> dict[str, dict[str, Quality]]:
    """Each scorer at each budget, on what follows a long prompt; nothing without rows that long."""
    long = [row[: prompt + prompt // 2] for row in rows if len(row) >= prompt + prompt // 2]
    if not long or not located.causal:
        return {}
    readers: dict[str, VariantForward] = {}
    for name, scorer in KV_SCORERS.items():
        for share in SHARES:
            step = max(1, prompt // 32)
            eviction = Eviction(scorer(), int(share * prompt), interval=step, recent=step)
            readers[f"{name} {share:.0%}"] = partial(
                forward_with_eviction, located, prompt=prompt, eviction=eviction
            )
    found = evaluate(located, readers, long[:_OWN_ROWS], prompt, progress, checkpoint).quality
    return {
        name: {f"{share:.0%}": found[f"{name} {share:.0%}"] for share in SHARES}
        for name in KV_SCORERS
    }
