"""Random blocks of GGUF's quantised types: any bytes, with scales as trained models have them."""

import gguf
import numpy as np

# By type: where a block has its fp16 numbers, and how large they are for weights of about 0.1.
_HALVES = {
    "Q4_0": {0: 0.02},
    "Q4_1": {0: 0.02, 2: -0.15},
    "Q5_0": {0: 0.01},
    "Q5_1": {0: 0.01, 2: -0.15},
    "Q8_0": {0: 1.4e-3},
    "Q2_K": {80: 0.01, 82: 0.015},
    "Q3_K": {108: 2.5e-3},
    "Q4_K": {0: 6e-4, 2: 4.5e-3},
    "Q5_K": {0: 3e-4, 2: 4.5e-3},
    "Q6_K": {208: 7e-5},
    "IQ4_NL": {0: 1.4e-3},
    "IQ4_XS": {0: 8e-5},
}
QUANTISED = list(_HALVES)


def random_blocks(kind: str, rows: int, inputs: int, seed: int = 0, scale: float = 1) -> np.ndarray:
    """Blocks of a matrix, `[rows, bytes]`. `scale` makes all weights larger."""
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    random = np.random.default_rng(seed)
    raw = random.integers(0, 256, (rows, inputs // block, size), np.uint8)
    if kind == "Q8_0":
        raw[..., 2:][raw[..., 2:] == 128] = 0  # quantisers do not write -128
    for at, value in _HALVES[kind].items():
        numbers = scale * value * random.uniform(0.5, 1, raw.shape[:2])
        with np.errstate(over="ignore"):
            raw[..., at : at + 2] = numbers.astype(np.float16)[..., None].view(np.uint8)
    return raw.reshape(rows, -1)


def dequantised(raw: np.ndarray, kind: str) -> np.ndarray:
    """What the `gguf` package makes of blocks, fp32 `[rows, inputs]`."""
    return gguf.dequantize(raw, gguf.GGMLQuantizationType[kind])
