"""Which precision a model is served in, with the native kernels and without them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pruners.reading.reader import token_kinds
from pruners.support.fingerprint import fingerprint
from server.engine.backends.base import Segment
from server.engine.backends.native import library as native_library
from server.engine.backends.native.decoder import NativeDecoder
from server.engine.backends.native.packing import quantise
from server.engine.backends.pytorch.decoder import PyTorchDecoder
from server.engine.config import EngineConfig, EngineConfigError
from server.engine.loading import load as loading
from server.engine.loading.load import load_model, load_transformers, open_decoder
from server.engine.loading.memory_estimate import MemoryEstimateError
from server.engine.runner_factory import build_runner
from tests.support.artefacts import artefact_with_readers
from tests.support.native import kl
from tests.support.reading import LAST, logits_in_chunks, marks_of, reader_of, transformers_logits
from tests.support.tiny import save_tiny

NATIVE = native_library.is_available()
needs_native = pytest.mark.skipif(not NATIVE, reason="the native kernels are not built")
PROMPT = list(range(20, 60))


def quantised_folder(folder: Path, bits: int) -> Path:
    """A tiny model whose matrices lie on the grid of 4 or 8 bits, like one out of a GGUF file."""
    save_tiny(folder)
    model = load_transformers(folder, torch.float32)
    for name, tensor in model.named_parameters():
        if tensor.dim() == 2 and "embed" not in name:
            tensor.copy_(quantise(tensor, bits).values())
    model.save_pretrained(folder)
    return folder


def logits(model) -> torch.Tensor:
    decoder = open_decoder(model, 256)
    cache = decoder.cache.open()
    assert cache.reserve(len(PROMPT))
    spec = model.variants["base"]
    return decoder.logits(decoder.forward([Segment(PROMPT, cache, spec)])).log_softmax(-1)


@needs_native
@pytest.mark.parametrize("bits", [4, 8])
def test_auto_keeps_what_the_source_holds(tmp_path: Path, bits: int):
    model = load_model(quantised_folder(tmp_path / "tiny", bits), "tiny")
    assert model.weights.precision == f"int{bits}"
    assert isinstance(open_decoder(model, 64), NativeDecoder)
    kinds = ("qkv", "o", "gate and up", "down")
    assert all(model.weights.errors[kind] < 1e-6 for kind in kinds)


def test_auto_rounds_nothing_else(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(loading, "multiplies_bf16", lambda: False)
    folder = save_tiny(tmp_path / "tiny")
    model = load_model(folder, "tiny")
    assert model.weights.precision == "float32"
    expected = load_transformers(folder, torch.float32)(torch.tensor([PROMPT])).logits[0]
    torch.testing.assert_close(logits(model), expected.log_softmax(-1), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_without_the_kernels_pytorch_computes_with_the_same_values(
    tmp_path: Path, monkeypatch, precision: str
):
    folder = save_tiny(tmp_path / "tiny")
    native = logits(load_model(folder, "tiny", precision)) if NATIVE else None
    monkeypatch.setattr(native_library, "load_library", lambda: None)
    model = load_model(folder, "tiny", precision)
    assert isinstance(open_decoder(model, 64), PyTorchDecoder)
    found = logits(model)
    if native is not None:
        assert float((found.exp() * (found - native)).sum(-1).mean()) < 1e-3


@pytest.mark.parametrize(
    ("tokens", "free_bytes", "said"),
    [
        (10**12, 8e9, r"1,000,000,000,000 tokens takes .* GB, 8\.0 GB are free"),
        (10**14, None, "cannot be allocated"),
        (10**30, None, "cannot be allocated"),
    ],
)
def test_a_cache_that_finds_no_memory_is_one_line(
    tiny_folder: Path, tokens: int, free_bytes: float | None, said: str
):
    model = load_model(tiny_folder, "tiny", "fp32")
    with pytest.raises(EngineConfigError, match=said):
        build_runner(model, EngineConfig(kv_tokens=tokens), free_bytes)


@pytest.mark.parametrize("precision", ["fp32", pytest.param("int8", marks=needs_native)])
def test_readers_come_from_the_artefact_in_the_order_of_its_groups(tmp_path: Path, precision: str):
    folder = save_tiny(tmp_path / "tiny")
    source = load_transformers(folder, torch.float32)
    artefact = replace(artefact_with_readers(), fingerprint=fingerprint(source))
    model = load_model(folder, "tiny", precision, artefact)
    assert model.readers == artefact.readers
    assert model.maps.keys() == {1, 2}
    assert model.artefact is not None
    assert not model.artefact.maps
    size = sum(tensor.nbytes for maps in model.maps.values() for tensor in maps.tensors())
    numbers = sum(maps.weight.numel() for maps in artefact.maps.values())
    assert 0.5 < size / numbers < 0.75 if precision == "int8" else size == 4 * numbers
    expected = token_kinds(model.tokenizer, model.weights.shape.vocab)
    assert torch.equal(model.token_kinds, expected)
    reader, names = reader_of(1)
    wanted = transformers_logits(source, artefact.maps[1], reader, PROMPT, len(PROMPT))
    decoder, marks = open_decoder(model, 256), marks_of(reader, names, PROMPT, 0)
    found = logits_in_chunks(decoder, model.variants["base"], PROMPT, marks, 1, [17])[-LAST:]
    assert kl(wanted, found) < (1e-2 if precision == "int8" else 1e-6)


def test_token_kinds_are_for_readers(tmp_path: Path):
    folder = save_tiny(tmp_path / "tiny")
    source = load_transformers(folder, torch.float32)
    artefact = artefact_with_readers()
    artefact = replace(artefact, fingerprint=fingerprint(source), readers={}, maps={})
    assert load_model(folder, "tiny", "fp32", artefact).token_kinds is None


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_a_model_that_does_not_fit_is_refused_before_its_weights_are_read(
    tmp_path: Path, monkeypatch, precision: str
):
    folder = save_tiny(tmp_path / "tiny")
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("server.engine.loading.memory_check.free_memory", lambda device: 1e6)
    monkeypatch.setattr("server.engine.loading.opened_model.OpenedModel.base", None)
    with pytest.raises(MemoryEstimateError, match=r"0\.0 GB are free: 0\.[45] GB too little"):
        load_model(folder, "tiny", precision)


@needs_native
@pytest.mark.parametrize(
    ("free_bytes", "config", "slots", "dtype"),
    [
        (None, {}, 16 * 512, torch.bfloat16),
        (8e9, {}, 16 * 512, torch.bfloat16),
        (2e6, {}, 2e6 / 2, torch.int8),  # bf16 would hold too few
        (2e6, {"kv_cache": "weights"}, 2e6 / 2, torch.bfloat16),
        (2e6, {"kv_tokens": 640}, 640, torch.bfloat16),
        (1e4, {}, 1024, torch.int8),  # the smallest, which must still fit
    ],
)
def test_the_cache_is_sized_by_what_is_free(
    tiny_folder: Path, free_bytes: float | None, config: dict, slots: float, dtype: torch.dtype
):
    model = load_model(tiny_folder, "tiny", "int8", context=512)
    if free_bytes == 1e4:
        with pytest.raises(EngineConfigError, match="are free; set kv_tokens lower"):
            build_runner(model, EngineConfig(**config), free_bytes)
        return
    cache = build_runner(model, EngineConfig(**config), free_bytes).decoder.cache
    assert cache.keys.dtype == dtype
    expected = slots / cache.slot_bytes if slots == 2e6 / 2 else slots
    assert cache.arena.capacity == int(expected) // 64 * 64
    assert cache.arena.held == 0
