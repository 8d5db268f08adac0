"""Write a GGUF file of a known shape, with random weights and the default model's tokenizer.

`python -m benchmarks.support.random_gguf --shape 1b --type Q4_K_M --out FILE`

Blocks are random bytes with sane scales, so nothing is quantised and a file takes little longer
than writing it. Weights are about as large as those of a trained model: N(0, 0.02). Each tensor has
the type that llama.cpp's `llama-quantize` gives it, and llama.cpp loads the file.
"""

import argparse
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, LlamaFileType
from numpy.typing import NDArray

from benchmarks.support.peers import ggufs

Blocks = NDArray[np.uint8]  # [blocks, bytes of a block]
STD = 0.02  # of the weights
CONTEXT = 131072  # tokens
ROPE_BASE = 500000.0
FILE_TYPES = {
    "Q4_0": LlamaFileType.MOSTLY_Q4_0,
    "Q8_0": LlamaFileType.MOSTLY_Q8_0,
    "Q4_K_M": LlamaFileType.MOSTLY_Q4_K_M,
}


@dataclass(frozen=True, slots=True)
class GgufShape:
    """Sizes of a Llama. `rope_factor` is that of Llama 3's rope scaling; `tied` is the head."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_groups: int
    head_dim: int
    rope_factor: float
    tied: bool


SHAPES = {
    "1b": GgufShape(16, 2048, 8192, 32, 8, 64, 32.0, tied=True),  # Llama 3.2 1B
    "8b": GgufShape(32, 4096, 14336, 32, 8, 128, 8.0, tied=False),  # Llama 3.1 8B
}


def main() -> None:
    """Write the file that the options describe."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--type", choices=FILE_TYPES, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    write_random_gguf(options.out, SHAPES[options.shape], options.type, ggufs(None)["Q4_1"])
    print(f"{options.out}: {options.out.stat().st_size / 1e9:.2f} GB")


