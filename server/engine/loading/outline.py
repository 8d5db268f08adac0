"""Models without weights: what their modules are, from the configuration alone."""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from transformers import PretrainedConfig

from pruners.architecture import (
    SERVED_FAMILIES,
    LocatedModel,
    UnsupportedModelError,
    describe_refusal,
    locate,
)
from server.engine.backends.pytorch.convert import check_served
from server.engine.loading.checkpoint import ModelCheckpoint
from server.engine.loading.checkpoint.base import HEAD
from server.engine.loading.checkpoint.description import line_of
from server.engine.loading.generation_config import check_padding
from server.engine.loading.model_files import check_shapes

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def outline_of(config: PretrainedConfig, where: object) -> "PreTrainedModel":
    """Build the modules of any family that `transformers` knows.

    `where` names the model in errors. Raises `UnsupportedModelError`.
    """
    # Imported here: looking through all families takes a third of a second.
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    masked = any("MaskedLM" in name for name in config.architectures or ())
    auto = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    try:
        with torch.device("meta"):
            return auto.from_config(config, trust_remote_code=False)
    except Exception as error:  # of many types, where the configuration is wrong
        raise UnsupportedModelError(f"no language model in {where}: {line_of(error)}") from error


def served_outline(checkpoint: ModelCheckpoint) -> LocatedModel:
    """Build and check the outline of a decoder that is served.

    Every parameter is in the checkpoint, and everything there is a parameter. The rotary module is
    real; all other tensors have shapes only. Raises `UnsupportedModelError`.
    """
    config = checkpoint.config
    if config.model_type not in SERVED_FAMILIES:
        raise UnsupportedModelError(describe_refusal(config.model_type, config, SERVED_FAMILIES))
    check_padding(config)
    outline = outline_of(config, checkpoint.path)
    expected = {name: tuple(one.shape) for name, one in outline.state_dict().items()}
    if config.tie_word_embeddings:
        expected.pop(HEAD, None)
    check_shapes(checkpoint.path, checkpoint.shapes, expected, config.model_type)
    located = locate(outline)
    check_served(located)
    return replace(located, rotary=type(located.rotary)(config))
