"""Prompts that are read shallowly by the native decoder: against PyTorch's, and bit for bit."""

import time

import pytest
import torch

from pruners.kv import make_eviction
from pruners.reading.maps import KVMaps, features
from server.engine.backends.base import Segment
from server.engine.backends.native.decoder import NativeDecoder
from server.engine.backends.native.library import NativeEngine, is_available
from server.engine.backends.native.packed_maps import pack_maps
from server.engine.cache.sequence_cache import SequenceCache
from tests.support.native import instruction_sets, kl, reference_and_native
from tests.support.reading import (
    chunk,
    logits_in_chunks,
    marks_of,
    random_tokens,
    reader_of,
    served_order,
    tiny_maps,
)
from tests.support.tiny import BATCHED_FAMILIES, tiny_model

pytestmark = pytest.mark.skipif(not is_available(), reason="the native kernels are not built")

PROMPT, WRITTEN = 170, 5  # more than a chunk of attention
TOKENS = random_tokens(PROMPT + WRITTEN)
IN_ONE = [PROMPT, *range(PROMPT + 1, PROMPT + WRITTEN)]  # then token by token
IN_CHUNKS = [1, 2, 33, 34, 140, PROMPT - 2, *IN_ONE]


def marked(depth: int, tokens: list[int], written: int = 0, numbers: bool = True) -> list[bool]:
    reader, found = reader_of(depth, numbers)
    return marks_of(reader, found, tokens[: len(tokens) - written], written)


@pytest.mark.parametrize("cache_dtype", [torch.bfloat16, torch.int8])
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("family", [*BATCHED_FAMILIES, "phi3"])
def test_a_prompt_is_read_as_by_pytorch(family, depth, cache_dtype):
    reference, native, specs = reference_and_native(family, 8, cache_dtype)
    marks = marked(depth, TOKENS, WRITTEN)
    for spec in specs.values():
        expected = logits_in_chunks(reference, spec, TOKENS, marks, depth, IN_ONE)
        found = logits_in_chunks(native, spec, TOKENS, marks, depth, IN_ONE)
        assert kl(expected, found) < (1e-3 if cache_dtype == torch.bfloat16 else 2e-3)
        in_full = logits_in_chunks(native, spec, TOKENS, [False] * len(TOKENS), depth, IN_ONE)
        attends_above = any(spec.kv_groups[depth:])
        assert (kl(expected, in_full[-len(expected) :]) > 1e-2) == attends_above


@pytest.mark.parametrize("head_dim", [8, 24, 64])
def test_heads_of_other_sizes_are_close_too(head_dim):
    reference, native, specs = reference_and_native("qwen3", 8, head_dim=head_dim)
    marks = marked(1, TOKENS, WRITTEN)
    expected = logits_in_chunks(reference, specs["base"], TOKENS, marks, 1, IN_ONE)
    for isa in instruction_sets():
        native._engine = NativeEngine(2, isa)
        found = logits_in_chunks(native, specs["base"], TOKENS, marks, 1, IN_ONE)
        assert kl(expected, found) < 1e-3, isa


@pytest.mark.parametrize(("hidden", "head_dim"), [(64, 16), (96, 8), (80, 24), (32, 16)])
def test_shallow_keys_and_values_are_those_of_the_stored_maps(hidden, head_dim):
    """Of the hidden states of `transformers`; the key of the first token is not rotated."""
    sizes = {"hidden_size": hidden, "head_dim": head_dim}
    _, native, specs = reference_and_native("llama", 8, **sizes)
    shape, depth = native.weights.shape, 1
    cache = native.cache.open()
    assert cache.reserve(40)
    marks = [True] * 39 + [False]
    native.forward([Segment(TOKENS[:40], cache, specs["base"], 1, marks, depth)])
    keys, values = cache.read()
    with torch.no_grad():
        model = tiny_model("llama", **sizes).model
        states = model(torch.tensor([TOKENS[:40]]), output_hidden_states=True).hidden_states
    x, order = features(states[depth][0, :39]), served_order(shape)
    for layer in range(depth, shape.layers):
        wanted = [
            part.unflatten(-1, (shape.kv_groups, -1)).transpose(0, 1)[order[layer]]
            for part in tiny_maps(shape)[depth].keys_values(layer, x)
        ]
        for found, expected in zip(
            (keys[layer, :, :1], values[layer, :, :39]), (wanted[0][:, :1], wanted[1]), strict=True
        ):
            assert (found - expected).norm() < 0.05 * expected.norm()
    cache.close()


