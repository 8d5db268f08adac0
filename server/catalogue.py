"""What the controller and a profile need to know of a loaded model: actions and predicted loss."""

from collections.abc import Iterable
from pathlib import Path

from controller import Catalogue
from controller.sensitivity import Sensitivity, load_sensitivity
from pruners.artefact.table import Table
from server.engine.loading.artefact_lookup import shipped_artefact
from server.engine.loading.load import LoadedModel


def build_catalogue(
    model: LoadedModel, kv_budgets: Iterable[int], predictor: Sensitivity | None
) -> Catalogue:
    """Return the actions on offer, with the losses that the artefact's table holds.

    Budgets, in tokens, that are not smaller than the model's context are left out. `predictor` is
    the artefact's, by `open_sensitivity`.
    """
    table = Table() if model.artefact is None else model.artefact.table
    measured = {name: quality.kl for name, quality in table.quality.items()}
    return Catalogue(
        variants=model.variants,
        kv_budgets=tuple(budget for budget in kv_budgets if budget < model.weights.context),
        # Where both were measured, losses on real prompts count, not those on the table's text.
        variant_loss=measured if predictor is None else {**measured, **predictor.level},
        kv_loss={budget: quality.kl for budget, quality in table.kv_quality.items()},
    )


def open_sensitivity(model: LoadedModel, artefact: Path | None) -> Sensitivity | None:
    """Return the loss predictor in the artefact's folder, or None if there is none.

    `artefact` is the configured folder; None stands for the shipped one. Raises
    `SensitivityError`.
    """
    folder = artefact or shipped_artefact(model.name)
    if model.artefact is None or folder is None:
        return None
    return load_sensitivity(folder, model.fingerprint)
