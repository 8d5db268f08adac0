"""`benchmarks.precision` in small: how far the native kernels are from exact arithmetic."""

from pathlib import Path

import pytest
import torch

from benchmarks.precision import compare, overlooked
from server.engine.backends.native import library as native_library
from server.engine.loading.load import load_tokenizer

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.skipif(not native_library.is_available(), reason="the native kernels are not built")
@pytest.mark.parametrize(("precision", "max_kl"), [("int4", 0.01), ("int8", 0.005)])
def test_native_kernels_are_close_to_fp32_on_the_same_weights(default_model, precision, max_kl):
    """On English prose that has nothing to do with the model: what this project says of itself."""
    tokens = load_tokenizer(default_model).encode(README.read_text())[:512]
    assert compare(precision, [torch.tensor(tokens)])["kl"] <= max_kl


@pytest.mark.skipif(not native_library.is_available(), reason="the native kernels are not built")
def test_the_likeliest_token_is_the_logits_arg_max(default_model):
    tokens = load_tokenizer(default_model).encode(README.read_text())[:1024]
    assert overlooked([torch.tensor(tokens)]) == {"positions": 1024, "others": 0}
