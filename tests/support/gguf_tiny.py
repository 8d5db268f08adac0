"""Tiny random GGUF files of each architecture."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import numpy as np

from tests.support.gguf_blocks import QUANTISED, random_blocks
from tests.support.tiny import CHAT, VOCAB, tiny_tokenizer

HIDDEN, FFN, HEADS, KV_HEADS, HEAD_DIM, LAYERS, CONTEXT = 256, 512, 4, 2, 64, 2, 512
PROMPT = list(range(20, 80))
ROTATED = 48  # of the 64 numbers of a head of Phi-3
Tensors = dict[str, np.ndarray]


def layers_of(architecture: str) -> int:
    """The number of layers; the fourth of SmolLM3 is the first without rotary embedding."""
    return 4 if architecture == "smollm3" else LAYERS


def _matrices(architecture: str) -> dict[str, tuple[int, int]]:
    q, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    attention = {"attn_q": (q, HIDDEN), "attn_k": (kv, HIDDEN), "attn_v": (kv, HIDDEN)}
    inner = {"ffn_gate": (FFN, HIDDEN), "ffn_up": (FFN, HIDDEN)}
    if architecture == "phi3":
        attention, inner = {"attn_qkv": (q + 2 * kv, HIDDEN)}, {"ffn_up": (2 * FFN, HIDDEN)}
    return {**attention, "attn_output": (HIDDEN, q), **inner, "ffn_down": (HIDDEN, FFN)}


def _norms(architecture: str) -> dict[str, int]:
    before, behind = ("attn_norm", "ffn_norm"), ("post_attention_norm", "post_ffw_norm")
    names = {"gemma3": (*before, *behind), "olmo2": behind}.get(architecture, before)
    found = dict.fromkeys(names, HIDDEN)
    if architecture in ("qwen3", "gemma3"):
        found |= {"attn_q_norm": HEAD_DIM, "attn_k_norm": HEAD_DIM}
    if architecture == "olmo2":
        found |= {"attn_q_norm": HEADS * HEAD_DIM, "attn_k_norm": KV_HEADS * HEAD_DIM}
    return found


def tensors_of(architecture: str = "llama", seed: int = 0, biases: tuple[str, ...] = ()) -> Tensors:
    """Random tensors under GGUF's names. `biases` names matrices that have one."""
    random = np.random.default_rng(seed)
    biases = ("attn_q", "attn_k", "attn_v") if architecture == "qwen2" else biases

    def norm(size: int) -> np.ndarray:
        return (1 + 0.1 * random.standard_normal(size)).astype(np.float32)

    found = {
        "token_embd.weight": 0.15 * random.standard_normal((VOCAB, HIDDEN), np.float32),
        "output_norm.weight": norm(HIDDEN),
    }
    if architecture == "olmo2":
        found["output.weight"] = 0.15 * random.standard_normal((VOCAB, HIDDEN), np.float32)
    for layer in range(layers_of(architecture)):
        at = f"blk.{layer}."
        for name, shape in _matrices(architecture).items():
            found[f"{at}{name}.weight"] = 0.1 * random.standard_normal(shape, np.float32)
            if name in biases:
                found[f"{at}{name}.bias"] = 0.3 * random.standard_normal(shape[0], np.float32)
        for name, size in _norms(architecture).items():
            found[f"{at}{name}.weight"] = norm(size)
    return found


def keys_of(architecture: str = "llama") -> dict[str, object]:
    """The metadata of such a file; a value of None leaves a key out."""
    found = {
        "block_count": layers_of(architecture),
        "context_length": CONTEXT,
        "embedding_length": HIDDEN,
        "feed_forward_length": FFN,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.key_length": HEAD_DIM,
        "attention.value_length": HEAD_DIM,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 10000.0,
        "vocab_size": VOCAB,
    }
    if architecture == "gemma3":
        found["attention.sliding_window"] = 24
        found["attention.sliding_window_pattern"] = 2
    if architecture == "granite":
        scales = {"logit": 3.0, "residual": 0.4, "embedding": 5.0}
        found |= {f"{name}_scale": value for name, value in scales.items()}
        found["attention.scale"] = 0.2
    if architecture == "phi3":
        found["rope.dimension_count"] = ROTATED
        found["rope.scaling.original_context_length"] = CONTEXT
    return found


def write_gguf(
    path: Path,
    architecture: str = "llama",
    keys: Mapping[str, object] | None = None,
    tensors: Tensors | None = None,
    types: Callable[[str], str | None] = lambda name: None,
    **general: object,
) -> Path:
    """Writes a file. `types` says in what type a matrix is quantised; `general` are whole keys."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in {**keys_of(architecture), **(keys or {})}.items():
        if value is not None:
            _add(writer, f"{architecture}.{key}", value)
    for key, value in {**_tokenizer_keys(), **general}.items():
        if value is not None:
            _add(writer, key, value)
    for name, values in (tensors or tensors_of(architecture)).items():
        kind = types(name) if values.ndim == 2 else None
        if kind is None:
            writer.add_tensor(name, values)
            continue
        wanted = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, quantised(values, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def quantised(values: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """Quantised bytes; types without a quantiser have random blocks of about the same size."""
    try:
        return gguf.quantize(values, kind)
    except NotImplementedError:
        assert kind.name in QUANTISED
        return random_blocks(kind.name, *values.shape, seed=values.size)


def _add(writer: gguf.GGUFWriter, key: str, value: object) -> None:
    kinds = {bool: "add_bool", int: "add_uint32", float: "add_float32", str: "add_string"}
    getattr(writer, kinds.get(type(value), "add_array"))(key, value)


def _tokenizer_keys() -> dict[str, object]:
    tokenizer = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
    tokens = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    special = {added["content"] for added in tokenizer["added_tokens"]}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in special else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in tokenizer["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.chat_template": CHAT,
    }


def llama3_factors(
    factor: float, low: float, high: float, context: int, base: float = 10000.0
) -> np.ndarray:
    """The factors that llama.cpp's converter writes for a Llama 3 configuration."""
    found = []
    for pair in range(HEAD_DIM // 2):
        length = 2 * math.pi * base ** (2 * pair / HEAD_DIM)
        if length < context / high:
            found.append(1.0)
        elif length > context / low:
            found.append(factor)
        else:
            smooth = (context / length - low) / (high - low)
            found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found, np.float32)
