"""Native attention to chosen pages: against PyTorch's selection, plain bounds, and bit for bit."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from pruners.kv import KVBudget, PageSelection
from pruners.variant import VariantSpec
from server.engine.backends.base import Decoder, Segment
from server.engine.backends.native.decoder import NativeDecoder
from server.engine.backends.native.library import NativeEngine, is_available
from server.engine.cache.eviction import evict
from server.engine.cache.kv_cache import KVCache
from server.engine.cache.sequence_cache import SequenceCache
from server.engine.runner import Runner
from server.engine.scheduler import Scheduler, SchedulerLimits
from tests.support.driving import submit
from tests.support.native import CPU, instruction_sets, reference_and_native
from tests.support.paged import PagedDecoder
from tests.support.reading import marks_of, random_tokens, reader_of
from tests.support.tiny import BATCHED_FAMILIES

pytestmark = pytest.mark.skipif(not is_available(), reason="the native kernels are not built")

PROMPT, WRITTEN = 205, 40  # 13 pages and a part of one, and more than a page behind them
TOKENS = random_tokens(PROMPT + WRITTEN)
PAGES = PageSelection(96)


def read(
    decoder: Decoder, spec: VariantSpec, budget: KVBudget | None, prompt: Sequence[int]
) -> SequenceCache:
    """Return a cache with room for the answer, into which a prompt was read."""
    cache = decoder.cache.open(budget)
    assert cache.reserve(len(prompt) + WRITTEN)
    decoder.forward([Segment(list(prompt), cache, spec)])
    evict(cache, decoder.weights, spec, prompt_read=True)
    return cache


def written(decoder: Decoder, cache: SequenceCache, spec: VariantSpec) -> Tensor:
    """Return the logits `[WRITTEN, vocab]` of the tokens behind a prompt, and close the cache."""
    logits = []
    for token in TOKENS[PROMPT:]:
        logits.append(decoder.logits(decoder.forward([Segment([token], cache, spec)])))
        evict(cache, decoder.weights, spec, prompt_read=True)
    cache.close()
    return torch.cat(logits)


def answer(decoder: Decoder, spec: VariantSpec, budget: KVBudget | None) -> Tensor:
    return written(decoder, read(decoder, spec, budget, TOKENS[:PROMPT]), spec)


def oracle_and_native(
    family: str, **changes: object
) -> tuple[PagedDecoder, NativeDecoder, dict[str, VariantSpec]]:
    reference, native, specs = reference_and_native(family, 8, **changes)
    paged = PagedDecoder(
        reference.weights, reference.cache, reference._corrections, reference._maps
    )
    return paged, native, specs


def token_kl(expected: Tensor, found: Tensor) -> Tensor:
    """Return the divergence of each token's distribution."""
    wanted = expected.log_softmax(-1)
    return (wanted.exp() * (wanted - found.log_softmax(-1))).sum(-1)


@pytest.mark.parametrize("family", BATCHED_FAMILIES)
def test_written_tokens_attend_to_the_pages_that_pytorch_selects(family):
    paged, native, specs = oracle_and_native(family)
    for spec in specs.values():
        expected = answer(paged, spec, PAGES)
        off = token_kl(expected, answer(native, spec, PAGES))
        whole = token_kl(expected, answer(native, spec, None))
        # Rounding decides between pages of almost the same score, seldom.
        assert off.median() < 1e-3
        assert off.mean() < whole.mean() / 10


@pytest.mark.parametrize("head_dim", [8, 24, 64])
def test_every_instruction_set_selects_pages_of_heads_of_any_size(head_dim):
    paged, native, specs = oracle_and_native("qwen3", head_dim=head_dim)
    expected = answer(paged, specs["base"], PAGES)
    for isa in instruction_sets():
        native._engine = NativeEngine(2, isa)
        off = token_kl(expected, answer(native, specs["base"], PAGES))
        assert off.median() < 1e-3, isa


def test_many_pages_are_scored_in_parts():
    paged, native, specs = oracle_and_native("llama", max_position_embeddings=4096)
    tokens, prompt = random_tokens(2150, seed=3), 2110  # 132 pages; a part of the bounds are 128

    def logits(decoder: Decoder, budget: KVBudget | None) -> Tensor:
        cache, rows = decoder.cache.open(budget), []
        assert cache.reserve(len(tokens))
        decoder.forward([Segment(tokens[:prompt], cache, specs["base"], outputs=0)])
        evict(cache, decoder.weights, specs["base"], prompt_read=True)
        for token in tokens[prompt:]:
            rows.append(decoder.forward([Segment([token], cache, specs["base"])]))
        cache.close()
        return decoder.logits(torch.cat(rows))

    larger = [KVCache(d.weights.shape, 4096, d.cache.keys.dtype, CPU) for d in (paged, native)]
    expected = logits(PagedDecoder(paged.weights, larger[0]), PageSelection(1024))
    native = NativeDecoder(native.weights, larger[1])
    off = token_kl(expected, logits(native, PageSelection(1024)))
    whole = token_kl(expected, logits(native, None))
    assert off.mean() < whole.mean() / 10


