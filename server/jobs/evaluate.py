"""`trimtab evaluate`: measures an artefact, and writes its table and report."""

from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from pathlib import Path

from rich.progress import Progress
from transformers import PreTrainedTokenizerBase

from pruners.architecture import LocatedModel
from pruners.artefact.folder import Artefact, load_artefact
from pruners.artefact.table import Quality, Table
from pruners.calibration.layer_replay import final_hidden
from pruners.data.corpus import Corpus, SourceError
from pruners.data.rows import hash_rows
from pruners.evaluation.accuracy import measure_accuracy, without_prompts
from pruners.evaluation.budget_quality import measure_budgets
from pruners.evaluation.evaluate import VariantForward, evaluate, masked_variants
from pruners.evaluation.report import REPORT, write_report
from pruners.evaluation.tasks import Task, TaskError, read_task
from pruners.kv import KV_SCORERS, Eviction
from pruners.kv.transformers_cache import forward_with_eviction
from pruners.realization.variant_set import VariantSet
from pruners.support.checkpoint import Checkpoint
from pruners.support.files import check_file, check_folder
from pruners.support.progress import progress_bars
from pruners.variant import BASE
from server.engine.config import DEFAULT_KV_BUDGETS
from server.engine.loading.load import load_model, load_tokenizer, preferred_device
from server.engine.loading.source import resolve_model
from server.jobs.job_setup import (
    SELF_GENERATED,
    TokenRows,
    checkpoint_folder,
    compute_costs,
    load_base,
)
from server.jobs.kv_budget_timing import time_budgets
from server.jobs.memory_log import MemoryLog
from server.jobs.prompt_losses import EncodedPrompt
from server.jobs.reading_evaluation import ReadingEvaluation, ReadingJob
from server.jobs.sample_answers import sample_answers
from server.jobs.self_generated_text import SelfGeneratedText
from server.jobs.step_timing import time_variants

