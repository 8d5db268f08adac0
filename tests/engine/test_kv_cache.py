"""The cache: its allocator against brute force, its eviction against an explicit mask."""

import random

import pytest
import torch

from server.engine.decoder import Segment
from server.engine.kv_cache import Arena, KVBudget
from tests.engine.driving import run, runner_of, submit, variants_of, weights_of
from tests.tiny import tiny_model


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


def visible_by_hand(length, prompt, chunk, tokens, sinks):
    """Which tokens each token may see, by simulating the policy on a plain list."""
    mask = torch.zeros(length, length, dtype=torch.bool)
    cached, at = [], 0
    while at < length:
        count = min(chunk, prompt - at) if at < prompt else 1
        cached += range(at, at + count)
        limit = tokens + chunk if at < prompt else tokens
        while len(cached) > limit:
            del cached[sinks]
        for query in range(at, at + count):
            for key in cached:
                mask[query, key] = key <= query
        at += count
        if at == prompt:
            while len(cached) > tokens:
                del cached[sinks]
    return mask


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3"])
@pytest.mark.parametrize("prompt", [10, 40, 100, 131])
def test_a_budget_equals_masking_the_dropped_tokens(family, prompt):
    """True positions, tokens really gone: the same logits as an explicit mask in transformers."""
    chunk, budget, length = 16, KVBudget(24, 4), 190
    model = tiny_model(family, attn_implementation="eager")
    tokens = [(11 * i + 5) % 384 for i in range(length)]
    mask = visible_by_hand(length, prompt, chunk, budget.tokens, budget.sinks)
    near = torch.arange(length)[:, None] - torch.arange(length)[None] < 24
    full = torch.zeros(1, 1, length, length).masked_fill(~mask, -1e9)
    slid = torch.zeros(1, 1, length, length).masked_fill(~(mask & near), -1e9)
    masks = {"full_attention": full, "sliding_attention": slid}
    given = masks if family == "gemma3" else slid if family == "mistral" else full
    expected = model(torch.tensor([tokens]), attention_mask=given, use_cache=False).logits[0]

    runner = runner_of(weights_of(tiny_model(family)), step_tokens=chunk)
    base = variants_of(runner.decoder.weights)["base"]
    cache = runner.scheduler.cache.open(chunk, budget)
    rows, at = [], 0
    while at < length:
        count = min(chunk, prompt - at) if at < prompt else 1
        assert cache.reserve(count)
        segment = Segment(tokens[at : at + count], cache, base)
        rows.append(runner.decoder.logits(runner.decoder.forward([segment])))
        at += count
        if at == prompt:
            cache.finish_prompt()
    assert cache.held == 24
    assert cache.size == 64, "the rest of the region was given back"
    torch.testing.assert_close(torch.cat(rows), expected, rtol=1e-3, atol=3e-4)


def test_a_budget_that_is_never_reached_changes_nothing():
    def write(budget):
        runner = runner_of(weights_of(tiny_model()))
        base = variants_of(runner.decoder.weights)["base"]
        _, recorder = submit(runner, range(50), base, 40, kv_budget=budget)
        run(runner)
        return recorder.tokens

    assert write(KVBudget(90)) == write(None)


def test_memory_stays_flat_while_a_budgeted_answer_grows():
    runner = runner_of(weights_of(tiny_model()), capacity=256)
    base = variants_of(runner.decoder.weights)["base"]
    submit(runner, range(20), base, 400, kv_budget=KVBudget(64))
    most = 0
    while runner.step():
        most = max(most, runner.scheduler.cache.arena.used)
    assert most <= 128
    assert runner.scheduler.cache.arena.used == 0


def test_a_budget_must_leave_room_beside_its_sinks():
    with pytest.raises(ValueError, match="cannot keep 4 sinks"):
        KVBudget(4, 4)
