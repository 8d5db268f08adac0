"""GGUF files: what they say is computed, or refused by name."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pruners.architecture import UnsupportedModelError
from server.engine.backends.base import Segment
from server.engine.loading.checkpoint import open_checkpoint
from server.engine.loading.load import load_model, load_tokenizer, load_transformers, open_decoder
from tests.support.gguf_reference import reference_logits
from tests.support.gguf_tiny import (
    HEAD_DIM,
    HIDDEN,
    LAYERS,
    PROMPT,
    llama3_factors,
    tensors_of,
    write_gguf,
)
from tests.support.tiny import tiny_tokenizer

YARN = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 64,
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch) -> Path:
    """Where what files say of themselves is kept."""
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gguf"


def logits_of(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of the prompt's tokens: as we serve them, and `transformers`' own."""
    model = load_model(path, "tiny", "fp32")
    decoder = open_decoder(model, 256)
    cache = decoder.cache.open()
    assert cache.reserve(len(PROMPT))
    ours = decoder.logits(decoder.forward([Segment(PROMPT, cache, model.variants["base"])]))
    theirs = load_transformers(path, torch.float32)(torch.tensor([PROMPT])).logits[0]
    return ours.log_softmax(-1).double().numpy(), theirs.log_softmax(-1).double().numpy()