KEPT_SHARES = (0.25, 0.5, 0.75)
"""Shares of a long prompt that KV budgets keep when scorers are compared."""
_SEED = 2  # of self-generated rows; `trimtab build` uses another
_MAX_ROWS = 8  # of self-generated text, and of text that evictions are measured on


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    """What to measure.

    `tasks` are JSONL files, of which `task_limit` questions are asked. `window` and `limit` are the
    tokens of a row and of all text; `kv_prompt` is the length of a prompt before its cache is cut.
    """

    corpus: Corpus | None = None
    tasks: tuple[Path, ...] = ()
    window: int = 1024
    limit: int | None = None
    task_limit: int | None = None
    kv_prompt: int = 512
    timing: bool = True
    reading: ReadingEvaluation = field(default_factory=ReadingEvaluation)

    def read_tasks(self) -> dict[str, Task]:
        """Return the tasks by name, which is that of the file. Raises `TaskError`."""
        tasks: dict[str, Task] = {}
        for path in self.tasks:
            if path.stem in tasks:
                raise TaskError(f"two files of tasks are named {path.stem}; rename one")
            tasks[path.stem] = read_task(path, self.task_limit)
        return tasks

    def read_rows(self, tokenizer: PreTrainedTokenizerBase) -> TokenRows | None:
        """Return the rows of the corpus; None without one. Raises `SourceError`."""
        if self.corpus is None:
            return None
        rows = self.corpus.rows(tokenizer, self.window, self.limit)
        if not rows:
            raise SourceError(
                f"{self.corpus.name} is shorter than a window of {self.window} tokens; give more "
                "text, or a smaller window"
            )
        return rows

    def count_generated_rows(self) -> int:
        """Return how many rows the base writes if there is no corpus."""
        limit = _MAX_ROWS * self.window if self.limit is None else self.limit
        return max(1, limit // self.window)


@dataclass(frozen=True, slots=True)
class _Inputs:
    """What is measured, on which rows and tasks."""

    artefact: Artefact
    source: Path
    plan: EvaluationPlan
    tokenizer: PreTrainedTokenizerBase
    rows: TokenRows
    tasks: dict[str, Task]
    prompts: list[EncodedPrompt] | None


def evaluate_artefact(model: str, folder: Path, plan: EvaluationPlan) -> Artefact:
    """Measure everything in the plan, and write `table.json` and the report into `folder`.

    An interrupted call goes on where it stopped, from a folder beside it. Raises `ArtefactError`,
    `SourceError`, `TaskError`, `ModelSourceError` or `UnsupportedModelError`.
    """
    artefact = load_artefact(folder)
    check_file(folder / "table.json")
    check_folder(folder / "report", REPORT)
    tasks = plan.read_tasks()
    source = resolve_model(model)
    load_base(source, artefact)  # raises if it is another model
    memory = MemoryLog()
    tokenizer = load_tokenizer(source)
    rows = plan.read_rows(tokenizer)
    prompts = plan.reading.read(tokenizer)
    identity = {
        "artefact": artefact.identity(),
        "plan": [plan.window, plan.limit, plan.kv_prompt],
        "tasks": {name: sha256(repr(task).encode()).hexdigest() for name, task in tasks.items()},
        "text": None if rows is None else hash_rows(rows),
        "prompts": None if prompts is None else [one.name for one in prompts],
        "reading": repr(plan.reading.tasks),
    }
    unfinished = checkpoint_folder(folder, "evaluate")
    with progress_bars() as progress, Checkpoint(unfinished, identity) as checkpoint:
        if rows is None:
            text = SelfGeneratedText(source, checkpoint, progress)
            rows = text.rows(plan.count_generated_rows(), plan.window, _SEED)
            del text  # its copy of the weights
        inputs = _Inputs(artefact, source, plan, tokenizer, rows, tasks, prompts)
        table = _measure_quality(inputs, checkpoint, progress)
        if plan.timing:
            table = _measure_speed(inputs, table, memory, progress)
        artefact = replace(artefact, table=table)
        table.save(folder / "table.json")
        write_report(artefact, folder / "report")
    return artefact


def _measure_quality(inputs: _Inputs, checkpoint: Checkpoint, progress: Progress) -> Table:
    """Measure with `transformers`: quality, tasks, eviction and cost."""
    artefact, plan, rows = inputs.artefact, inputs.plan, inputs.rows
    located = load_base(inputs.source, artefact)
    variants = VariantSet(artefact.order, artefact.variants, artefact.corrections)
    forwards = masked_variants(located, variants)
    evaluation = evaluate(located, forwards, rows, progress=progress, checkpoint=checkpoint)
    asked = without_prompts({BASE: partial(final_hidden, located), **forwards})
    known = artefact.table.kv_quality
    budgets = sorted({*known, *DEFAULT_KV_BUDGETS})
    corpus = plan.corpus
    name = f"{SELF_GENERATED}, other rows" if corpus is None else corpus.name
    table = Table(
        evaluation={
            **evaluation.describe(rows, name),
            "protocol": "WikiText-2" if corpus is not None and corpus.wikitext else "rows",
        },
        quality=evaluation.quality,
        # Budgets that no row is long enough for stay as they were.
        kv_quality={**known, **measure_budgets(located, rows, budgets, progress, checkpoint)},
        cost=compute_costs(located, artefact.variants, artefact.corrections),
        eviction=_compare_scorers(located, rows, plan.kv_prompt, checkpoint, progress),
        tasks={
            name: measure_accuracy(located, inputs.tokenizer, asked, task, checkpoint, progress)
            for name, task in inputs.tasks.items()
        },
    )
    if not artefact.readers:
        return table
    job = ReadingJob(artefact, located, inputs.tokenizer, checkpoint, progress)
    losses = job.measure_losses(inputs.source, inputs.prompts, rows)
    made = job.make_tasks(rows, plan.reading.tasks, inputs.tasks)
    return replace(
        table,
        reader_quality=losses.quality,
        reader_cost=losses.cost,
        reading_tasks=job.measure_tasks(made, asked),
    )


def _measure_speed(inputs: _Inputs, table: Table, memory: MemoryLog, progress: Progress) -> Table:
    """Return the table with times, memory and sample answers, as the variants are served here."""
    artefact = inputs.artefact
    memory.record("before")
    model = load_model(
        inputs.source, artefact.model_name, artefact=artefact, device=preferred_device()
    )
    memory.record("base and variants loaded")
    speed = time_variants(model, progress=progress)
    memory.record("after all variants ran")
    for measured in speed.values():
        measured["memory"] = memory.readings()
        measured["kv"] = time_budgets(model, table.kv_quality, progress=progress)
    speed = {**artefact.table.speed, **speed}
    return replace(table, speed=speed, samples=sample_answers(model))


def _compare_scorers(
    located: LocatedModel,
    rows: TokenRows,
    prompt_tokens: int,
    checkpoint: Checkpoint,
    progress: Progress,
) -> dict[str, dict[str, Quality]]:
    """Return the quality by KV scorer and share of a prompt that it keeps.

    It is measured on the tokens after the prompt. Without rows that are long enough it is empty.
    """
    row_tokens = prompt_tokens + prompt_tokens // 2
    long_rows = [row[:row_tokens] for row in rows if len(row) >= row_tokens][:_MAX_ROWS]
    if not long_rows or not located.causal:
        return {}
    interval = max(1, prompt_tokens // 32)
    forwards: dict[str, VariantForward] = {}
    for name, make_scorer in KV_SCORERS.items():
        for share in KEPT_SHARES:
            budget = int(share * prompt_tokens)
            eviction = Eviction(make_scorer(), budget, interval=interval, recent=interval)
            forwards[f"{name} {share:.0%}"] = partial(
                forward_with_eviction, located, prompt=prompt_tokens, eviction=eviction
            )
    quality = evaluate(located, forwards, long_rows, prompt_tokens, progress, checkpoint).quality
    return {
        name: {f"{share:.0%}": quality[f"{name} {share:.0%}"] for share in KEPT_SHARES}
        for name in KV_SCORERS
    }
