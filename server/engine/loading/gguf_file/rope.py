"""Rotary embeddings of a GGUF file as `rope_parameters` of a configuration.

llama.cpp rotates pair `i` of `dim / 2` by `position * base ** (-2 * i / dim) / factor_i`, where the
factors stand in the tensor `rope_freqs.weight`. Linear scaling divides all angles by one factor;
YaRN divides the slow ones and makes cos and sin longer.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pruners.architecture import UnsupportedModelError
from server.engine.loading.gguf_file.keys import Keys

_CLOSE = 1e-5  # relative: what fp32 leaves of a factor


def scaling(keys: Keys, context: int) -> dict[str, Any]:
    """Read the keys `rope.scaling.*`: a rope type of `transformers` with its parameters."""
    kind = keys.take("rope.scaling.type", "linear")  # as llama.cpp assumes
    old = keys.take("rope.scale_linear", 0.0)
    factor = keys.take("rope.scaling.factor", old) or 1.0
    original = keys.count("rope.scaling.original_context_length", context)
    attention = keys.number("rope.scaling.attn_factor", 1.0)
    attention *= keys.number("rope.scaling.yarn_attn_factor", 1.0)
    fast = keys.number("rope.scaling.yarn_beta_fast", 32.0)
    slow = keys.number("rope.scaling.yarn_beta_slow", 1.0)
    keys.neutral("rope.scaling.yarn_log_multiplier", 0.0)
    keys.neutral("rope.scaling.yarn_ext_factor", -1.0, float(kind == "yarn"))
    keys.neutral("rope.scaling.alpha", 0.0)
    if not isinstance(factor, int | float) or not 0 < factor < 1e30:
        raise keys.refuse("rope.scaling.factor", factor, "is not supported; one number above 0 is")
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
        "attention_factor": attention * (1 + 0.1 * math.log(factor)),
    }


def from_factors(factors: NDArray[np.float32], base: float) -> dict[str, Any]:
    """Return the rope type that divides the frequencies by the factors of `rope_freqs.weight`.

    Llama 3.1 and 3.2 keep them there; their parameters are recovered and checked. Raises
    `UnsupportedModelError` for factors of any other form.
    """
    expected = factors.astype(np.float64)
    if not np.isfinite(expected).all() or (expected <= 0).any():
        raise UnsupportedModelError("GGUF tensor rope_freqs.weight holds factors that are not > 0")
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
