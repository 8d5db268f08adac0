"""Test the scorers of cached tokens, and evaluation with caches from which tokens are deleted."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cosine_similarity

from pruners.architecture import UnsupportedModelError, locate
from pruners.calibration.layer_replay import final_hidden
from pruners.data.rows import pad_rows
from pruners.kv import (
    KV_SCORERS,
    CachedTokens,
    Eviction,
    ExpectedAttention,
    KeyDiff,
    KeyNorm,
    SnapKV,
    StreamingLLM,
)
from pruners.kv.base import rotate
from pruners.kv.transformers_cache import forward_with_eviction
from tests.support.models import PRUNED_FAMILIES, random_rows, tiny_model

CAUSAL = [family for family in PRUNED_FAMILIES if family != "bert"]


def reference_decode(model, row: torch.Tensor, prompt: int, sinks: int, recent: int):
    """Return the logits of decoding token by token with a cache from which keys are deleted."""
    cache = model(row[None, :prompt], use_cache=True).past_key_values
    outputs = []
    for position in range(prompt, len(row)):
        for layer in cache.layers:
            cached = layer.keys.shape[2]
            keep = [i for i in range(cached) if i < sinks or i > cached - recent]
            layer.keys, layer.values = layer.keys[:, :, keep], layer.values[:, :, keep]
        output = model(
            row[None, position : position + 1],
            past_key_values=cache,
            position_ids=torch.tensor([[position]]),
        )
        outputs.append(output.logits[0, 0])
    return torch.stack(outputs)


@torch.no_grad()
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama-gqa", "qwen3", "gpt2", "opt"])
@pytest.mark.parametrize(("sinks", "recent"), [(2, 3), (0, 2), (4, 5)])
def test_streaming_equals_decoding_with_deleted_keys(family, implementation, sinks, recent):
    model = tiny_model(family)
    model.set_attn_implementation(implementation)
    row = random_rows(1, (24,))[0]
    expected = reference_decode(model, row, prompt=12, sinks=sinks, recent=recent)
    eviction = Eviction(StreamingLLM(), sinks + recent, interval=1, sinks=sinks, recent=0)
    found = forward_with_eviction(locate(model), pad_rows([row]), 12, eviction)[0, 12:]
    found = locate(model).head(found)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("family", CAUSAL)
@pytest.mark.parametrize("scorer", KV_SCORERS)
def test_only_a_budget_below_the_number_of_tokens_changes_the_result(family: str, scorer: str):
    located = locate(tiny_model(family))
    batch = pad_rows(random_rows(2, (40,)))
    before = final_hidden(located, batch)
    none = forward_with_eviction(located, batch, 16, Eviction(KV_SCORERS[scorer](), 47, interval=5))
    torch.testing.assert_close(none, before, rtol=1e-4, atol=1e-4)
    few = Eviction(KV_SCORERS[scorer](), 12, interval=4, sinks=2, recent=2)
    found = forward_with_eviction(located, batch, 16, few)
    torch.testing.assert_close(found[:, :16], before[:, :16], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[:, 16:], before[:, 16:], atol=1e-3)
    assert torch.equal(final_hidden(located, batch), before)


@torch.no_grad()
@pytest.mark.parametrize("family", ["mistral", "gemma3"])
def test_a_sliding_window_counts_positions_in_the_text_after_eviction(family: str):
    """With a window of 8, tokens beyond it get no attention, whatever is evicted."""
    located = locate(
        tiny_model(family, layer_types=None)
        if family == "mistral"
        else tiny_model(family, layer_types=["sliding_attention"] * 3)
    )
    batch = pad_rows(random_rows(1, (40,)))
    before = final_hidden(located, batch)
    # All tokens within the window stay cached, so the result must not change.
    eviction = Eviction(StreamingLLM(), 14, interval=4, sinks=2, recent=0)
    found = forward_with_eviction(located, batch, 16, eviction)
    torch.testing.assert_close(found, before, rtol=1e-4, atol=1e-4)


def random_cache(tokens: int = 30, rope: bool = True) -> CachedTokens:
    """Return two rows of random keys, values and queries: 3 KV groups of 2 heads of 8 features."""
    generator = torch.Generator().manual_seed(3)

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator)

    def tables(positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angles = positions[:, None] * torch.tensor([1.0, 0.3, 0.1, 0.03])
        angles = torch.cat([angles, angles], dim=1)
        return angles.cos(), angles.sin()

    return CachedTokens(
        positions=torch.arange(tokens).expand(2, -1),
        keys=draw(2, 3, tokens, 8),
        values=draw(2, 3, tokens, 8),
        queries=draw(2, 6, tokens, 8),
        last_position=tokens - 1,
        scale=8**-0.5,
        rope=tables if rope else None,
    )


def test_key_scores_equal_their_definitions():
    cache = random_cache()
    assert StreamingLLM()(cache).argsort(1).equal(torch.arange(30).expand(2, -1))
    norms = KeyNorm()(cache)
    assert norms[1, 4] == pytest.approx(-cache.keys[1, :, 4].norm(dim=-1).mean().item())
    unit = cache.keys / cache.keys.norm(dim=-1, keepdim=True)
    expected = -cosine_similarity(cache.keys[0, :, 7], unit[0].mean(1), dim=-1).mean()
    assert KeyDiff()(cache)[0, 7] == pytest.approx(expected.item())


@pytest.mark.parametrize("rope", [True, False])
def test_snap_kv_is_the_pooled_attention_of_the_window(rope: bool):
    cache = random_cache(rope=rope)
    found = SnapKV(window=4)(cache)
    total = torch.zeros(2, 30)
    for row in range(2):
        for head in range(6):
            for position in range(26, 30):
                q = cache.queries[row, head, position]
                if rope:
                    q = rotate(q[None], *cache.rope(torch.tensor([position])))[0]
                scores = cache.keys[row, head // 2, : position + 1] @ q * cache.scale
                total[row, : position + 1] += scores.softmax(0)
    pooled = torch.nn.functional.avg_pool1d(total[:, None], 5, 1, 2)[:, 0]
    torch.testing.assert_close(found[:, :26], pooled[:, :26])
    assert (found[:, 26:] > found[:, :26].amax(1, keepdim=True)).all()


@pytest.mark.parametrize("rope", [True, False])
def test_expected_attention_equals_the_mean_over_sampled_queries(rope: bool):
    cache = random_cache(tokens=12, rope=rope)
    found = ExpectedAttention(future=1, floor=0.0)(cache)
    generator = torch.Generator().manual_seed(0)
    row, head = 1, 5
    queries = cache.queries[row, head]
    covariance = torch.cov(queries.T, correction=0)
    root = torch.linalg.cholesky(covariance + 1e-6 * torch.eye(8))
    drawn = queries.mean(0) + torch.randn(200_000, 8, generator=generator) @ root.T
    if rope:
        drawn = rotate(drawn, *cache.rope(torch.tensor([12])))
    weights = (drawn @ cache.keys[row, head // 2].T * cache.scale).exp().mean(0)
    only = CachedTokens(
        positions=torch.arange(12)[None],
        keys=cache.keys[row : row + 1, 2:3],
        values=torch.ones(1, 1, 12, 1),
        queries=cache.queries[row : row + 1, 5:6],
        last_position=11,
        scale=cache.scale,
        rope=cache.rope,
    )
    alone = ExpectedAttention(future=1, floor=0.0)(only)[0]
    torch.testing.assert_close(alone, weights / weights.sum(), rtol=0.02, atol=1e-3)
    assert found.shape == (2, 12)


@pytest.mark.parametrize("scorer", KV_SCORERS)
def test_the_order_in_which_tokens_are_cached_does_not_matter(scorer: str):
    cache = random_cache()
    chosen = SnapKV(window=6) if scorer == "snap" else KV_SCORERS[scorer]()
    eviction = Eviction(chosen, 18, interval=4, sinks=2, recent=3)
    kept = eviction.select(cache, 14)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    mixed = replace(
        cache,
        positions=cache.positions[:, order],
        keys=cache.keys[:, :, order],
        values=cache.values[:, :, order],
    )
    found = mixed.positions.gather(1, eviction.select(mixed, 14)).sort(1).values
    assert found.equal(kept)
    assert {0, 1, 27, 28, 29} <= set(kept[0].tolist())


def test_impossible_evictions_are_refused():
    with pytest.raises(ValueError, match="is not above its 4 sinks"):
        Eviction(StreamingLLM(), 20)
    with pytest.raises(ValueError, match="interval"):
        Eviction(StreamingLLM(), 99, interval=0)
    eviction = Eviction(StreamingLLM(), 99)
    with pytest.raises(UnsupportedModelError, match="encoder"):
        forward_with_eviction(
            locate(tiny_model("bert")), pad_rows(random_rows(1, (9,))), 4, eviction
        )
    with pytest.raises(ValueError, match="equally long"):
        forward_with_eviction(locate(tiny_model()), pad_rows(random_rows(2, (9, 7))), 4, eviction)
