"""Tiny random GGUF files, and llama.cpp's formulae for them written out in NumPy."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests.support.tiny import CHAT, VOCAB, tiny_tokenizer

HIDDEN, FFN, HEADS, KV_HEADS, HEAD_DIM, LAYERS, CONTEXT = 256, 512, 4, 2, 64, 2, 512
PROMPT = list(range(20, 80))
_MATRICES = {
    "attn_q": (HEADS * HEAD_DIM, HIDDEN),
    "attn_k": (KV_HEADS * HEAD_DIM, HIDDEN),
    "attn_v": (KV_HEADS * HEAD_DIM, HIDDEN),
    "attn_output": (HIDDEN, HEADS * HEAD_DIM),
    "ffn_gate": (FFN, HIDDEN),
    "ffn_up": (FFN, HIDDEN),
    "ffn_down": (HIDDEN, FFN),
}
Tensors = dict[str, np.ndarray]


def tensors_of(architecture: str = "llama", seed: int = 0) -> Tensors:
    """Random tensors under GGUF's names."""
    random = np.random.default_rng(seed)

    def norm(size: int) -> np.ndarray:
        return (1 + 0.1 * random.standard_normal(size)).astype(np.float32)

    found = {
        "token_embd.weight": 0.15 * random.standard_normal((VOCAB, HIDDEN), np.float32),
        "output_norm.weight": norm(HIDDEN),
    }
    for layer in range(LAYERS):
        at = f"blk.{layer}."
        for name, shape in _MATRICES.items():
            found[f"{at}{name}.weight"] = 0.1 * random.standard_normal(shape, np.float32)
        norms = ["attn_norm", "ffn_norm"]
        if architecture == "gemma3":
            norms += ["post_attention_norm", "post_ffw_norm"]
        for name in norms:
            found[f"{at}{name}.weight"] = norm(HIDDEN)
        if architecture in ("qwen3", "gemma3"):
            for name in ("attn_q_norm", "attn_k_norm"):
                found[f"{at}{name}.weight"] = norm(HEAD_DIM)
        if architecture == "qwen2":
            for name in ("attn_q", "attn_k", "attn_v"):
                size = _MATRICES[name][0]
                found[f"{at}{name}.bias"] = 0.3 * random.standard_normal(size, np.float32)
    return found


