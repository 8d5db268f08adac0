"""`auto` keeps what a GGUF file holds, matrix by matrix, and says what it costs."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from server.engine.backends.base import Segment
from server.engine.backends.native import library as native_library
from server.engine.loading.checkpoint.gguf_checkpoint import GgufCheckpoint
from server.engine.loading.load import load_model, load_transformers, open_decoder
from tests.support.gguf_tiny import PROMPT, write_gguf

pytestmark = pytest.mark.skipif(
    not native_library.is_available(), reason="the native kernels are not built"
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))


def only(kind: str, where: str = "blk") -> Callable[[str], str | None]:
    return lambda name: kind if where in name else None


def mixed(usual: str, other: str, where: str) -> Callable[[str], str | None]:
    return lambda name: None if "blk" not in name else other if where in name else usual


def bits_of(model) -> list[dict[str, int]]:
    return [
        {kind: getattr(layer, kind).bits for kind in ("qkv", "o", "gate_up", "down")}
        for layer in model.weights.layers
    ]


def divergence(model, path: Path) -> float:
    """KL of what is served from what `transformers` computes with the dequantised values."""
    decoder = open_decoder(model, 256)
    cache = decoder.cache.open()
    assert cache.reserve(len(PROMPT))
    step = [Segment(PROMPT, cache, model.variants["base"])]
    found = decoder.logits(decoder.forward(step)).log_softmax(-1)
    wanted = load_transformers(path, torch.float32)(torch.tensor([PROMPT])).logits[0]
    wanted = wanted.log_softmax(-1)
    return float((wanted.exp() * (wanted - found)).sum(-1).mean())


ALL_4 = {"qkv": 4, "o": 4, "gate_up": 4, "down": 4}
ALL_8 = {"qkv": 8, "o": 8, "gate_up": 8, "down": 8}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("types", "precision", "bits"),
    [
        (only("Q4_0"), "int4", ALL_4),
        (only("Q4_1"), "int4", ALL_4),
        (only("Q8_0"), "int8", ALL_8),
        (only("Q5_0"), "int8", ALL_8),
        (only("Q5_1"), "int8", ALL_8),
        (only("Q4_K"), "int4", ALL_4),
        (only("IQ4_NL"), "int8", ALL_8),
        (only("IQ4_XS"), "int8", ALL_8),
        (only("Q2_K"), "int8", ALL_8),
        (only("Q3_K"), "int8", ALL_8),
        (only("Q5_K"), "int8", ALL_8),
        (only("Q6_K"), "int8", ALL_8),
        (mixed("Q4_0", "Q8_0", "ffn_gate"), "int4", {**ALL_4, "gate_up": 8}),
        (mixed("Q4_0", "Q6_K", "ffn_down"), "int4", {**ALL_4, "down": 8}),
        (mixed("Q8_0", "Q4_0", "attn_output"), "int4", {**ALL_8, "o": 4}),
        (mixed("Q4_1", "Q5_1", "attn_v"), "int4", {**ALL_4, "qkv": 8}),
        (mixed("Q4_0", "F16", "blk.1.ffn_down"), "int4", None),
    ],
)
def test_each_matrix_has_the_bits_that_hold_it(
    tmp_path: Path, caplog, types: Callable, precision: str, bits: dict[str, int] | None
):
    path = write_gguf(tmp_path / "tiny.gguf", types=types)
    with caplog.at_level(logging.INFO, logger="server.engine.backends.native.packed_weights"):
        model = load_model(path, "tiny")
    assert model.weights.precision == precision
    if bits is None:
        assert bits_of(model) == [ALL_4, {**ALL_4, "down": 8}]
    else:
        assert bits_of(model) == [bits, bits]
    if bits == ALL_4:
        # Q4_K's scales are rounded to fp16; all else is exact.
        assert all(model.weights.errors[kind] < 5e-4 for kind in ("qkv", "o", "gate and up"))
    assert max(model.weights.errors.values()) < 0.02
    said = [line for line in caplog.messages if line.startswith("matrices: ")]
    assert len(said) == 1
    assert "MB resident" in said[0]
    assert divergence(model, path) < 0.01  # .005 by rounded activations; .7 by 4 bits


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0"])
def test_codes_of_the_file_are_the_bits_that_rounding_its_values_gives(
    tmp_path: Path, monkeypatch, kind: str
):
    path = write_gguf(tmp_path / "tiny.gguf", types=only(kind, "weight"))
    moved = load_model(path, "tiny").weights.tensors()
    monkeypatch.setattr(GgufCheckpoint, "codes", lambda *rest: None)
    rounded = load_model(path, "tiny").weights.tensors()
    assert all(torch.equal(one, other) for one, other in zip(moved, rounded, strict=True))


def test_what_is_not_quantised_is_not_rounded(tmp_path: Path):
    path = write_gguf(tmp_path / "tiny.gguf", types=mixed("F16", "Q4_0", "attn_q"))
    assert load_model(path, "tiny").weights.precision in ("float32", "bfloat16")


def test_4_bits_that_are_asked_for_are_given(tmp_path: Path):
    path = write_gguf(tmp_path / "tiny.gguf", types=only("Q8_0"))
    assert bits_of(load_model(path, "tiny", "int4")) == [ALL_4, ALL_4]