def test_maps_are_served_in_the_codes_that_a_file_has():
    """Rounding with regard to the features leaves groups whose range a second one would lose."""
    _, native, _ = reference_and_native("llama", 8)
    shape = native.weights.shape
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(tiny_maps(shape)[1].weight.shape, generator=generator)
    x = torch.randn(200, 3, generator=generator) @ torch.randn(
        3, shape.hidden + 1, generator=generator
    )
    maps = KVMaps(1, weight).quantised(x.T @ x)
    packed = pack_maps(shape, {1: maps}, None)[1].matrix
    assert packed.bits == 4
    assert maps.codes is not None
    highest = maps.codes.codes.unflatten(-1, (-1, 32)).amax(-1)
    assert (highest < 15).any(), "a group that its values alone would give another scale"
    stored = maps.codes.scales.view(torch.int16).flatten().sort().values
    blocks = packed.data.unflatten(0, (-1, 256 + 32 + 32))
    served = blocks[:, 256:288].contiguous().view(torch.int16).flatten().sort().values
    assert torch.equal(served, stored)


def mixed_step(
    native: NativeDecoder, jobs: list[tuple[Segment, list[bool], int]]
) -> list[torch.Tensor]:
    """Return the last rows of jobs that share one step."""
    parts = [chunk(segment, marks, depth, 0, len(marks))[0] for segment, marks, depth in jobs]
    hidden = native.forward(parts).split([len(marks) for _, marks, _ in jobs])
    return [
        native.logits(rows[len(rows) - (part.outputs or 0) :])
        for part, rows in zip(parts, hidden, strict=True)
    ]


def opened(native: NativeDecoder, read: list[int], spec, count: int) -> SequenceCache:
    """Return a cache in which a prompt was read in full, with room for more."""
    cache = native.cache.open()
    assert cache.reserve(len(read) + count)
    if read:
        native.forward([Segment(read, cache, spec)])
    return cache


@pytest.mark.parametrize(
    ("family", "head_dim"), [("llama", 16), ("gemma3", 16), ("qwen3", 64), ("olmo2", 16)]
)
def test_a_row_is_the_same_bit_for_bit_however_it_is_read(family, head_dim):
    """In chunks, beside shallow and full rows of all variants, on any number of threads."""
    _, native, specs = reference_and_native(family, 4, head_dim=head_dim)
    kinds = [(name, depth) for depth in (2, 0, 1) for name in specs]
    expected = []
    for index, (name, depth) in enumerate(kinds):
        tokens = random_tokens(1 if depth == 0 and index % 2 else 30 + 4 * index, index)
        marks = marked(depth, tokens, numbers=index % 3 > 0) if depth else [False] * len(tokens)
        cuts = [at for at in (1, 7, 29) if at < len(tokens)]
        expected.append(
            (tokens, marks, logits_in_chunks(native, specs[name], tokens, marks, depth, cuts))
        )
    for threads in (1, 2):
        native._engine = NativeEngine(threads)
        jobs = []
        for (tokens, marks, _), (name, depth) in zip(expected, kinds, strict=True):
            cache = opened(native, [], specs[name], len(tokens))
            jobs.append((Segment(tokens, cache, specs[name]), marks, depth))
        for found, (*_, rows) in zip(mixed_step(native, jobs), expected, strict=True):
            assert torch.equal(found, rows[len(rows) - len(found) :])
        for segment, *_ in jobs:
            segment.cache.close()


