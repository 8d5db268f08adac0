"""The cache: its allocator against brute force, its eviction against an explicit mask."""

import random

import pytest
import torch

from pruners.architecture import locate
from pruners.data.rows import make_batches
from pruners.kv import KV_SCORERS, Eviction, SnapKV, StreamingLLM, make_eviction
from pruners.kv.transformers_cache import forward_with_eviction
from pruners.variant import base_spec
from server.engine.backends.base import Segment
from server.engine.backends.native import library as native_library
from server.engine.backends.native.decoder import NativeDecoder
from server.engine.backends.native.packed_weights import pack_weights, round_weights
from server.engine.backends.pytorch.decoder import PyTorchDecoder
from server.engine.backends.pytorch.graph_decoder import GraphDecoder
from server.engine.cache.arena import Arena
from server.engine.cache.eviction import evict
from server.engine.cache.kv_cache import KVCache
from tests.support.driving import run, runner_of, submit, variants_of, weights_of
from tests.support.parameters import converted
from tests.support.tiny import tiny_model


def test_arena_never_hands_out_a_slot_twice_and_gets_everything_back():
    arena = Arena(4096)
    chance = random.Random(1)
    owner = [None] * 4096
    held = {}
    for number in range(3000):
        if held and chance.random() < 0.45:
            key = chance.choice(list(held))
            start, size = held.pop(key)
            arena.release(start, size)
            owner[start : start + size] = [None] * size
            continue
        if held and chance.random() < 0.3:
            key = chance.choice(list(held))
            start, size = held[key]
            fits = start + size + 64 <= 4096 and not any(owner[start + size : start + size + 64])
            assert arena.extend(start + size, 64) == fits
            if fits:
                owner[start + size : start + size + 64] = [key + 1] * 64
                held[key] = (start, size + 64)
            continue
        size = 64 * chance.randint(1, 12)
        start = arena.allocate(size)
        runs = "".join("x" if o else "." for o in owner)
        assert (start is not None) == ("." * size in runs)
        if start is not None:
            assert not any(owner[start : start + size])
            owner[start : start + size] = [number + 1] * size
            held[number] = (start, size)
        assert arena.used == sum(o is not None for o in owner)
    for start, size in held.values():
        arena.release(start, size)
    assert arena.used == 0
    assert arena.allocate(4096) == 0


def visible_by_hand(length: int, prompt: int, eviction: Eviction, chunk: int) -> torch.Tensor:
    """Which tokens each token may see under `streaming`, on a plain list.

    The prompt is evicted from after every `chunk` tokens.
    """
    mask = torch.zeros(length, length, dtype=torch.bool)
    cached: list[int] = []
    for at in range(prompt):
        cached.append(at)
        mask[at, cached] = True
        while (at + 1) % chunk == 0 and len(cached) > eviction.budget - eviction.interval:
            del cached[eviction.sinks]
    for at in range(prompt, length):
        if (at - prompt) % eviction.interval == 0:
            while len(cached) > eviction.budget - eviction.interval:
                del cached[eviction.sinks]
        cached.append(at)
        mask[at, cached] = True
    return mask


def drive(
    decoder, tokens: list[int], prompt: int, eviction: Eviction, crowded: bool = False
) -> torch.Tensor:
    """Logits of a sequence, its prompt in chunks, then token by token; checks what is held."""
    base = base_spec(decoder.weights.shape)
    cache = decoder.cache.open(eviction)
    cache.evict_while_reading = crowded
    rows, at = [], 0
    while at < len(tokens):
        count = min(16, prompt - at) if at < prompt else 1
        assert cache.reserve(count)
        segment = Segment(tokens[at : at + count], cache, base)
        rows.append(decoder.logits(decoder.forward([segment])))
        at += count
        evict(cache, decoder.weights, base, at >= prompt)
        if at >= prompt or crowded:
            assert cache.cached <= eviction.budget
    assert decoder.cache.arena.used == cache.size == -(-eviction.budget // 64) * 64
    cache.close()
    return torch.cat(rows)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [PyTorchDecoder, GraphDecoder])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3"])
@pytest.mark.parametrize(
    ("prompt", "crowded"), [(10, False), (40, False), (131, False), (131, True)]
)
def test_a_budget_equals_masking_the_dropped_tokens(family, prompt, crowded, kind):
    """True positions, tokens really gone: the same logits as an explicit mask in transformers."""
    eviction, length = Eviction(StreamingLLM(), 24, interval=3, sinks=4, recent=0), 190
    model = tiny_model(family, attn_implementation="eager")
    tokens = [(11 * i + 5) % 384 for i in range(length)]
    mask = visible_by_hand(length, prompt, eviction, chunk=16 if crowded else length)
    near = torch.arange(length)[:, None] - torch.arange(length)[None] < 24
    full = torch.zeros(1, 1, length, length).masked_fill(~mask, -1e9)
    slid = torch.zeros(1, 1, length, length).masked_fill(~(mask & near), -1e9)
    masks = {"full_attention": full, "sliding_attention": slid}
    given = masks if family == "gemma3" else slid if family == "mistral" else full
    expected = model(torch.tensor([tokens]), attention_mask=given, use_cache=False).logits[0]
    decoder = runner_of(weights_of(tiny_model(family)), kind=kind).decoder
    found = drive(decoder, tokens, prompt, eviction, crowded)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=3e-4)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
