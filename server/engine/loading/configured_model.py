"""Loads the model that a `ModelConfig` names, with its artefact and on its device."""

import logging
from dataclasses import replace

import torch

from pruners.artefact.folder import ArtefactError, load_artefact
from server.engine.config import EngineConfigError, ModelConfig
from server.engine.loading.artefact_lookup import shipped_artefact
from server.engine.loading.load import CPU, LoadedModel, load_model, preferred_device
from server.engine.loading.source import model_name, resolve_model

log = logging.getLogger(__name__)


def load_configured_model(config: ModelConfig) -> LoadedModel:
    """Load a model and its artefact into the serving layout.

    Sets the number of PyTorch's threads if `config` names one. Raises `EngineConfigError`,
    `ArtefactError`, `ModelSourceError` or `UnsupportedModelError`.
    """
    name = model_name(config.model)
    folder = config.artefact or shipped_artefact(name)
    artefact = None if folder is None else load_artefact(folder)
    if artefact is not None and not config.readers:
        artefact = replace(artefact, readers={}, maps={})
    device = _device(config.device)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    source = resolve_model(config.model)  # last, since it may fetch or convert
    try:
        model = load_model(source, name, config.weights, artefact, config.context, device)
    except ArtefactError:
        if config.artefact is not None:
            raise
        # Another model can have the same name as the one that the shipped artefact is for.
        model = load_model(source, name, config.weights, None, config.context, device)
    if model.artefact is None:
        log.warning("no artefact for %s: serving the base only; see `trimtab build`", name)
    return model


def _device(name: str) -> torch.device:
    """Return the device called `name`. Raises `EngineConfigError` if there is none."""
    if name == "cpu":
        return CPU
    if name == "cuda" and preferred_device() == CPU:
        raise EngineConfigError("device cuda: PyTorch sees no GPU here; serve with --device cpu")
    return preferred_device()
