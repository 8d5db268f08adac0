"""Files of random weights are whole models, as large and of the types that llama.cpp gives them."""

from collections import Counter
from pathlib import Path

import gguf
import numpy as np
import pytest

from benchmarks.support.random_gguf import SHAPES, GgufShape, random_blocks, write_random_gguf
from server.engine.loading.gguf_file.config import config_of
from server.engine.loading.gguf_file.parts import open_gguf
from server.engine.loading.gguf_file.tensors import tensor_names
from tests.support.gguf_tiny import write_gguf

TINY = GgufShape(8, 256, 512, 4, 2, 64, 32.0, tied=True)


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "Q4_K", "Q6_K"])
def test_weights_are_as_large_as_those_of_a_trained_model(kind: str):
    stored = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[stored]
    raw = random_blocks(stored, 4096 * block, np.random.SFC64(1)).reshape(-1, size)
    values = gguf.dequantize(raw, stored)
    assert values.std() == pytest.approx(0.02, rel=0.05)
    assert abs(values.mean()) < 5e-4
    assert np.abs(values).max() < 0.1


@pytest.mark.parametrize(
    ("kind", "types"),
    [
        ("Q4_0", {"Q4_0": 56, "Q6_K": 1}),
        ("Q8_0", {"Q8_0": 57}),
        ("Q4_K_M", {"Q4_K": 48, "Q6_K": 9}),  # attn_v and ffn_down of layers 0, 3, 6 and 7
    ],
)
def test_a_file_is_a_whole_model(tmp_path: Path, kind: str, types: dict[str, int]):
    path, tokenizer = tmp_path / "random.gguf", write_gguf(tmp_path / "tiny.gguf")
    write_random_gguf(path, TINY, kind, tokenizer)
    model = open_gguf(path)
    config = config_of(model)
    names = tensor_names(model, config)
    assert config.rope_parameters["rope_type"] == "llama3"
    assert config.rope_parameters["factor"] == 32
    tokens = len(open_gguf(tokenizer).array("tokenizer.ggml.tokens"))
    assert (config.vocab_size, config.num_hidden_layers) == (tokens, 8)
    found = Counter(model.tensors[name].tensor_type.name for name in names.values())
    assert found.pop("F32") == 17
    assert found == types
    assert not list(tmp_path.glob(".*"))


def test_shapes_are_those_of_llama():
    small, large = SHAPES["1b"], SHAPES["8b"]
    assert small.heads * small.head_dim == small.hidden
    assert large.heads * large.head_dim == large.hidden