def keys_of(architecture: str = "llama") -> dict[str, object]:
    """The metadata of such a file; a value of None leaves a key out."""
    found = {
        "block_count": LAYERS,
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
    """Quantised bytes; K-quants have no quantiser, so their blocks are random with small scales."""
    try:
        return gguf.quantize(values, kind)
    except NotImplementedError:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        shape = (values.shape[0], values.shape[1] // block, size)
        raw = np.random.default_rng(values.size).integers(0, 256, shape).astype(np.uint8)
        halves = {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "Q3_K": (108,), "Q2_K": (80, 82)}
        for at in halves[kind.name]:
            scale = {"Q6_K": 5e-5, "Q3_K": 1e-3, "Q2_K": 5e-3}.get(kind.name, 1.5e-4)
            raw[..., at : at + 2] = np.array([scale], np.float16).view(np.uint8)
        return raw.reshape(values.shape[0], -1)


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


def reference_logits(path: Path, ids: list[int]) -> np.ndarray:
    """llama.cpp's forward pass in float64, `[tokens, vocab]`, from the file alone."""
    reader = gguf.GGUFReader(path)
    raw = {key: field.contents() for key, field in reader.fields.items()}
    architecture = raw["general.architecture"]
    keys = {k.removeprefix(f"{architecture}."): v for k, v in raw.items()}
    weights = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    weights = {name: w.astype(np.float64) for name, w in weights.items()}
    gemma = architecture == "gemma3"
    eps = keys["attention.layer_norm_rms_epsilon"]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return _rms_norm(x, weights[f"{name}.weight"], eps)

    x = weights["token_embd.weight"][ids] * (math.sqrt(HIDDEN) if gemma else 1)
    for layer in range(keys["block_count"]):
        at = f"blk.{layer}"
        slides = gemma and layer % keys["attention.sliding_window_pattern"] == 0
        turned = _rope(keys, weights, architecture, len(ids), slides)
        window = keys["attention.sliding_window"] if slides else len(ids)
        part = {
            name.removeprefix(f"{at}."): weight
            for name, weight in weights.items()
            if name.startswith(f"{at}.")
        }
        attended = _attention(norm(x, f"{at}.attn_norm"), part, turned, window, eps)
        x = x + (norm(attended, f"{at}.post_attention_norm") if gemma else attended)
        y = norm(x, f"{at}.ffn_norm")
        gate = y @ weights[f"{at}.ffn_gate.weight"].T
        act = _gelu(gate) if gemma else gate / (1 + np.exp(-gate))
        y = act * (y @ weights[f"{at}.ffn_up.weight"].T) @ weights[f"{at}.ffn_down.weight"].T
        x = x + (norm(y, f"{at}.post_ffw_norm") if gemma else y)
    head = weights.get("output.weight", weights["token_embd.weight"])
    return norm(x, "output_norm") @ head.T


def _gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def _attention(
    x: np.ndarray,
    weights: Tensors,
    turned: Callable[[np.ndarray], np.ndarray],
    window: int,
    eps: float,
) -> np.ndarray:
    """The attention of one layer with these weights, `[tokens, hidden]` to the same."""

    def heads(name: str) -> np.ndarray:
        y = x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)
        y = y.reshape(len(x), -1, HEAD_DIM).swapaxes(0, 1)
        if f"{name}_norm.weight" in weights:
            y = _rms_norm(y, weights[f"{name}_norm.weight"], eps)
        return y if name == "attn_v" else turned(y)

    q, k, v = heads("attn_q"), heads("attn_k"), heads("attn_v")
    k, v = (np.repeat(t, HEADS // KV_HEADS, axis=0) for t in (k, v))
    scores = q @ k.swapaxes(1, 2) / math.sqrt(HEAD_DIM)
    past = np.arange(len(x))[:, None] - np.arange(len(x))
    seen = (past >= 0) & (past < window)
    scores = np.where(seen, scores, -np.inf)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = shares / shares.sum(-1, keepdims=True) @ v
    return mixed.swapaxes(0, 1).reshape(len(x), -1) @ weights["attn_output.weight"].T


def _rope(
    keys: dict[str, Any], weights: Tensors, architecture: str, count: int, slides: bool
) -> Callable[[np.ndarray], np.ndarray]:
    """`ggml_rope_ext` with its scaling, YaRN and frequency factors."""
    pairs = np.arange(HEAD_DIM // 2)
    base = 10000.0 if slides else keys["rope.freq_base"]
    factors = 1.0 if slides else weights.get("rope_freqs.weight", 1.0)
    extrapolated = np.arange(count)[:, None] * base ** (-2 * pairs / HEAD_DIM) / factors
    kind = keys.get("rope.scaling.type", "linear")
    scale = 1 if slides or kind == "none" else 1 / (keys.get("rope.scaling.factor") or 1)
    angles, size = scale * extrapolated, keys.get("rope.scaling.attn_factor", 1.0)
    if kind == "yarn":
        context = keys["rope.scaling.original_context_length"]

        def bound(turns: float) -> float:
            return HEAD_DIM * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(base))

        low, high = max(0, math.floor(bound(32))), min(HEAD_DIM - 1, math.ceil(bound(1)))
        mix = 1 - np.clip((pairs - low) / max(0.001, high - low), 0, 1)
        angles = angles * (1 - mix) + extrapolated * mix
        size *= 1 + 0.1 * math.log(1 / scale)
    cos, sin = size * np.cos(angles), size * np.sin(angles)

    def turned(x: np.ndarray) -> np.ndarray:
        if architecture == "llama":  # neighbours are pairs
            a, b = x[..., ::2], x[..., 1::2]
            return np.stack([a * cos - b * sin, a * sin + b * cos], -1).reshape(x.shape)
        a, b = np.split(x, 2, -1)
        return np.concatenate([a * cos - b * sin, a * sin + b * cos], -1)

    return turned


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
