"""Steps of the native decoder against PyTorch's on the same rounded weights."""

import itertools

import pytest
import torch

from pruners.variant import base_spec
from server.engine.backends.base import Segment
from server.engine.backends.native import batch as native_batch
from server.engine.backends.native.decoder import NativeDecoder, add_head_screen
from server.engine.backends.native.library import NativeEngine, is_available
from server.engine.backends.native.packed_weights import pack_weights
from server.engine.cache.kv_cache import KVCache
from tests.support.native import (
    CPU,
    PROMPTS,
    instruction_sets,
    kl,
    prompt_and_token_logits,
    reference_and_native,
)
from tests.support.parameters import converted
from tests.support.tiny import FAMILIES, VOCAB, tiny_model

pytestmark = pytest.mark.skipif(not is_available(), reason="the native kernels are not built")
each_isa = pytest.mark.parametrize("isa", instruction_sets() or [None])
each_bits = pytest.mark.parametrize("bits", [4, 8])


@each_isa
@each_bits
@pytest.mark.parametrize("token", [-1, -(2**31), VOCAB, 2**31 - 1])
def test_a_token_outside_the_vocabulary_reads_nothing(isa, bits, token, monkeypatch):
    monkeypatch.setattr(native_batch, "check_rows", lambda *_: None)
    packed = pack_weights(converted(tiny_model()), bits)
    decoder = NativeDecoder(packed, KVCache(packed.shape, 256, torch.bfloat16, CPU))
    decoder._engine = NativeEngine(2, isa)
    base = base_spec(packed.shape)
    segments = []
    for tokens in ([5, token], [5, 6]):
        cache = decoder.cache.open()
        assert cache.reserve(2)
        segments.append(Segment(tokens, cache, base))
    hidden = decoder.forward(segments)
    assert hidden.isfinite().all(1).tolist()[1:] == [False, True, True]
    assert [token >= 0 for token in decoder.argmax(hidden)[1:]] == [False, True, True]


@pytest.mark.parametrize("count", [1, 4, 5, 150])
def test_argmax_of_any_number_of_rows(count):
    _, decoder, specs = reference_and_native("llama", 8)
    add_head_screen(decoder.weights)
    decoder = NativeDecoder(decoder.weights, decoder.cache)
    prompt = PROMPTS[3][:count]
    cache = decoder.cache.open()
    assert cache.reserve(count)
    hidden = decoder.forward([Segment(prompt, cache, specs["base"])])
    assert decoder.argmax(hidden) == decoder.logits(hidden).argmax(-1).tolist()


@pytest.mark.parametrize("family", FAMILIES)
@each_bits
def test_a_step_is_close_to_pytorch_for_all_variants_at_once(family, bits):
    reference, native, specs = reference_and_native(family, bits)
    for order in (specs, dict(reversed(specs.items()))):
        expected = prompt_and_token_logits(reference, order)
        assert kl(expected, prompt_and_token_logits(native, order)) < 1e-3


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_an_int8_cache_is_close_too(family):
    reference, native, specs = reference_and_native(family, 8, torch.int8)
    expected = prompt_and_token_logits(reference, specs)
    assert kl(expected, prompt_and_token_logits(native, specs)) < 2e-3


@pytest.mark.parametrize("head_dim", [8, 24, 32, 64, 96])
def test_heads_of_other_sizes_are_close_too(head_dim):
    reference, native, specs = reference_and_native("llama", 8, head_dim=head_dim)
    expected = prompt_and_token_logits(reference, specs)
    for isa in instruction_sets():
        native._engine = NativeEngine(2, isa)
        assert kl(expected, prompt_and_token_logits(native, specs)) < 1e-3, isa


@pytest.mark.parametrize(
    ("family", "head_dim"), [("llama", 16), ("llama", 64), ("gemma3", 16), ("granite", 16)]
)
def test_a_row_is_the_same_bit_for_bit_whatever_it_is_batched_with(family, head_dim):
    _, native, specs = reference_and_native(family, 4, head_dim=head_dim)
    mixed = prompt_and_token_logits(native, specs)
    names, alone = list(specs), []
    after = []
    for index, prompt in enumerate(PROMPTS):
        cache = native.cache.open()
        assert cache.reserve(len(prompt) + 2)
        spec = specs[names[index % len(names)]]
        rows = [
            native.logits(native.forward([Segment(prompt[at : at + 48], cache, spec)]))
            for at in range(0, len(prompt), 48)  # a prompt in chunks is the same, too
        ]
        alone.append(torch.cat(rows))
        after.append(native.logits(native.forward([Segment([9], cache, spec)])))
        cache.close()
    assert torch.equal(mixed, torch.cat(alone + after))


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("outputs", [0, 1, 3])
def test_rows_without_outputs_change_nothing(family, outputs):
    _, native, specs = reference_and_native(family, 4)
    results = []
    for wanted in (None, outputs):
        segments = []
        for prompt, spec in zip([*PROMPTS, [7]], itertools.cycle(specs.values()), strict=False):
            cache = native.cache.open()
            assert cache.reserve(len(prompt) + 1)
            segments.append(Segment(prompt, cache, spec, wanted and min(wanted, len(prompt))))
        segments[0].outputs = None
        hidden = native.forward(segments).split([len(s.tokens) for s in segments])
        rows = [part[max(0, len(part) - outputs) :] for part in hidden]
        rows.append(native.forward([Segment([9], s.cache, s.variant) for s in segments]))
        results.append(torch.cat([hidden[0], *rows]))
        for segment in segments:
            segment.cache.close()
    assert torch.equal(*results)


def test_instruction_sets_agree():
    logits = {}
    for isa in instruction_sets():
        _, native, specs = reference_and_native("qwen3", 4)
        native._engine = NativeEngine(2, isa)
        logits[isa] = prompt_and_token_logits(native, specs)
    for isa, other in logits.items():
        # With queries in bf16, some inputs of `o` are rounded to the next step.
        assert kl(logits["portable"], other) < (1e-3 if isa == "avx512bf16" else 1e-4)