def test_bounds_follow_the_cached_keys_exactly():
    _, native, specs = oracle_and_native("qwen3")
    reader, numbers = reader_of(1)
    marks = marks_of(reader, numbers, TOKENS[:PROMPT], 0)
    for budget in (PAGES, PageSelection(512)):  # which takes all pages
        cache = native.cache.open(budget)
        assert cache.reserve(len(TOKENS))
        native.forward([Segment(TOKENS[:PROMPT], cache, specs["base"], 1, marks, 1)])
        assert cache.page_bounds is None
        evict(cache, native.weights, specs["base"], prompt_read=True)
        cache.page_bounds.bounds = cache.page_bounds.bounds[:, :, :14].clone()  # no page to spare
        for token in TOKENS[PROMPT:]:
            native.forward([Segment([token], cache, specs["base"])])
        keys, _ = cache.read()
        for page in range(-(-len(TOKENS) // 16)):
            held = keys[:, :, 16 * page : 16 * page + 16]
            highest, lowest = cache.page_bounds.bounds[:, :, page].unbind(2)
            assert torch.equal(highest, held.amax(2))
            assert torch.equal(lowest, held.amin(2))
        cache.close()


def test_a_budget_of_all_pages_changes_nothing():
    _, native, specs = oracle_and_native("gemma3")
    for spec in specs.values():
        assert torch.equal(answer(native, spec, PageSelection(512)), answer(native, spec, None))


def test_rows_depend_neither_on_others_nor_on_the_number_of_threads():
    _, native, specs = oracle_and_native("qwen3")
    alone = {}
    jobs = [("base", PAGES), ("narrow", PAGES), ("own", None), ("base", PageSelection(48))]
    for name, budget in jobs:
        alone[name, budget] = answer(native, specs[name], budget)
    for threads in (1, 2):
        native._engine = NativeEngine(threads)
        caches = [read(native, specs[name], budget, TOKENS[:PROMPT]) for name, budget in jobs]
        other = native.cache.open()  # reads a prompt meanwhile
        assert other.reserve(3 * WRITTEN)
        rows = []
        for token in TOKENS[PROMPT:]:
            segments = [
                Segment([token], cache, specs[name])
                for (name, _), cache in zip(jobs, caches, strict=True)
            ]
            segments.insert(1, Segment([7, 8, 9], other, specs["base"]))
            hidden = native.forward(segments)
            rows.append(native.logits(hidden[[0, 4, 5, 6]]))
        for index, (job, cache) in enumerate(zip(jobs, caches, strict=True)):
            assert torch.equal(torch.stack(rows)[:, index], alone[job])
            cache.close()
        other.close()


def test_pages_are_ordered_even_if_bounds_are_no_numbers():
    _, native, specs = oracle_and_native("llama")
    cache = read(native, specs["base"], PAGES, TOKENS[:PROMPT])
    cache.page_bounds.bounds[:, :, 3:5] = torch.nan
    assert native.forward([Segment([5], cache, specs["base"])]).isfinite().all()


def test_pages_are_selected_for_one_token_at_a_time():
    _, native, specs = oracle_and_native("llama")
    cache = read(native, specs["base"], PAGES, TOKENS[:PROMPT])
    with pytest.raises(ValueError, match="one token at a time"):
        native.forward([Segment([5, 6], cache, specs["base"])])
    cache.page_bounds.selection = PageSelection(96, page=8)
    with pytest.raises(ValueError, match="the kernels select pages by"):
        native.forward([Segment([5], cache, specs["base"])])


def engine_answer(
    decoder: NativeDecoder, spec: VariantSpec, step_tokens: int, preempted_after: int | None = None
) -> tuple[list[tuple[int, float]], int]:
    """Return what the engine writes under a budget with its log-probabilities, and its steps."""
    runner = Runner(decoder, Scheduler(decoder.cache, SchedulerLimits(4, step_tokens)))
    more = {"kv_budget": PAGES, "logprobs": 0}
    _, other = submit(runner, TOKENS[:89], spec, max_tokens=8)
    sequence, recorder = submit(runner, TOKENS[:PROMPT], spec, max_tokens=WRITTEN, **more)
    steps = 0
    while runner.step():
        steps += 1
        if steps == preempted_after:
            runner.scheduler._preempt(sequence)
        if sequence.output and not sequence.ended and sequence.cache is not None:
            assert sequence.cache.cached == sequence.computed >= PROMPT or preempted_after
            assert sequence.progress.cached == sequence.cache.cached
    assert runner.scheduler.preemptions == (preempted_after is not None)
    assert len(other.tokens) == 8
    found = [delta.logprob for delta in recorder.deltas if delta.logprob is not None]
    assert len(found) == WRITTEN
    while decoder.cache.prefixes.drop_oldest():
        pass
    assert decoder.cache.arena.used == 0
    return [(one.token, one.logprob) for one in found], steps


def test_the_engine_writes_the_same_however_it_reads_and_whenever_it_is_preempted():
    _, native, specs = oracle_and_native("qwen3")
    expected, steps = engine_answer(native, specs["base"], 256)
    # The second prompt is read in parts of 58, 146 and 1 tokens beside the other request.
    for step_tokens in (32, 147):
        assert engine_answer(native, specs["base"], step_tokens)[0] == expected
    for moment in (1, 2, 5, 20, steps - 1):
        assert engine_answer(native, specs["base"], 256, moment)[0] == expected


def test_the_engine_selects_pages_from_the_first_written_token_on():
    _, native, specs = oracle_and_native("llama")
    found, _ = engine_answer(native, specs["base"], 256)
    cache = read(native, specs["base"], PAGES, TOKENS[:PROMPT])
    again = []
    for token, _ in found[:-1]:
        hidden = native.forward([Segment([token], cache, specs["base"])])
        again.append(int(native.logits(hidden).argmax()))
    assert again == [token for token, _ in found[1:]]
