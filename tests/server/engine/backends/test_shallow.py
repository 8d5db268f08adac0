"""Prompts that are read shallowly by PyTorch's decoders, against `transformers` with a reader."""

from dataclasses import replace

import pytest
import torch

from pruners.kv import RECENT_QUERIES, make_eviction
from server.engine.backends.base import Segment
from server.engine.backends.pytorch.decoder import PyTorchDecoder
from server.engine.backends.pytorch.graph_decoder import GraphDecoder
from server.engine.backends.pytorch.kv_maps import convert_maps
from server.engine.cache.kv_cache import KVCache
from tests.support.corrections import specs_of
from tests.support.driving import weights_of
from tests.support.reading import (
    LAST,
    chunk,
    logits_in_chunks,
    marks_of,
    random_tokens,
    reader_of,
    served_order,
    tiny_maps,
    transformers_logits,
)
from tests.support.tiny import FAMILIES, tiny_model

PROMPT, WRITTEN = 90, 7
TOKENS = random_tokens(PROMPT + WRITTEN)
IN_ONE = [PROMPT, *range(PROMPT + 1, PROMPT + WRITTEN)]  # then token by token
IN_CHUNKS = [1, 2, 33, 34, 60, PROMPT - 2, *IN_ONE]


def decoder_of(family: str, kind: type[PyTorchDecoder] = PyTorchDecoder) -> PyTorchDecoder:
    weights = weights_of(tiny_model(family))
    maps = convert_maps(weights, tiny_maps(weights.shape), served_order(weights.shape))
    cache = KVCache(weights.shape, 2048, weights.dtype, weights.device, spare=1)
    for tensor in cache.tensors():
        tensor.fill_(torch.nan)  # what was never written must not be read
    return kind(weights, cache, None, maps)


@pytest.mark.parametrize("cuts", [IN_ONE, IN_CHUNKS], ids=["whole", "chunks"])
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_is_read_as_the_reader_says(family, depth, cuts):
    model, decoder = tiny_model(family), decoder_of(family)
    reader, names = reader_of(depth)
    maps = tiny_maps(decoder.weights.shape)
    expected = transformers_logits(model, maps[depth], reader, TOKENS, PROMPT)
    marks = marks_of(reader, names, TOKENS[:PROMPT], WRITTEN)
    assert 0 < sum(marks) < PROMPT - LAST - 4
    base = specs_of(decoder.weights.shape)["base"]
    found = logits_in_chunks(decoder, base, TOKENS, marks, depth, cuts)[-LAST - WRITTEN :]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-4)
    in_full = logits_in_chunks(decoder, base, TOKENS, [False] * len(TOKENS), depth, cuts)
    assert not torch.allclose(in_full[-LAST - WRITTEN :], expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kind", [PyTorchDecoder, GraphDecoder])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_prompts_of_all_depths_and_variants_share_a_step(family, kind):
    decoder = decoder_of(family, kind)
    specs = specs_of(decoder.weights.shape)
    jobs = [(spec, depth) for depth in (1, 2, 0) for spec in specs.values()]
    segments, expected = [], []
    for index, (spec, depth) in enumerate(jobs):
        tokens = random_tokens(20 + 3 * index, seed=index)
        reader, names = reader_of(depth)
        marks = marks_of(reader, names, tokens, 0) if depth else [False] * len(tokens)
        expected.append(logits_in_chunks(decoder, spec, tokens, marks, depth, [])[-LAST:])
        cache = decoder.cache.open()
        assert cache.reserve(len(tokens))
        segments.append(chunk(Segment(tokens, cache, spec), marks, depth, 0, len(tokens))[0])
    hidden = decoder.forward(segments).split([len(s.tokens) for s in segments])
    found = torch.cat([decoder.logits(part[-LAST:]) for part in hidden])
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-3, atol=2e-4)


def test_the_layers_above_compute_full_rows_only(monkeypatch):
    decoder = decoder_of("qwen2")
    rows: dict[int, int] = {}
    attention = PyTorchDecoder._attention

    def count(self, at, h, widths, corrections):
        rows[at.index] = len(h)
        return attention(self, at, h, widths, corrections)

    monkeypatch.setattr(PyTorchDecoder, "_attention", count)
    reader, names = reader_of(2)
    marks = marks_of(reader, names, TOKENS[:PROMPT], 0)
    base = specs_of(decoder.weights.shape)["base"]
    logits_in_chunks(decoder, base, TOKENS[:PROMPT], marks, 2, [])
    assert rows == {0: PROMPT, 1: PROMPT, 2: PROMPT - sum(marks)}


@pytest.mark.parametrize("kind", [PyTorchDecoder, GraphDecoder])
@pytest.mark.parametrize(
    ("marks", "depth", "outputs", "message"),
    [
        ([True] * 6, 3, 0, "no maps"),
        ([True] * 6, 0, 0, "no maps"),
        ([True] * 5, 2, 0, "5 marks"),
        ([False] * 3 + [True] * 3, 2, 1, "shallow token"),
        ([True] + [False] * 5, 2, None, "shallow token"),
    ],
)
def test_what_cannot_be_shallow_is_refused_before_anything_changes(
    kind, marks, depth, outputs, message
):
    decoder = decoder_of("llama", kind)
    base = specs_of(decoder.weights.shape)["base"]
    caches = [decoder.cache.open() for _ in range(2)]
    assert all(cache.reserve(6) for cache in caches)
    segments = [
        Segment([5], caches[0], base),
        Segment(TOKENS[:6], caches[1], base, outputs, marks, depth),
    ]
    with pytest.raises(ValueError, match=message):
        decoder.forward(segments)
    assert [cache.processed for cache in caches] == [0, 0]
    assert all(tensor.isnan().all() for tensor in decoder.cache.tensors())


def test_maps_of_another_model_are_refused():
    weights = weights_of(tiny_model("llama"))
    with pytest.raises(ValueError, match="not of this model"):
        convert_maps(weights, tiny_maps(replace(weights.shape, kv_groups=4)), None)


@pytest.mark.parametrize("cuts", [[], [100, 299, 301], [300]])
def test_queries_of_shallow_tokens_are_zeros_above_however_the_prompt_is_cut(cuts):
    decoder = decoder_of("qwen3")
    tokens = random_tokens(400)
    reader, names = reader_of(1)
    marks = marks_of(reader, names, tokens, 0)
    cache = decoder.cache.open(make_eviction(512, "snap"))
    assert cache.reserve(400)
    base = specs_of(decoder.weights.shape)["base"]
    whole = Segment(tokens, cache, base)
    for begin, end in zip([0, *cuts], [*cuts, 400], strict=True):
        decoder.forward([chunk(whole, marks, 1, begin, end)[0]])
    assert cache.queries is not None
    recent = range(400 - RECENT_QUERIES, 400)
    places = [position % RECENT_QUERIES for position in recent]
    unset = (cache.queries[:, places] == 0).all(-1)
    assert not unset[0].any()
    assert unset[1].tolist() == unset[2].tolist() == [marks[position] for position in recent]
