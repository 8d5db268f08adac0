"""Loads the model that a `ModelConfig` names, with its artefact and on its device."""

import logging
from dataclasses import replace
from pathlib import Path

import torch

from pruners.artefact.folder import Artefact, ArtefactError, load_artefact
from server.engine.config import EngineConfigError, ModelConfig
from server.engine.loading.artefact_lookup import (
    artefacts_folder,
    kept_folder,
    shipped_artefact,
)
from server.engine.loading.checkpoint import open_checkpoint
from server.engine.loading.load import CPU, LoadedModel, load_model, preferred_device
from server.engine.loading.source import model_name, resolve_model

log = logging.getLogger(__name__)


def load_configured_model(config: ModelConfig) -> LoadedModel:
    """Load a model and its artefact into the serving layout.

    Sets the number of PyTorch's threads if `config` names one. Raises `EngineConfigError`,
    `ArtefactError`, `ModelSourceError` or `UnsupportedModelError`.
    """
    name = model_name(config.model)
    given = config.artefact or shipped_artefact(name)
    artefact = None if given is None else load_artefact(given)
    device = _device(config.device)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    source = resolve_model(config.model)  # last, since it may fetch or convert
    if artefact is not None:
        try:
            return _load(source, config, device, given, artefact)
        except ArtefactError:
            if config.artefact is not None:
                raise
            # Another model can have the same name as the one that the shipped artefact is for.
    return _load(source, config, device, *_kept(source))


def _load(
    source: Path,
    config: ModelConfig,
    device: torch.device,
    folder: Path | None,
    artefact: Artefact | None,
) -> LoadedModel:
    """Load a model with an artefact. Raises `ArtefactError` if that is for another model."""
    name = model_name(config.model)
    if artefact is None:
        log.info("no artefact for %s yet: serving the base only", name)
    elif not config.readers:
        artefact = replace(artefact, readers={}, maps={})
    model = load_model(source, name, config.weights, artefact, config.context, device)
    model.artefact_folder = folder
    return model


def _kept(source: Path) -> tuple[Path | None, Artefact | None]:
    """Return the folder of the model's kept artefact, and the artefact; None without a whole one.

    The model's files are read for their fingerprint only if any model has a kept artefact.
    """
    if not any(artefacts_folder().glob("[!.]*")):
        return None, None
    folder = kept_folder(open_checkpoint(source).fingerprint())
    if not folder.exists():
        return None, None
    try:
        return folder, load_artefact(folder)
    except ArtefactError as error:
        log.warning("%s; the base is served without it", error)
        return None, None


def _device(name: str) -> torch.device:
    """Return the device called `name`. Raises `EngineConfigError` if there is none."""
    if name == "cpu":
        return CPU
    if name == "cuda" and preferred_device() == CPU:
        raise EngineConfigError("device cuda: PyTorch sees no GPU here; serve with --device cpu")
    return preferred_device()
