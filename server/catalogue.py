"""What the controller and a profile need to know of a loaded model: actions and predicted loss."""

import logging
from collections.abc import Iterable
from dataclasses import replace

from controller import Catalogue
from controller.pairs import ReaderFigures, WriterFigures, useful_pairs
from controller.reading import ServedReader
from controller.sensitivity import Sensitivity, load_sensitivity
from pruners.artefact.table import ReaderQuality, Table
from pruners.kv import MEASURED_KV_METHOD, QUEST
from pruners.reading.reader import PromptReader
from pruners.variant import BASE
from server.engine.loading.load import LoadedModel

log = logging.getLogger(__name__)

TASKS_FLOOR = 0.9
"""Share of the base's right answers that a choice needs to count as keeping the reading tasks."""
_LOOKED_UP = ("passkey", "lookup")
"""How the names of reading tasks begin in which the answer stands in the prompt."""
_ALL = "all"
_TYPICAL_PROMPT = 512
"""Tokens, for a reader whose share of reading was not measured."""


def build_catalogue(
    model: LoadedModel,
    kv_budgets: Iterable[int],
    predictor: Sensitivity | None,
    tasks_floor: float = TASKS_FLOOR,
) -> Catalogue:
    """Return the actions on offer, with the losses that the artefact's table holds.

    Budgets, in tokens, that are not smaller than the model's context are left out. `predictor` is
    the artefact's, by `open_sensitivity`. What answers less than the share `tasks_floor` (0..1) of
    the base's right answers to reading tasks is used last.
    """
    table = Table() if model.artefact is None else model.artefact.table
    measured = {name: quality.kl for name, quality in table.quality.items()}
    # Where both were measured, losses on real prompts count, not those on the table's text.
    losses = measured if predictor is None else {**measured, **predictor.level}
    readers = {
        name: _served(reader, table.reader_quality.get(name, {}))
        for name, reader in model.readers.items()
    }
    return Catalogue(
        variants=model.variants,
        kv_budgets=tuple(budget for budget in kv_budgets if budget < model.weights.context),
        variant_loss=losses,
        kv_loss={budget: quality.kl for budget, quality in table.kv_quality.items()},
        readers=readers,
        pairs=_pairs(model, losses, readers, table),
        keep_tasks=choices_that_keep_tasks(model, table, tasks_floor),
        token_kinds=model.token_kinds,
    )


def with_kv_method(catalogue: Catalogue, method: str) -> Catalogue:
    """Return the catalogue of a server that keeps KV budgets by a method of `KV_METHODS`.

    The table has losses of one method. Those of another are unknown, and a line of the log says so.
    """
    catalogue = replace(catalogue, budgets_free_memory=method != QUEST)
    if method == MEASURED_KV_METHOD or not catalogue.kv_budgets:
        return catalogue
    log.warning(
        "the losses of KV budgets are measured for kv_scorer %s, not for %s: budgets are used "
        "last, and never within a max_loss",
        MEASURED_KV_METHOD, method,
    )  # fmt: skip
    return replace(catalogue, kv_loss={})


def choices_that_keep_tasks(model: LoadedModel, table: Table, floor: float) -> frozenset[str]:
    """Return the choices that find in prompts what the base finds: the base and some readers.

    A reader needs the share `floor` (0..1) of the base's right answers, in passkeys and in look-ups
    over all lengths of prompts. What was not measured does not count as keeping them.
    """
    base = _accuracies(table, BASE)
    kept = {BASE}
    for name in model.readers:
        own = _accuracies(table, name)
        if own and all(kind in base and own[kind] >= floor * base[kind] for kind in own):
            kept.add(f"{BASE}+{name}")
    return frozenset(kept)


def _accuracies(table: Table, name: str) -> dict[str, float]:
    """Return the share of right answers by kind of look-up, over all lengths of prompts."""
    right, items = dict.fromkeys(_LOOKED_UP, 0.0), dict.fromkeys(_LOOKED_UP, 0)
    for task, accuracies in table.reading_tasks.items():
        kind = next((kind for kind in _LOOKED_UP if task.startswith(kind)), None)
        found = accuracies.get(name)
        if kind is not None and found is not None:
            right[kind] += found.acc * found.items
            items[kind] += found.items
    return {kind: right[kind] / items[kind] for kind in _LOOKED_UP if items[kind]}


def _served(reader: PromptReader, quality: dict[str, ReaderQuality]) -> ServedReader:
    """Return a reader with its losses; the keys of `quality` are as `Table` has them."""
    by_length = [
        (int(bucket.split("-")[1]) - 1, one.kl) for bucket, one in quality.items() if bucket != _ALL
    ]
    overall = quality.get(_ALL)
    return ServedReader(reader, None if overall is None else overall.kl, tuple(sorted(by_length)))


def _pairs(
    model: LoadedModel, losses: dict[str, float], readers: dict[str, ServedReader], table: Table
) -> tuple[tuple[str, str], ...]:
    shape, base = model.weights.shape, model.variants[BASE]
    writers = {
        name: WriterFigures(
            spec.body_parameters(shape) / base.body_parameters(shape),
            spec.parameters(shape) / base.parameters(shape),
            0.0 if name == BASE else losses[name],
        )
        for name, spec in model.variants.items()
        if name == BASE or name in losses
    }
    figures = {}
    for name, served in readers.items():
        cost = table.reader_cost.get(name)
        share = _typical_share(served.reader, model) if cost is None else cost.share
        if served.loss is not None:
            figures[name] = ReaderFigures(share, served.loss)
    return useful_pairs(writers, figures)


def _typical_share(reader: PromptReader, model: LoadedModel) -> float:
    return reader.cost(model.weights.shape, _TYPICAL_PROMPT, reader.ends)


def open_sensitivity(model: LoadedModel) -> Sensitivity | None:
    """Return the loss predictor in the artefact's folder, or None if there is none.

    Raises `SensitivityError`.
    """
    if model.artefact_folder is None:
        return None
    return load_sensitivity(model.artefact_folder, model.fingerprint)