def write_random_gguf(path: Path, shape: GgufShape, kind: str, tokenizer: Path) -> None:
    """Write a file of type `kind`, tensor by tensor, with the tokenizer of the file `tokenizer`.

    The same arguments give the same file. Raises `OSError`.
    """
    part = path.with_name(f".{path.name}.part")
    writer = GGUFWriter(part, "llama")
    vocab = _add_metadata(writer, shape, kind, GGUFReader(tokenizer))
    tensors: dict[str, tuple[tuple[int, ...], GGMLQuantizationType]] = {}
    for name, sizes in _shapes(shape, vocab).items():
        stored = _stored_type(name, kind, shape)
        tensors[name] = (sizes, stored)
        block, size = gguf.GGML_QUANT_SIZES[stored]
        number = np.dtype(np.float32 if stored is GGMLQuantizationType.F32 else np.uint8)
        in_file = (*sizes[:-1], sizes[-1] // block * size // number.itemsize)
        writer.add_tensor_info(name, in_file, number, math.prod(in_file) * number.itemsize, stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    source = np.random.SFC64(0)
    for name, (sizes, stored) in tensors.items():
        if stored is GGMLQuantizationType.F32:
            factors = name == "rope_freqs.weight"
            writer.write_tensor_data(_rope_factors(shape) if factors else np.ones(sizes, "f4"))
        else:
            writer.write_tensor_data(random_blocks(stored, math.prod(sizes), source))
    writer.close()
    os.replace(part, path)


def _add_metadata(writer: GGUFWriter, shape: GgufShape, kind: str, reader: GGUFReader) -> int:
    """Add the keys of a Llama and the tokenizer of another file; return its number of tokens."""
    writer.add_name(f"random {kind}")
    writer.add_file_type(FILE_TYPES[kind])
    writer.add_quantization_version(2)
    writer.add_block_count(shape.layers)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_groups)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(ROPE_BASE)
    writer.add_layer_norm_rms_eps(1e-5)
    for key, field in reader.fields.items():
        if key.startswith("tokenizer."):
            array = field.types[0] == gguf.GGUFValueType.ARRAY
            inner = field.types[-1] if array else None
            writer.add_key_value(key, field.contents(), field.types[0], inner)
    vocab = len(reader.fields["tokenizer.ggml.tokens"].data)
    writer.add_vocab_size(vocab)
    return vocab


def _shapes(shape: GgufShape, vocab: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor, outputs first."""
    inner, kv = shape.heads * shape.head_dim, shape.kv_groups * shape.head_dim
    found: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (vocab, shape.hidden),
        "output_norm.weight": (shape.hidden,),
        "rope_freqs.weight": (shape.head_dim // 2,),
    }
    if not shape.tied:
        found["output.weight"] = (vocab, shape.hidden)
    for layer in range(shape.layers):
        in_layer: dict[str, tuple[int, ...]] = {
            "attn_norm": (shape.hidden,),
            "attn_q": (inner, shape.hidden),
            "attn_k": (kv, shape.hidden),
            "attn_v": (kv, shape.hidden),
            "attn_output": (shape.hidden, inner),
            "ffn_norm": (shape.hidden,),
            "ffn_gate": (shape.ffn, shape.hidden),
            "ffn_up": (shape.ffn, shape.hidden),
            "ffn_down": (shape.hidden, shape.ffn),
        }
        found |= {f"blk.{layer}.{name}.weight": sizes for name, sizes in in_layer.items()}
    return found


def _stored_type(name: str, kind: str, shape: GgufShape) -> GGMLQuantizationType:
    """Return the type of a tensor in a file of type `kind`, as llama.cpp's `llama-quant.cpp`."""
    if name.endswith("norm.weight") or name == "rope_freqs.weight":
        return GGMLQuantizationType.F32
    if kind == "Q8_0":
        return GGMLQuantizationType.Q8_0
    if name == ("token_embd.weight" if shape.tied else "output.weight"):
        return GGMLQuantizationType.Q6_K
    if kind == "Q4_0":
        return GGMLQuantizationType.Q4_0
    if name.endswith(("attn_v.weight", "ffn_down.weight")):
        layer, eighth = int(name.split(".")[1]), shape.layers // 8
        outer = layer < eighth or layer >= 7 * shape.layers // 8
        if outer or (layer - eighth) % 3 == 2:
            return GGMLQuantizationType.Q6_K
    return GGMLQuantizationType.Q4_K


def _rope_factors(shape: GgufShape) -> NDArray[np.float32]:
    """Return Llama 3's factors of a context that grew from 8192 tokens, one a pair."""
    turns = 8192 * ROPE_BASE ** (-np.arange(0, shape.head_dim, 2) / shape.head_dim) / (2 * np.pi)
    smooth = np.clip((turns - 1) / 3, 0, 1)
    return (1 / ((1 - smooth) / shape.rope_factor + smooth)).astype(np.float32)


def random_blocks(
    kind: GGMLQuantizationType, count: int, source: np.random.BitGenerator
) -> NDArray[np.uint8]:
    """Return random blocks of `count` weights of mean 0 and standard deviation `STD`, as bytes."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    length = count // block * size
    words = np.asarray(source.random_raw(-(-length // 8)), np.uint64)
    raw = words.view(np.uint8)[:length].reshape(-1, size)
    _SCALES[kind](raw)
    return raw.reshape(-1)


def _scaled(raw: Blocks, at: int, scale: float) -> None:
    """Write fp16 scales at a byte of all blocks: from 3/4 to 5/4 of `scale`, of either sign."""
    spread = (0.75 + raw[:, at] / 512) * np.where(raw[:, at + 1] & 1, scale, -scale)
    raw[:, at : at + 2] = spread.astype(np.float16)[:, None].view(np.uint8)


def _q4_0(raw: Blocks) -> None:
    _scaled(raw, 0, STD / 4.64)


def _q8_0(raw: Blocks) -> None:
    raw[:, 2:][raw[:, 2:] == 128] = 0  # the quantiser never writes -128
    _scaled(raw, 0, STD / 73.3)


def _q4_k(raw: Blocks) -> None:
    """Give each group of 32 a scale of 32 to 63 and the same minimum, so that codes are centred."""
    low, high = raw[:, 4:8], raw[:, 12:16]
    low |= 0b10100000
    raw[:, 8:12] = low
    high &= 15
    high |= high << 4
    _scaled(raw, 0, STD / (48.4 * 4.61))
    scales = raw[:, 0:2].copy().view(np.float16)
    raw[:, 2:4] = (7.5 * scales).view(np.uint8)


def _q6_k(raw: Blocks) -> None:
    """Give each group of 16 a scale of 64 to 127."""
    raw[:, 192:208] = raw[:, 192:208] & 63 | 64
    _scaled(raw, 208, STD / (97.3 * 18.5))


_SCALES: dict[GGMLQuantizationType, Callable[[Blocks], None]] = {
    GGMLQuantizationType.Q4_0: _q4_0,
    GGMLQuantizationType.Q8_0: _q8_0,
    GGMLQuantizationType.Q4_K: _q4_k,
    GGMLQuantizationType.Q6_K: _q6_k,
}


if __name__ == "__main__":
    main()
