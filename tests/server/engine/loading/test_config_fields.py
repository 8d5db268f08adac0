"""Every field of every served family's configuration: what `transformers` computes, or refused.

A field that the family's own code does not read must not change anything here either; one that it
reads changes the same here, or the model is refused with the field's name.
"""

import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from transformers import (
    Gemma3TextConfig,
    GraniteConfig,
    LlamaConfig,
    MinistralConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from pruners.architecture import SERVED_FAMILIES, UnsupportedModelError
from pruners.variant import base_spec
from server.engine.backends.base import Segment
from server.engine.backends.native import library as native_library
from server.engine.backends.native.decoder import NativeDecoder
from server.engine.backends.native.packed_weights import PackedWeights, pack_weights
from server.engine.backends.pytorch.decoder import PyTorchDecoder
from server.engine.backends.pytorch.weights import PyTorchWeights
from server.engine.cache.kv_cache import KVCache
from server.engine.loading.load import load_transformers
from tests.support.config_fields import OWN, Case, cases_of
from tests.support.driving import weights_of
from tests.support.parameters import converted
from tests.support.tiny import tiny_model

NATIVE = native_library.is_available()
CONFIGS: dict[str, type[PreTrainedConfig]] = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "gemma3": Gemma3TextConfig,
    "ministral": MinistralConfig,
    "phi3": Phi3Config,
    "granite": GraniteConfig,
    "olmo2": Olmo2Config,
    "smollm3": SmolLM3Config,
}
SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "head_dim": 8,
    "max_position_embeddings": 128,
}
PROMPT = [(7 * i + 3) % 79 for i in range(40)]
CASES = [
    pytest.param(family, case, id=f"{family}-{case.field}-{case.value}"[:60])
    for family, config in CONFIGS.items()
    for case in cases_of(family, config)
]


def logits_of(weights: PyTorchWeights | PackedWeights) -> torch.Tensor:
    kind = NativeDecoder if isinstance(weights, PackedWeights) else PyTorchDecoder
    decoder = kind(weights, KVCache(weights.shape, 64, weights.dtype, weights.device))
    cache = decoder.cache.open()
    assert cache.reserve(len(PROMPT))
    segment = Segment(PROMPT, cache, base_spec(weights.shape))
    return decoder.logits(decoder.forward([segment]))


@torch.inference_mode()
def expected_of(model: PreTrainedModel) -> torch.Tensor:
    model.config.return_dict = True  # their own code needs it
    return model(torch.tensor([PROMPT]), use_cache=False).logits[0]


@pytest.fixture(scope="session")
def plain() -> dict[str, torch.Tensor]:
    """The logits of each family when nothing is changed."""
    return {family: expected_of(tiny_model(family, **SMALL)) for family in CONFIGS}


def test_the_table_has_every_family_and_every_field():
    assert {config.model_type for config in CONFIGS.values()} == set(SERVED_FAMILIES)
    for family, config in CONFIGS.items():
        known = {case.field for case in OWN[family]}
        assert {field.name for field in fields(config)} - known == set(), family


@pytest.mark.slow
@pytest.mark.parametrize(("family", "case"), CASES)
def test_a_field_changes_what_transformers_computes_or_is_refused(
    family: str, case: Case, plain: dict[str, torch.Tensor], tmp_path: Path
):
    changes = {**SMALL, **case.changes}
    if case.refused is not None:
        with pytest.raises(UnsupportedModelError, match=case.refused) as refusal:
            _take(family, changes, tmp_path)
        assert "\n" not in str(refusal.value)
        return
    model = tiny_model(family, **changes)
    expected = expected_of(model)
    weights = weights_of(model, seed=None)
    torch.testing.assert_close(logits_of(weights), expected, rtol=1e-4, atol=1e-4)
    base = plain[family]
    if NATIVE and not (expected.shape == base.shape and torch.equal(expected, base)):
        found = logits_of(pack_weights(converted(model, seed=None), 8)).log_softmax(-1)
        likely = expected.log_softmax(-1)
        assert float((likely.exp() * (likely - found)).sum(-1).mean()) < 0.01


def _take(family: str, changes: dict[str, object], folder: Path) -> None:
    """Loads a model with such a configuration, out of a folder if it cannot be built at all."""
    try:
        model = tiny_model(family, **changes)
    except Exception:
        tiny_model(family, **SMALL).save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))
        model = load_transformers(folder, torch.float32)
    weights_of(model, seed=None)
