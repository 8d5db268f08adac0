"""Checks the settings before a model is loaded, which may take minutes."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from policies.registry import named_policy
from pruners.variant import BASE
from server.engine.loading.artefact_lookup import (
    artefacts_folder,
    declared_choices,
    likely_artefact,
)
from server.engine.loading.source import model_name
from server.settings import Settings, SettingsError

if TYPE_CHECKING:
    from controller import Analyzer


def check_choices(settings: Settings) -> None:
    """Raise `UserError` for an artefact or a policy that cannot be served.

    This does not import PyTorch.
    """
    fingerprint, choices = _declared(settings)
    named_policy(settings.policy, choices, fingerprint, settings.force)


def check_parts(settings: Settings) -> None:
    """Raise `UserError` if another part of the server cannot be made with these settings."""
    # Imported here, since all of them import PyTorch.
    from controller.audit import AuditLog
    from controller.sensitivity import load_sensitivity
    from server.tracing import check_packages

    _check_kv_budgets(settings)
    folder, (fingerprint, _) = _artefact(settings), _declared(settings)
    if folder is not None and fingerprint is not None:
        load_sensitivity(folder, fingerprint)
    open_analyzer(settings)
    if settings.otlp_traces_endpoint is not None:
        check_packages()
    if settings.audit_log is not None:
        AuditLog(settings.audit_log, settings.audit_max_bytes).close()


def _artefact(settings: Settings) -> Path | None:
    """Return the folder of the artefact, if there is one. Raises `SettingsError`."""
    folder = settings.artefact or likely_artefact(model_name(settings.model))
    if folder is not None and not folder.is_dir():
        raise SettingsError(f"there is no artefact {folder}; make one with `trimtab build`")
    return folder


def _declared(settings: Settings) -> tuple[str | None, list[str]]:
    """Return the fingerprint that the artefact declares, and all choices of a server.

    That a kept artefact is this model's is known once the model is loaded: it has no fingerprint.
    """
    folder = _artefact(settings)
    if folder is None:
        return None, [BASE]
    fingerprint, choices = declared_choices(folder)
    is_kept = settings.artefact is None and folder.parent == artefacts_folder()
    return None if is_kept else fingerprint, choices


def _check_kv_budgets(settings: Settings) -> None:
    """Raise `SettingsError` for budgets that cannot be kept as the settings say."""
    from pruners.kv import KV_METHODS, QUEST, make_kv_budget  # imports PyTorch

    if settings.kv_scorer not in KV_METHODS:
        known = ", ".join(KV_METHODS)
        raise SettingsError(f"no kv_scorer '{settings.kv_scorer}'; there are: {known}")
    if settings.kv_scorer == QUEST and settings.kv_cache == "int8":
        raise SettingsError("kv_scorer quest needs a KV cache in bf16; set kv_cache to auto")
    for budget in settings.kv_budgets:
        try:
            make_kv_budget(budget, settings.kv_scorer)
        except ValueError as error:
            raise SettingsError(f"kv_budgets: {error}") from error


def open_analyzer(
    settings: Settings, on_fallback: Callable[[str], None] = lambda name: None
) -> "Analyzer":
    """Return the analyzer of the settings.

    `on_fallback` is called with the name of a backend that had no time. Raises `AnalyzerError` if
    a package is missing.
    """
    from controller import Analyzer

    return Analyzer(settings.analyzer, on_fallback)