@pytest.mark.parametrize("scorer", KV_SCORERS)
def test_the_engine_evicts_what_the_builder_measured(family: str, scorer: str):
    """Every scorer, chosen layer by layer, against the builder's cache of `transformers`."""
    eviction = Eviction(KV_SCORERS[scorer](), 40, interval=8, sinks=2, recent=6)
    tokens, prompt = [(11 * i + 5) % 384 for i in range(118)], 70
    decoder = locate(tiny_model(family))
    row = torch.tensor(tokens)
    hidden = forward_with_eviction(decoder, next(iter(make_batches([row]))), prompt, eviction)
    # No reordering: equal scores would be ranked otherwise.
    engine = runner_of(weights_of(tiny_model(family), seed=None)).decoder
    found = drive(engine, tokens, prompt, eviction)
    torch.testing.assert_close(found, decoder.head(hidden)[0], rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.skipif(not native_library.is_available(), reason="the native kernels are not built")
@pytest.mark.parametrize("scorer", KV_SCORERS)
def test_the_native_engine_keeps_queries_and_positions_too(scorer: str):
    eviction = Eviction(KV_SCORERS[scorer](), 40, interval=8, sinks=2, recent=6)
    tokens = [(11 * i + 5) % 384 for i in range(120)]
    rounded = round_weights(converted(tiny_model("qwen3")), 8)
    packed = pack_weights(converted(tiny_model("qwen3")), 8)
    native = NativeDecoder(packed, KVCache(packed.shape, 512, packed.dtype, packed.device))
    expected = drive(runner_of(rounded).decoder, tokens, 70, eviction).log_softmax(-1)
    found = drive(native, tokens, 70, eviction).log_softmax(-1)
    kl = (expected.exp() * (expected - found)).sum(-1)
    # A near tie may fall the other way; most of the time the same tokens are kept.
    assert kl[:70].max() < 5e-3
    assert kl.median() < 2e-3


@torch.no_grad()
@pytest.mark.skipif(not native_library.is_available(), reason="the native kernels are not built")
def test_queries_are_noted_of_prompts_and_of_decoded_tokens():
    eviction = Eviction(SnapKV(), 400)
    rounded = round_weights(converted(tiny_model("qwen3")), 8)
    packed = pack_weights(converted(tiny_model("qwen3")), 8)
    native = NativeDecoder(packed, KVCache(packed.shape, 512, packed.dtype, packed.device))
    noted = []
    for decoder in (runner_of(rounded).decoder, native):
        base, cache = base_spec(packed.shape), decoder.cache.open(eviction)
        assert cache.reserve(310)
        for tokens in ([i % 384 for i in range(300)], *([token] for token in range(5, 15))):
            decoder.forward([Segment(tokens, cache, base)])
        noted.append(cache.queries)
    assert bool(noted[0].abs().sum(-1).all()), "the window is full"
    for place in (range(54), range(54, 256)):  # decoded tokens overwrote the first of the ring
        expected, found = (queries[:, list(place)] for queries in noted)
        assert (expected - found).norm() < 0.05 * expected.norm()


def test_a_budget_that_is_never_reached_changes_nothing():
    def write(budget):
        runner = runner_of(weights_of(tiny_model()))
        base = variants_of(runner.decoder.weights)["base"]
        _, recorder = submit(runner, range(50), base, 40, kv_budget=budget)
        run(runner)
        return recorder.tokens

    assert write(make_eviction(120)) == write(None)


def test_a_prompt_larger_than_the_free_cache_is_read_within_its_budget():
    runner = runner_of(weights_of(tiny_model()), capacity=256)
    base = variants_of(runner.decoder.weights)["base"]
    blocked, _ = submit(runner, range(300), base, 8, kv_budget=None)
    runner.step()
    assert blocked.cache is None, "without a budget there is no room for it"
    runner.scheduler.remove(blocked)
    _, recorder = submit(
        runner, [i % 384 for i in range(500)], base, 8, kv_budget=make_eviction(64)
    )
    run(runner)
    assert len(recorder.tokens) == 8
    assert runner.scheduler.cache.arena.used == 0


@pytest.mark.slow
def test_memory_stays_flat_while_a_budgeted_answer_grows():
    runner = runner_of(weights_of(tiny_model()), capacity=256)
    base = variants_of(runner.decoder.weights)["base"]
    submit(runner, range(20), base, 400, kv_budget=make_eviction(64))
    most = 0
    while runner.step():
        most = max(most, runner.scheduler.cache.arena.used)
    assert most <= 128
    assert runner.scheduler.cache.arena.used == 0
