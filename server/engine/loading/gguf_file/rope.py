"""Rotary embeddings of a GGUF file as `rope_parameters` of a configuration.

llama.cpp rotates pair `i` of `dim / 2` by `position * base ** (-2 * i / dim) / factor_i`, where the
factors stand in the tensor `rope_freqs.weight`. Linear scaling divides all angles by one factor;
YaRN divides the slow ones and makes cos and sin longer. Phi-3 has two tensors of factors: for texts
as long as those of its first training, and for longer ones.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pruners.architecture import UnsupportedModelError
from server.engine.loading.gguf_file.keys import Keys
from server.engine.loading.gguf_file.parts import GgufModel

FACTORS = "rope_freqs.weight"
SHORT, LONG = "rope_factors_short.weight", "rope_factors_long.weight"
_CLOSE = 1e-5  # relative: what fp32 leaves of a factor


def scaling(keys: Keys, context: int) -> dict[str, Any]:
    """Read the keys `rope.scaling.*`: a rope type of `transformers` with its parameters."""
    kind = keys.take("rope.scaling.type", "linear")  # as llama.cpp assumes
    old = keys.take("rope.scale_linear", 0.0)
    factor = keys.take("rope.scaling.factor", old) or 1.0
    original = keys.count("rope.scaling.original_context_length", context)
    attention = keys.number("rope.scaling.attn_factor", 1.0)
    fast = keys.number("rope.scaling.yarn_beta_fast", 32.0)
    slow = keys.number("rope.scaling.yarn_beta_slow", 1.0)
    multiplier = _log_multiplier(keys)
    keys.neutral("rope.scaling.yarn_ext_factor", -1.0, float(kind == "yarn"))
    keys.neutral("rope.scaling.alpha", 0.0)
    if not isinstance(factor, int | float) or not 0 < factor < 1e30:
        raise keys.refuse("rope.scaling.factor", factor, "is not supported; one number above 0 is")
    longer = 1 + 0.1 * math.log(max(factor, 1.0))
    # llama.cpp computes it anew, `transformers` reads it.
    keys.neutral("rope.scaling.yarn_attn_factor", 1.0, close=longer)
    if kind not in ("none", "linear", "yarn"):
        raise keys.refuse("rope.scaling.type", kind, "is not supported; none, linear and yarn are")
    if kind != "yarn" and attention != 1:
        raise keys.refuse("rope.scaling.attn_factor", attention, "is supported with yarn only")
    if kind == "none" or (factor == 1 and attention == 1):
        return {"rope_type": "default"}
    if kind == "linear":
        return {"rope_type": "linear", "factor": float(factor)}
    return {
        "rope_type": "yarn",
        "factor": float(factor),
        "original_max_position_embeddings": original,
        "beta_fast": fast,
        "beta_slow": slow,
        "attention_factor": attention * longer / (1 + multiplier * (longer - 1)),
    }


def _log_multiplier(keys: Keys) -> float:
    """Read how much of YaRN's longer cos and sin is taken back; only Mistral 3 has that."""
    key = "rope.scaling.yarn_log_multiplier"
    if keys.architecture != "mistral3":
        keys.neutral(key, 0.0)
    return keys.scale(key, 0.0)


def factors(model: GgufModel, name: str, pairs: int) -> NDArray[np.float32]:
    """Return a tensor of one fp32 factor for each pair. Raises `UnsupportedModelError`."""
    tensor = model.tensors.get(name)
    if tensor is None:
        raise UnsupportedModelError(f"GGUF tensor {name} is missing")
    if tuple(tensor.shape) != (pairs,) or tensor.data.dtype != "float32":
        raise UnsupportedModelError(
            f"GGUF tensor {name} is not one fp32 factor for each pair of a head"
        )
    found: NDArray[np.float32] = tensor.data
    if not np.isfinite(found).all() or (found <= 0).any():
        raise UnsupportedModelError(f"GGUF tensor {name} holds factors that are not > 0")
    return found


def by_length(keys: Keys, model: GgufModel, rotated: int, original: int) -> dict[str, Any]:
    """Return Phi-3's rope type: none, or factors for texts up to `original` tokens and for longer.

    `rotated` numbers of a head are rotated.
    """
    names = {SHORT, LONG} & model.tensors.keys()
    kind = keys.take("rope.scaling.type", "longrope" if names else "none")
    attention = keys.number("rope.scaling.attn_factor", 1.0)
    keys.neutral("rope.scaling.factor", 0.0, 1.0)
    if kind != ("longrope" if names else "none"):
        raise keys.refuse("rope.scaling.type", kind, "is not supported")
    if not names and attention != 1:
        raise keys.refuse("rope.scaling.attn_factor", attention, "needs factors of longrope")
    if not names:
        return {"rope_type": "default"}
    return {
        "rope_type": "longrope",
        "short_factor": factors(model, SHORT, rotated // 2).tolist(),
        "long_factor": factors(model, LONG, rotated // 2).tolist(),
        "original_max_position_embeddings": original,
        "attention_factor": attention,
    }


def from_factors(found: NDArray[np.float32], base: float) -> dict[str, Any]:
    """Return the rope type that divides the frequencies by the factors of `rope_freqs.weight`.

    Llama 3.1 and 3.2 keep them there; their parameters are recovered and checked. Raises
    `UnsupportedModelError` for factors of any other form.
    """
    expected = found.astype(np.float64)
    if _same(expected, np.ones_like(expected)):
        return {"rope_type": "default"}
    if _same(expected, np.full_like(expected, expected[0])):
        return {"rope_type": "linear", "factor": float(expected[0])}
    lengths = 2 * math.pi * base ** (np.arange(len(expected)) / len(expected))
    for low, high, original in _candidates(expected, lengths):
        if _same(_llama3(lengths, expected.max(), low, high, original), expected):
            return {
                "rope_type": "llama3",
                "factor": float(expected.max()),
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": original,
            }
    raise UnsupportedModelError(
        "GGUF tensor rope_freqs.weight is not supported: its factors are not those of Llama 3"
    )


def _same(left: NDArray[np.float64], right: NDArray[np.float64]) -> bool:
    return bool(np.allclose(left, right, rtol=_CLOSE, atol=0))


def _llama3(
    lengths: NDArray[np.float64], factor: float, low: float, high: float, original: int
) -> NDArray[np.float64]:
    """Return Llama 3's factors `[pairs]` of pairs with a period of `lengths` tokens `[pairs]`."""
    smooth = np.clip((original / lengths - low) / (high - low), 0, 1)
    return np.asarray(1 / ((1 - smooth) / factor + smooth))


def _candidates(
    factors: NDArray[np.float64], lengths: NDArray[np.float64]
) -> Iterator[tuple[float, float, int]]:
    """Yield low and high factors with an original context that fit `factors`, `[pairs]`.

    There, `smooth = (original / length - low) / (high - low)`, a line over `1 / length`. Only
    ratios count, so the original context is one of those that are in use, or the low factor is 1.
    """
    largest = factors.max()
    between = (factors > 1 + _CLOSE) & (factors < largest * (1 - _CLOSE))
    smooth = (1 / factors[between] - 1 / largest) / (1 - 1 / largest)
    turns = 1 / lengths[between]
    for turn, part in zip(turns, smooth, strict=True):  # with Llama's own 1 and 4
        yield 1.0, 4.0, round((1 + 3 * part) / turn)
    if len(turns) < 2:
        return
    slope, start = np.polyfit(turns, smooth, 1)
    if slope > 0 > start:
        for original in (8192, 1 << 20):
            low = original * -start / slope
            yield float(low), float(low + original / slope), original
