"""llama.cpp's formulae for GGUF files, written out in NumPy after its `src/models`."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests.support.gguf_tiny import HEAD_DIM, HEADS, KV_HEADS, Tensors

_NEIGHBOURS = ("llama", "mistral3", "granite", "smollm3")  # are the pairs that are rotated


def reference_logits(path: Path, ids: list[int]) -> np.ndarray:
    """llama.cpp's forward pass in float64, `[tokens, vocab]`, from the file alone."""
    reader = gguf.GGUFReader(path)
    raw = {key: field.contents() for key, field in reader.fields.items()}
    architecture = raw["general.architecture"]
    keys = {k.removeprefix(f"{architecture}."): v for k, v in raw.items()}
    weights = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    weights = {name: w.astype(np.float64) for name, w in weights.items()}
    eps = keys["attention.layer_norm_rms_epsilon"]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        """RMS norm where the file has its weight."""
        weight = weights.get(f"{name}.weight")
        return x if weight is None else _rms_norm(x, weight, eps)

    embedding = weights["token_embd.weight"]
    size = math.sqrt(embedding.shape[1]) if architecture == "gemma3" else 1
    x = embedding[ids] * (keys.get("embedding_scale") or size)
    for layer in range(keys["block_count"]):
        at = f"blk.{layer}"
        part = {
            name.removeprefix(f"{at}."): weight
            for name, weight in weights.items()
            if name.startswith(f"{at}.")
        }
        window = _window(keys, layer, len(ids))
        turned = _rope(keys, weights, layer, len(ids))
        attended = _attention(norm(x, f"{at}.attn_norm"), part, turned, window, keys)
        scale = keys.get("residual_scale") or 1
        x = x + scale * norm(attended, f"{at}.post_attention_norm")
        y = _feed_forward(norm(x, f"{at}.ffn_norm"), part, architecture == "gemma3")
        x = x + scale * norm(y, f"{at}.post_ffw_norm")
    head = weights.get("output.weight", embedding)
    return norm(x, "output_norm") @ head.T / keys.get("logit_scale", 1)


def _slides(keys: dict[str, Any], layer: int) -> bool:
    """Of Gemma 3, every n-th layer does not."""
    if keys["general.architecture"] != "gemma3":
        return "attention.sliding_window" in keys
    pattern = keys["attention.sliding_window_pattern"]
    return layer % pattern < pattern - 1


def _window(keys: dict[str, Any], layer: int, count: int) -> int:
    return keys["attention.sliding_window"] if _slides(keys, layer) else count


def _feed_forward(x: np.ndarray, weights: Tensors, gelu: bool) -> np.ndarray:
    up = x @ weights["ffn_up.weight"].T + weights.get("ffn_up.bias", 0.0)
    if "ffn_gate.weight" in weights:
        gate = x @ weights["ffn_gate.weight"].T + weights.get("ffn_gate.bias", 0.0)
    else:
        gate, up = np.split(up, 2, -1)
    act = _gelu(gate) if gelu else gate / (1 + np.exp(-gate))
    return act * up @ weights["ffn_down.weight"].T + weights.get("ffn_down.bias", 0.0)


def _gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def _attention(
    x: np.ndarray,
    weights: Tensors,
    turned: Callable[[np.ndarray], np.ndarray],
    window: int,
    keys: dict[str, Any],
) -> np.ndarray:
    """The attention of one layer with these weights, `[tokens, hidden]` to the same."""
    eps = keys["attention.layer_norm_rms_epsilon"]
    if "attn_qkv.weight" in weights:
        sizes = np.cumsum([HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM])
        parts = np.split(weights["attn_qkv.weight"], sizes)
        names = ("attn_q.weight", "attn_k.weight", "attn_v.weight")
        weights = {**weights, **dict(zip(names, parts, strict=True))}

    def heads(name: str) -> np.ndarray:
        y = x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)
        norm = weights.get(f"{name}_norm.weight")
        if norm is not None and norm.size > HEAD_DIM:
            y = _rms_norm(y, norm, eps)
        y = y.reshape(len(x), -1, HEAD_DIM).swapaxes(0, 1)
        if norm is not None and norm.size == HEAD_DIM:
            y = _rms_norm(y, norm, eps)
        return y if name == "attn_v" else turned(y)

    q, k, v = heads("attn_q"), heads("attn_k"), heads("attn_v")
    k, v = (np.repeat(t, HEADS // KV_HEADS, axis=0) for t in (k, v))
    scores = q @ k.swapaxes(1, 2) * (keys.get("attention.scale") or HEAD_DIM**-0.5)
    past = np.arange(len(x))[:, None] - np.arange(len(x))
    seen = (past >= 0) & (past < window)
    scores = np.where(seen, scores, -np.inf)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = shares / shares.sum(-1, keepdims=True) @ v
    mixed = mixed.swapaxes(0, 1).reshape(len(x), -1)
    return mixed @ weights["attn_output.weight"].T + weights.get("attn_output.bias", 0.0)


def _rope(
    keys: dict[str, Any], weights: Tensors, layer: int, count: int
) -> Callable[[np.ndarray], np.ndarray]:
    """`ggml_rope_ext` with its scaling, YaRN and frequency factors."""
    architecture = keys["general.architecture"]
    if architecture == "smollm3" and layer % 4 == 3:
        return lambda x: x
    local = architecture == "gemma3" and _slides(keys, layer)
    rotated = keys.get("rope.dimension_count", HEAD_DIM)
    pairs = np.arange(rotated // 2)
    base = 10000.0 if local else keys["rope.freq_base"]
    by_length = count > keys.get("rope.scaling.original_context_length", keys["context_length"])
    name = f"rope_factors_{'long' if by_length else 'short'}.weight"
    factors = 1.0 if local else weights.get("rope_freqs.weight", weights.get(name, 1.0))
    extrapolated = np.arange(count)[:, None] * base ** (-2 * pairs / rotated) / factors
    kind = keys.get("rope.scaling.type", "linear")
    scale = 1 if local or kind == "none" else 1 / (keys.get("rope.scaling.factor") or 1)
    angles, size = scale * extrapolated, keys.get("rope.scaling.attn_factor", 1.0)
    if kind == "yarn":
        context = keys["rope.scaling.original_context_length"]

        def bound(turns: float) -> float:
            return HEAD_DIM * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(base))

        low, high = max(0, math.floor(bound(32))), min(HEAD_DIM - 1, math.ceil(bound(1)))
        mix = 1 - np.clip((pairs - low) / max(0.001, high - low), 0, 1)
        angles = angles * (1 - mix) + extrapolated * mix
        longer = 0.1 * math.log(1 / scale)
        size *= (1 + longer) / (1 + keys.get("rope.scaling.yarn_log_multiplier", 0.0) * longer)
    cos, sin = size * np.cos(angles), size * np.sin(angles)

    def turned(x: np.ndarray) -> np.ndarray:
        x, kept = x[..., :rotated], x[..., rotated:]
        if architecture in _NEIGHBOURS:
            a, b = x[..., ::2], x[..., 1::2]
            found = np.stack([a * cos - b * sin, a * sin + b * cos], -1).reshape(x.shape)
        else:
            a, b = np.split(x, 2, -1)
            found = np.concatenate([a * cos - b * sin, a * sin + b * cos], -1)
        return np.concatenate([found, kept], -1)

    return turned
