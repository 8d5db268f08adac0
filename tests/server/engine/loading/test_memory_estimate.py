"""The estimate of what a model takes, against the bytes that it really takes."""

import pytest
from torch import nn

from server.engine.backends.native import library as native_library
from server.engine.loading.load import load_model, open_decoder
from server.engine.loading.memory_estimate import (
    MIN_KV_TOKENS,
    MemoryEstimateError,
    Serving,
    StoredModel,
    StoredTensor,
    check_fits,
    memory_estimate,
)
from tests.support.tiny import save_tiny, tiny_model

SIZES = {
    "num_hidden_layers": 16, "hidden_size": 2048, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 131_072,
}  # fmt: skip


def stored(model: nn.Module, kind: str = "F32") -> StoredModel:
    named = dict(model.named_parameters())  # tied ones once
    tensors = {name: StoredTensor(tuple(p.shape), kind) for name, p in named.items()}
    return StoredModel.of(model.config.to_dict(), tensors)


def llama_1b(kind: str) -> StoredModel:
    """Return the shape of Llama 3.2 1B, with a matrix for each group of equal ones."""
    layer = {"q": (2048, 2048), "k": (512, 2048), "v": (512, 2048), "o": (2048, 2048),
             "gate": (8192, 2048), "up": (8192, 2048), "down": (2048, 8192)}  # fmt: skip
    tensors = {
        f"model.layers.{n}.{part}.weight": StoredTensor(shape, kind)
        for n in range(16)
        for part, shape in layer.items()
    }
    tensors["model.embed_tokens.weight"] = StoredTensor((128_256, 2048), kind)
    return StoredModel.of(SIZES, tensors)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_weights_and_cache_are_what_they_are_once_served(tmp_path, family, precision):
    model = tiny_model(family)
    serving = Serving(precision, packs=native_library.is_available(), multiplies_bf16=True)
    found = memory_estimate(stored(model), serving, kv_tokens=256)
    served = load_model(save_tiny(tmp_path / "tiny", family), "tiny", precision)
    held = sum(tensor.nbytes for tensor in served.weights.tensors())
    assert found.weights == pytest.approx(held, rel=0.1)
    cache = open_decoder(served, 256).cache
    assert found.cache == sum(tensor.nbytes for tensor in cache.tensors())
    assert found.total == found.weights + found.cache + found.tables + found.process


def test_an_8bit_cache_has_its_scales():
    model = llama_1b("Q4_0")
    assert model.token_bytes("int8") == 2 * 16 * 8 * (64 + 4)
    assert memory_estimate(model, Serving(), 1000, "int8").cache == 1000 * model.token_bytes("int8")


@pytest.mark.parametrize(
    ("kind", "serving", "precision"),
    [
        ("Q4_0", Serving(), "int4"),
        ("Q4_K", Serving(), "int4"),
        ("Q6_K", Serving(), "int8"),
        ("Q4_0", Serving(packs=False), "fp32"),
        ("BF16", Serving(), "fp32"),
        ("BF16", Serving(multiplies_bf16=True), "bf16"),
        ("BF16", Serving("int4"), "int4"),
        ("Q4_0", Serving(gpu=True), "bf16"),
    ],
)
def test_auto_stands_for_what_the_server_takes(kind, serving, precision):
    assert memory_estimate(llama_1b(kind), serving).precision == precision


def test_four_bits_of_a_billion_weights():
    """By hand: .625 bytes a weight, and the embedding is the head, once."""
    found = memory_estimate(llama_1b("Q4_0"), Serving())
    weights = 16 * (2 * 2048 * 2048 + 2 * 512 * 2048 + 3 * 8192 * 2048) + 128_256 * 2048
    assert found.weights == 0.625 * weights
    assert found.cache == MIN_KV_TOKENS * 2 * 16 * 8 * 64 * 2


def refused(model: StoredModel, serving: Serving, free: float, kv_tokens: int) -> str:
    with pytest.raises(MemoryEstimateError) as error:
        check_fits(model, serving, free, kv_tokens)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_model_that_does_not_fit_says_by_how_much_and_what_would():
    model = llama_1b("BF16")
    check_fits(model, Serving(), 6e9, MIN_KV_TOKENS)
    said = refused(model, Serving(), 3e9, MIN_KV_TOKENS)
    needed = memory_estimate(model, Serving()).total
    assert f"needs {needed / 1e9:.1f} GB" in said
    assert f"{(needed - 3e9) / 1e9:.1f} GB too little" in said
    assert said.endswith("it fits with weights bf16 and context 1024")
    assert refused(model, Serving(), 2.4e9, MIN_KV_TOKENS).endswith("it fits with weights int8")
    assert refused(model, Serving(), 1.5e9, MIN_KV_TOKENS).endswith("it fits with weights int4")
    packed = llama_1b("Q4_0")
    said = refused(packed, Serving(), 2e9, 100_000)
    tokens = int(said.rpartition(" ")[2])
    assert "it fits with kv_tokens" in said
    check_fits(packed, Serving(), 2e9, tokens)
    assert memory_estimate(packed, Serving(), tokens + 1).total > 2e9
    tight = memory_estimate(packed, Serving()).total - 2e7
    assert refused(packed, Serving(), tight, 1024).endswith("it fits with context 1024")
    assert "smaller model" in refused(packed, Serving(), 1e8, MIN_KV_TOKENS)


def test_a_configuration_without_sizes_is_one_line():
    for config in ({}, {**SIZES, "num_attention_heads": 0, "head_dim": None}):
        with pytest.raises(MemoryEstimateError, match="lacks a size"):
            StoredModel.of(config, {})


def test_the_estimate_needs_no_pytorch():
    import subprocess
    import sys

    code = (
        "import sys, server.engine.loading.memory_estimate as m; "
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_matrices_of_embedding_and_head_count_twice_if_they_are_two():
    model = llama_1b("Q8_0")
    two = {**model.tensors, "lm_head.weight": StoredTensor((128_256, 2048), "Q8_0")}
    untied = StoredModel(two, model.layers, model.kv_groups, model.head_dim, model.context)
    more = memory_estimate(untied, Serving()).weights - memory_estimate(model, Serving()).weights
    assert more == pytest.approx(1.0625 * 128_256 * 2048)