@pytest.mark.parametrize("threads", [1, 2])
def test_a_cache_is_the_same_bit_for_bit_however_a_prompt_is_cut(threads):
    """With all that was written after it, and the queries that an eviction looks at."""
    _, native, specs = reference_and_native("qwen3", 4)
    native._engine = NativeEngine(threads)
    tokens = random_tokens(420)
    marks = marked(1, tokens, 20)
    states = []
    for cuts in ([400], [1, 3, 64, 65, 300, 399, *range(400, 420)], [*range(20, 420, 20)]):
        cache = native.cache.open(make_eviction(512, "snap"))
        assert cache.reserve(420)
        whole = Segment(tokens, cache, specs["narrow"])
        for begin, end in zip([0, *cuts], [*cuts, 420], strict=True):
            native.forward([chunk(whole, marks, 1, begin, end)[0]])
        keys, values = cache.read()
        groups = specs["narrow"].kv_groups
        kept = [t[layer, :n].clone() for t in (keys, values) for layer, n in enumerate(groups)]
        assert cache.queries is not None
        states.append([*kept, cache.queries])
        cache.close()
    for other in states[1:]:
        assert all(torch.equal(a, b) for a, b in zip(states[0], other, strict=True))
    recent = [position % 256 for position in range(420 - 256, 420)]
    unset = (states[0][-1][1, recent] == 0).all(-1)
    assert unset.tolist() == marks[420 - 256 :]


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_the_layers_above_do_not_touch_shallow_rows(family):
    """Their weights are no numbers: what they compute spoils its row."""
    _, native, specs = reference_and_native(family, 8)
    for layer in native.weights.layers[1:]:
        for norm in layer.norms.values():
            norm.fill_(torch.nan)
    for tensor in native.cache.tensors():
        tensor.fill_(torch.nan)
    marks = marked(1, TOKENS)
    for name in ("base", "narrow"):
        cache = native.cache.open()
        assert cache.reserve(PROMPT)
        part, _ = chunk(Segment(TOKENS, cache, specs[name]), marks, 1, 0, PROMPT)
        hidden = native.forward([part])
        assert hidden.isfinite().all(1).tolist() == marks[:PROMPT]
        keys, values = cache.read(PROMPT)
        where = torch.tensor(marks[:PROMPT])
        for layer, groups in enumerate(specs[name].kv_groups):
            assert values[layer, :groups][:, where].isfinite().all()
            if layer == 0:
                assert keys[layer, :groups].isfinite().all()
        cache.close()


@pytest.mark.slow
def test_attention_above_costs_what_its_full_rows_cost():
    """Of three layers all rows attend in one: processor time where attention is most of it."""
    _, native, specs = reference_and_native("llama", 8, max_position_embeddings=2048)
    native._engine = NativeEngine(1)
    tokens = random_tokens(1900)
    seconds: dict[int, list[float]] = {0: [], 1: []}
    for _ in range(3):
        for depth, times in seconds.items():
            marks = marked(1, tokens, numbers=False) if depth else [False] * len(tokens)
            cache = native.cache.open()
            assert cache.reserve(len(tokens))
            part, _ = chunk(Segment(tokens, cache, specs["base"]), marks, 1, 0, len(tokens))
            part.outputs = 1 if depth else None
            started = time.process_time()
            native.forward([part])
            times.append(time.process_time() - started)
            cache.close()
    assert min(seconds[1]) < 0.6 * min(seconds[0])


def test_shallow_tokens_without_maps_are_refused_before_anything_changes():
    _, native, specs = reference_and_native("llama", 4)
    cache = native.cache.open()
    assert cache.reserve(6)
    for marks, depth, outputs, message in (
        ([True] * 6, 3, 0, "no maps"),
        ([True] * 7, 2, 0, "7 marks"),
        ([False] * 5 + [True], 2, 1, "shallow token"),
    ):
        with pytest.raises(ValueError, match=message):
            native.forward([Segment(TOKENS[:6], cache, specs["base"], outputs, marks, depth)])
        assert cache.processed == 0


def test_marks_without_a_shallow_token_need_no_maps():
    _, native, specs = reference_and_native("llama", 4)
    found = []
    for marks in (None, [False] * PROMPT):
        cache = native.cache.open()
        assert cache.reserve(PROMPT)
        found.append(native.forward([Segment(TOKENS[:PROMPT], cache, specs["base"], 3, marks, 9)]))
        cache.close()
    assert torch.equal(found[0][-3:], found[1][-3:])


def test_a_written_token_is_the_same_bit_for_bit_beside_a_shallow_prompt():
    _, native, specs = reference_and_native("llama", 4)
    base = specs["base"]
    prompt = opened(native, TOKENS[:40], base, 1)
    alone = native.forward([Segment([9], prompt, base)])
    other = opened(native, TOKENS[:40], base, 1)
    marks = marked(2, TOKENS)
    read = opened(native, [], base, PROMPT)
    shallow, _ = chunk(Segment(TOKENS, read, base), marks, 2, 0, PROMPT)
    beside = native.forward([shallow, Segment([9], other, base)])
    assert torch.equal(alone[0], beside[-1])
