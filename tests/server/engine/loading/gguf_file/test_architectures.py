"""Each architecture is computed as llama.cpp computes it, or refused by name."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pruners.architecture import UnsupportedModelError
from server.engine.backends.base import Segment
from server.engine.loading.checkpoint import open_checkpoint
from server.engine.loading.gguf_file.config import config_of
from server.engine.loading.gguf_file.parts import open_gguf
from server.engine.loading.load import load_model, load_transformers, open_decoder
from tests.support.gguf_reference import reference_logits
from tests.support.gguf_tiny import (
    CONTEXT,
    PROMPT,
    ROTATED,
    Tensors,
    llama3_factors,
    tensors_of,
    write_gguf,
)

YARN = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 64,
}
MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def factors(original: int) -> tuple[dict[str, object], Tensors]:
    """Phi-3's factors, short ones for texts up to `original` tokens, and their keys."""
    random = np.random.default_rng(1)
    names = ("rope_factors_short.weight", "rope_factors_long.weight")
    keys = {
        "rope.scaling.original_context_length": original,
        "rope.scaling.attn_factor": 1.19,
    }
    return keys, {name: random.uniform(1, 8, ROTATED // 2).astype(np.float32) for name in names}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))


def logits_of(path: Path) -> list[np.ndarray]:
    """Logits of the prompt's tokens: `transformers`' own, and as we serve them."""
    theirs = load_transformers(path, torch.float32)(torch.tensor([PROMPT])).logits[0]
    model = load_model(path, "tiny", "fp32")
    if model.weights.context < len(PROMPT):  # longer texts are not served
        return [theirs.double().numpy()]
    decoder = open_decoder(model, 256)
    cache = decoder.cache.open()
    assert cache.reserve(len(PROMPT))
    ours = decoder.logits(decoder.forward([Segment(PROMPT, cache, model.variants["base"])]))
    return [theirs.double().numpy(), ours.double().numpy()]


CASES = {
    "llama with biases": ("llama", {}, tensors_of("llama", biases=MATRICES)),
    "mistral": ("llama", {"attention.sliding_window": 24}, {}),
    "mistral 3": ("mistral3", YARN, {}),
    "mistral 3, shorter": ("mistral3", {**YARN, "rope.scaling.yarn_log_multiplier": 1.0}, {}),
    "phi-3": ("phi3", {}, {}),
    "phi-3, whole heads": ("phi3", {"rope.dimension_count": None}, {}),
    "phi-3, windows": ("phi3", {"attention.sliding_window": 24}, {}),
    "phi-3, short": ("phi3", *factors(CONTEXT)),
    "phi-3, long": ("phi3", *factors(len(PROMPT) - 1)),
    "granite": ("granite", {}, {}),
    "granite, no scales": (
        "granite",
        {"residual_scale": 0.0, "embedding_scale": None, "attention.scale": 0.0},
        {},
    ),
    "granite, factors": ("granite", {}, {"rope_freqs.weight": llama3_factors(8.0, 1.0, 4.0, 64)}),
    "granite with biases": ("granite", {}, tensors_of("granite", biases=MATRICES)),
    "olmo 2": ("olmo2", {}, {}),
    "smollm3": ("smollm3", {}, {}),
    "smollm3, yarn": ("smollm3", YARN, {}),
}


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "keys", "tensors"), CASES.values(), ids=CASES.keys())
def test_logits_are_llama_cpps(tmp_path: Path, architecture: str, keys: dict, tensors: Tensors):
    path = write_gguf(
        tmp_path / "tiny.gguf", architecture, keys, {**tensors_of(architecture), **tensors}
    )
    wanted = reference_logits(path, PROMPT)
    for found in logits_of(path):
        np.testing.assert_allclose(found, wanted, atol=2e-3)
    if keys or tensors:  # they matter
        plain = write_gguf(tmp_path / "plain.gguf", architecture, {}, tensors_of(architecture))
        assert np.abs(reference_logits(plain, PROMPT) - wanted).max() > 0.1


def test_windows_by_layer_are_those_of_ministral(tmp_path: Path):
    keys = {"attention.sliding_window": 24, "attention.sliding_window_pattern": [True, False]}
    config = config_of(open_gguf(write_gguf(tmp_path / "tiny.gguf", "llama", keys)))
    assert config.model_type == "ministral"
    assert config.layer_types == ["sliding_attention", "full_attention"]
    assert config.sliding_window == 24


@pytest.mark.parametrize("architecture", ["qwen3moe", "llama"])
def test_a_mixture_of_experts_is_refused_by_name(tmp_path: Path, architecture: str):
    path = write_gguf(tmp_path / "tiny.gguf", architecture, {"expert_count": 8})
    with pytest.raises(UnsupportedModelError, match=rf"{architecture}.* mixture of experts"):
        config_of(open_gguf(path))


def test_factors_come_in_pairs(tmp_path: Path):
    keys, tensors = factors(CONTEXT)
    del tensors["rope_factors_long.weight"]
    path = write_gguf(tmp_path / "tiny.gguf", "phi3", keys, {**tensors_of("phi3"), **tensors})
    with pytest.raises(UnsupportedModelError, match=r"rope_factors_long\.weight is missing"):
        config_of(open_gguf(path))


def test_factors_that_a_family_does_not_apply_are_refused(tmp_path: Path):
    tensors = {**tensors_of("smollm3"), "rope_freqs.weight": np.ones(32, np.float32)}
    path = write_gguf(tmp_path / "tiny.gguf", "smollm3", tensors=tensors)
    with pytest.raises(UnsupportedModelError, match=r"rope_freqs\.weight"):
        open_checkpoint(path)