def reference(path: Path) -> np.ndarray:
    found = reference_logits(path, PROMPT)
    return (
        found
        - np.log(np.exp(found - found.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - (found.max(-1, keepdims=True))
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "keys", "factors"),
    [
        ("llama", {}, None),
        ("llama", {"attention.key_length": None, "attention.value_length": None}, None),
        ("llama", {}, llama3_factors(8.0, 1.0, 4.0, 64)),
        ("llama", {}, llama3_factors(32.0, 1.0, 4.0, 256)),
        ("llama", {}, llama3_factors(8.0, 2.0, 10.0, 100)),
        ("llama", {}, np.full(HEAD_DIM // 2, 3, np.float32)),
        ("llama", {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, None),
        ("llama", {"rope.scaling.factor": 4.0}, None),
        ("llama", {"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, None),
        ("llama", YARN, None),
        ("llama", {**YARN, "rope.scaling.attn_factor": 0.7}, None),
        ("qwen2", {}, None),
        ("qwen2", YARN, None),
        ("qwen3", {"rope.freq_base": 1e6}, None),
        ("gemma3", {}, None),
        ("gemma3", {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}, None),
    ],
)
def test_logits_are_llama_cpps(tmp_path: Path, architecture: str, keys: dict, factors):
    tensors = tensors_of(architecture)
    if factors is not None:
        tensors["rope_freqs.weight"] = factors
    path = write_gguf(tmp_path / "tiny.gguf", architecture, keys, tensors)
    wanted = reference(path)
    for found in logits_of(path):
        np.testing.assert_allclose(found, wanted, atol=2e-3)
    if keys or factors is not None:  # they matter
        plain = reference(
            write_gguf(tmp_path / "plain.gguf", architecture, {}, tensors_of(architecture))
        )
        same = keys.get("rope.scaling.type") == "none" or "attention.key_length" in keys
        assert same == bool(np.abs(plain - wanted).max() < 1e-9)


@pytest.mark.parametrize(
    ("architecture", "key", "value"),
    [
        ("llama", "rope.scaling.type", "longrope"),
        ("llama", "rope.scaling.attn_factor", 1.2),
        ("llama", "rope.dimension_count", HEAD_DIM // 2),
        ("qwen3", "rope.dimension_count", HEAD_DIM // 2),
        ("llama", "attn_logit_softcapping", 50.0),
        ("gemma3", "final_logit_softcapping", 30.0),
        ("llama", "attention.sliding_window", 24.5),
        ("llama", "attention.sliding_window_pattern", 4),
        ("llama", "attention.temperature_scale", 0.1),
        ("mistral3", "attention.temperature_scale", 0.1),
        ("qwen2", "attention.sliding_window", 24),
        ("olmo2", "attention.sliding_window", 24),
        ("smollm3", "attention.sliding_window", 24),
        ("granite", "attention.sliding_window", 24),
        ("granite", "logit_scale", None),
        ("granite", "residual_scale", -1.0),
        ("granite", "rope.scaling.finetuned", False),
        ("phi3", "rope.dimension_count", HEAD_DIM + 2),
        ("phi3", "rope.scaling.type", "yarn"),
        ("phi3", "rope.scaling.attn_factor", 1.2),
        ("llama", "rope.scaling.yarn_attn_factor", 1.2),
        ("llama", "rope.scaling.yarn_log_multiplier", 1.0),
        ("llama", "attention.scale", 0.5),
        ("gemma3", "attention.scale", 0.5),
        ("llama", "attention.value_length", HEAD_DIM // 2),
        ("llama", "expert_count", 8),
        ("llama", "attention.causal", False),
        ("llama", "logit_scale", 0.5),
        ("llama", "residual_scale", 0.5),
        ("llama", "embedding_scale", 12.0),
        ("llama", "attention.clamp_kqv", 8.0),
        ("llama", "attention.head_count_kv", [2, 1]),
        ("llama", "block_count", 0),
        ("llama", "block_count", None),
        ("llama", "attention.layer_norm_rms_epsilon", None),
        ("llama", "vocab_size", 100),
        ("llama", "something.new", 1),
        ("gemma3", "attention.sliding_window", None),
    ],
)
def test_a_key_that_is_not_applied_is_refused_by_name(
    tmp_path: Path, cache: Path, architecture: str, key: str, value: object
):
    path = write_gguf(tmp_path / "tiny.gguf", architecture, {key: value})
    with pytest.raises(UnsupportedModelError, match=rf"tiny\.gguf: .*{architecture}\.{key}"):
        open_checkpoint(path)
    assert not any(found.is_dir() for found in cache.iterdir())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("expert_count", 0),
        ("attention.sliding_window", 0),
        ("attention.scale", HEAD_DIM**-0.5),
        ("rope.scaling.finetuned", True),
        ("attention.causal", True),
        ("logit_scale", 1.0),
    ],
)
def test_a_key_at_rest_is_accepted(tmp_path: Path, key: str, value: object):
    open_checkpoint(write_gguf(tmp_path / "tiny.gguf", keys={key: value}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("general.architecture", "falcon"),
        ("general.type", "adapter"),
        ("tokenizer.ggml.model", "t5"),
        ("tokenizer.ggml.pre", "deepseek-llm"),
        ("tokenizer.ggml.pre", None),
        ("tokenizer.ggml.eos_token_id", 5000),
        ("tokenizer.ggml.new_switch", True),
    ],
)
def test_other_keys_are_refused_by_name(tmp_path: Path, key: str, value: object):
    architecture = str(value) if key == "general.architecture" else "llama"
    general = {} if key == "general.architecture" else {key: value}
    path = write_gguf(tmp_path / "tiny.gguf", architecture, **general)
    with pytest.raises(UnsupportedModelError, match=value if architecture != "llama" else key):
        open_checkpoint(path)


def without(name: str) -> dict[str, np.ndarray]:
    return {key: value for key, value in tensors_of().items() if key != name}


@pytest.mark.parametrize(
    ("tensors", "named"),
    [
        (without("blk.1.ffn_down.weight"), "missing: blk.1.ffn_down.weight"),
        (without("token_embd.weight"), "token_embd.weight is missing"),
        (
            {**tensors_of(), "blk.0.attn_norm.bias": np.ones(256, np.float32)},
            "blk.0.attn_norm.bias",
        ),
        (
            {**tensors_of(), f"blk.{LAYERS}.attn_norm.weight": np.ones(HIDDEN, np.float32)},
            "blk.2.attn_norm",
        ),
        (
            {**tensors_of(), "blk.0.ffn_up.weight": np.ones((96, HIDDEN), np.float32)},
            r"ffn_up.weight is \(96",
        ),
        (
            {**tensors_of(), "blk.0.ffn_norm.weight": np.full(HIDDEN, np.nan, np.float32)},
            "ffn_norm.*not finite",
        ),
        (
            {**tensors_of(), "rope_freqs.weight": np.linspace(1, 2, 32, dtype=np.float32)},
            "rope_freqs.weight",
        ),
        ({**tensors_of(), "rope_freqs.weight": np.ones(8, np.float32)}, "rope_freqs.weight"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(tmp_path: Path, tensors: dict, named: str):
    path = write_gguf(tmp_path / "tiny.gguf", tensors=tensors)
    with pytest.raises(UnsupportedModelError, match=rf"(?s)(tiny\.gguf.*)?{named}"):
        load_model(path, "tiny", "fp32")


def test_biases_that_a_family_has_are_needed(tmp_path: Path):
    tensors = tensors_of("qwen2")
    del tensors["blk.0.attn_v.bias"]
    path = write_gguf(tmp_path / "tiny.gguf", "qwen2", tensors=tensors)
    with pytest.raises(UnsupportedModelError, match=r"missing: blk\.0\.attn_v\.bias"):
        open_checkpoint(path)


def test_a_head_of_its_own_is_read(tmp_path: Path):
    head = tensors_of(seed=3)["token_embd.weight"]
    path = write_gguf(tmp_path / "tiny.gguf", tensors={**tensors_of(), "output.weight": head})
    np.testing.assert_allclose(logits_of(path)[0], reference(path), atol=2e-3)


def split_gguf(folder: Path, count: int = 3) -> list[Path]:
    tensors, paths = list(tensors_of().items()), []
    for number in range(count):
        part = folder / f"tiny-{number + 1:05d}-of-{count:05d}.gguf"
        about = {"split.no": number, "split.count": count, "split.tensors.count": len(tensors)}
        paths.append(write_gguf(part, tensors=dict(tensors[number::count]), **about))
    return paths


def test_a_split_file_is_read_whole(tmp_path: Path):
    parts = split_gguf(tmp_path)
    whole = write_gguf(tmp_path / "whole.gguf")
    np.testing.assert_allclose(logits_of(parts[0])[0], reference(whole), atol=2e-3)


def test_parts_that_are_missing_are_named(tmp_path: Path):
    parts = split_gguf(tmp_path)
    parts[1].unlink()
    with pytest.raises(UnsupportedModelError, match=r"not found.*tiny-00002-of-00003\.gguf"):
        open_checkpoint(parts[0])
    alone = parts[0].rename(tmp_path / "renamed.gguf")
    with pytest.raises(UnsupportedModelError, match=r"split\.count is 3"):
        open_checkpoint(alone)


def test_the_same_tensor_in_two_parts_is_refused(tmp_path: Path):
    parts = split_gguf(tmp_path, 2)
    names = dict(list(tensors_of().items())[0::2])
    write_gguf(parts[1], tensors=names, **{"split.no": 1, "split.count": 2})
    with pytest.raises(UnsupportedModelError, match=r"token_embd\.weight is there twice"):
        open_checkpoint(parts[0])


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path):
    path = write_gguf(tmp_path / "tiny.gguf")
    whole = path.read_bytes()
    for length in (2, 30, 5000, len(whole) // 2, len(whole) - 1000):
        path.write_bytes(whole[:length])
        with pytest.raises(UnsupportedModelError, match=r"tiny\.gguf"):
            open_checkpoint(path)


def test_the_tokenizer_is_the_same(tmp_path: Path):
    found, wanted = load_tokenizer(write_gguf(tmp_path / "tiny.gguf")), tiny_tokenizer()
    text = "<|user|>the quick  brown fox 12\n  34<|end|>"
    assert found.encode(text, add_special_tokens=False) == wanted.encode(text)
    assert found.chat_template == wanted.chat_template
