"""Every family out of a folder: both backends against `transformers`, and what is refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import MixtralConfig, PreTrainedModel

from pruners.architecture import UnsupportedModelError
from server.engine.backends.base import Segment
from server.engine.backends.native import library as native_library
from server.engine.loading.load import LoadedModel, load_model, load_transformers, open_decoder
from tests.support.gguf_tiny import write_gguf
from tests.support.tiny import EVERY_FAMILY, VOCAB, save_tiny

PROMPTS = [[(7 * i + at) % VOCAB for i in range(length)] for at, length in enumerate((90, 33))]


def logits_of(model: LoadedModel) -> torch.Tensor:
    """Return the logits of both prompts in one batch, in chunks of 40 tokens, and a token after."""
    decoder = open_decoder(model, 256)
    caches = [decoder.cache.open() for _ in PROMPTS]
    rows: list[list[torch.Tensor]] = [[] for _ in PROMPTS]
    for at in range(0, len(PROMPTS[0]), 40):
        segments = []
        for prompt, cache in zip(PROMPTS, caches, strict=True):
            if at < len(prompt):
                chunk = prompt[at : at + 40]
                assert cache.reserve(len(chunk) + 1)
                segments.append(Segment(chunk, cache, model.variants["base"]))
        hidden = decoder.forward(segments).split([len(one.tokens) for one in segments])
        for found, part in zip(rows, hidden, strict=False):
            found.append(decoder.logits(part))
    after = [Segment([9], cache, model.variants["base"]) for cache in caches]
    for found, last in zip(rows, decoder.logits(decoder.forward(after)), strict=True):
        found.append(last[None])
    return torch.cat([part for found in rows for part in found])


@torch.inference_mode()
def expected_of(model: PreTrainedModel) -> torch.Tensor:
    return torch.cat(
        [model(torch.tensor([[*prompt, 9]]), use_cache=False).logits[0] for prompt in PROMPTS]
    )


@pytest.mark.slow
@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_a_folder_is_served_as_transformers_computes_it(tmp_path: Path, family: str):
    folder = save_tiny(tmp_path / family, family)
    expected = expected_of(load_transformers(folder, torch.float32))
    found = logits_of(load_model(folder, family, "fp32"))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=5e-4)
    if native_library.is_available():
        likely = expected.log_softmax(-1)
        for precision, most in (("int8", 0.005), ("int4", 0.5)):
            other = logits_of(load_model(folder, family, precision)).log_softmax(-1)
            assert float((likely.exp() * (likely - other)).sum(-1).mean()) < most, precision


@pytest.mark.slow
@pytest.mark.skipif(not native_library.is_available(), reason="the native kernels are not built")
@pytest.mark.parametrize("architecture", ["phi3", "granite", "olmo2", "smollm3"])
def test_a_gguf_file_is_served_in_its_own_codes(tmp_path: Path, architecture: str):
    kinds = {"attn": "Q4_0", "ffn": "Q4_0", "token": "Q8_0"}
    path = write_gguf(
        tmp_path / "tiny.gguf",
        architecture,
        types=lambda name: next((kind for part, kind in kinds.items() if part in name), None),
    )
    expected = expected_of(load_transformers(path, torch.float32)).log_softmax(-1)
    model = load_model(path, architecture)
    assert model.weights.precision == "int4"
    assert all(model.weights.errors[kind] < 1e-6 for kind in ("qkv", "o", "gate and up", "down"))
    found = logits_of(model).log_softmax(-1)
    assert float((expected.exp() * (expected - found)).sum(-1).mean()) < 0.01


@pytest.mark.slow
def test_bf16_follows_transformers_in_every_new_rounding(tmp_path: Path):
    for family in ("granite", "olmo2", "phi3"):
        folder = save_tiny(tmp_path / family, family)
        expected = expected_of(load_transformers(folder, torch.bfloat16)).float()
        found = logits_of(load_model(folder, family, "bf16"))
        assert (found - expected).abs().max() < 0.06 * expected.abs().max(), family
        assert (found.argmax(-1) == expected.argmax(-1)).float().mean() > 0.9, family


def test_longrope_is_exact_up_to_the_context_that_it_is_limited_to(tmp_path: Path, caplog):
    folder = save_tiny(tmp_path / "long", "phi3-longrope")
    model = load_model(folder, "long", "fp32")
    assert model.weights.context == 320
    assert "context limited to 320 of 512 tokens: longer texts need other rotary" in caplog.text
    prompt = [(7 * i) % VOCAB for i in range(320)]
    decoder = open_decoder(model, 512)
    cache = decoder.cache.open()
    assert cache.reserve(len(prompt))
    found = decoder.logits(decoder.forward([Segment(prompt, cache, model.variants["base"])]))
    with torch.inference_mode():
        reference = load_transformers(folder, torch.float32)
        expected = reference(torch.tensor([prompt]), use_cache=False).logits[0]
        longer = reference(torch.tensor([[*prompt, 5]]), use_cache=False).logits[0, :-1]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=5e-4)
    assert not torch.allclose(longer, expected, atol=1e-2), "other factors for all positions"
    caplog.clear()
    assert load_model(folder, "long", "fp32", context=256).weights.context == 256
    assert "limited" not in caplog.text


def test_longrope_with_the_same_factors_for_all_lengths_limits_nothing(tmp_path: Path, caplog):
    folder = save_tiny(tmp_path / "long", "phi3-longrope")
    config = load_transformers(folder, torch.float32).config
    config.rope_parameters["long_factor"] = config.rope_parameters["short_factor"]
    config.save_pretrained(folder)
    assert load_model(folder, "long", "fp32").weights.context == 512
    assert "limited" not in caplog.text


def test_a_mixture_of_experts_is_refused_by_its_name(tmp_path: Path):
    MixtralConfig(num_hidden_layers=1).save_pretrained(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedModelError) as refusal:
        load_transformers(tmp_path, torch.float32)
    assert str(refusal.value) == "mixture-of-experts is not supported: mixtral"
