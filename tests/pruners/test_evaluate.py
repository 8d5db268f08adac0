from functools import partial

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from pruners import divergence
from pruners.architecture import locate
from pruners.evaluate import evaluate
from pruners.evict import streaming, visible
from pruners.mask import mask
from pruners.order import identity
from pruners.variant import VariantSpec, base_spec
from tests.pruners.models import FAMILIES, logits, random_rows, tiny_model

NARROW = VariantSpec("narrow", (1, 2, 1), (32, 64, 0))


@pytest.mark.parametrize("chunk_bytes", [1, 97 * 4 * 5, 2**25])
def test_quality_equals_the_textbook_on_ragged_rows(monkeypatch, chunk_bytes: int):
    monkeypatch.setattr(divergence, "_CHUNK_BYTES", chunk_bytes)
    model = tiny_model()
    decoder = locate(model)
    rows = random_rows(5, (16, 2, 9))
    narrow = partial(mask, decoder, NARROW, identity(decoder.shape))
    found = evaluate(decoder, {"narrow": narrow}, rows)

    base = torch.cat([logits(model, [row])[0, :-1] for row in rows])
    with narrow():
        variant = torch.cat([logits(model, [row])[0, :-1] for row in rows])
    targets = torch.cat([row[1:] for row in rows])
    kl = kl_div(
        variant.log_softmax(-1), base.log_softmax(-1), log_target=True, reduction="batchmean"
    )
    assert found.tokens == len(targets)
    assert found.base_perplexity == pytest.approx(
        cross_entropy(base, targets).exp().item(), rel=1e-4
    )
    quality = found.quality["narrow"]
    assert quality.kl == pytest.approx(kl.item(), rel=1e-4)
    assert quality.perplexity == pytest.approx(
        cross_entropy(variant, targets).exp().item(), rel=1e-4
    )
    equal = (base.argmax(-1) == variant.argmax(-1)).double().mean().item()
    assert quality.agreement == pytest.approx(equal)


def test_the_base_as_a_variant_loses_exactly_nothing():
    decoder = locate(tiny_model())
    base = partial(mask, decoder, base_spec(decoder.shape), identity(decoder.shape))
    found = evaluate(decoder, {"base": base}, random_rows(3, (16,)))
    assert found.quality["base"].kl == 0
    assert found.quality["base"].agreement == 1
    assert found.quality["base"].perplexity == found.base_perplexity


def test_rows_within_the_prompt_measure_nothing():
    decoder = locate(tiny_model())
    with pytest.raises(ValueError, match="no row is longer than 17 tokens"):
        evaluate(decoder, {}, random_rows(2, (16,)), prompt=16)


def test_visible_keys_after_the_prompt():
    seen = visible(length=7, prompt=4, sinks=1, recent=2).int().tolist()
    assert seen[3] == [1, 1, 1, 1, 0, 0, 0]
    assert seen[4] == [1, 0, 0, 1, 1, 0, 0]
    assert seen[6] == [1, 0, 0, 0, 0, 1, 1]


def evicting_decode(model, row: torch.Tensor, prompt: int, sinks: int, recent: int):
    """Oracle: token by token over a real cache out of which keys are deleted."""
    cache = model(row[None, :prompt], use_cache=True).past_key_values
    outputs = []
    for position in range(prompt, len(row)):
        for layer in cache.layers:
            held = layer.keys.shape[2]
            keep = [i for i in range(held) if i < sinks or i > held - recent]
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
@pytest.mark.parametrize(("sinks", "recent"), [(2, 3), (0, 1), (4, 5)])
def test_streaming_equals_decoding_with_deleted_keys(implementation: str, sinks: int, recent: int):
    model = tiny_model()
    model.set_attn_implementation(implementation)
    row = random_rows(1, (24,))[0]
    expected = evicting_decode(model, row, prompt=12, sinks=sinks, recent=recent)
    with streaming(locate(model), prompt=12, sinks=sinks, recent=recent):
        found = logits(model, [row])[0, 12:]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_budget_for_all_tokens_is_the_base_in_every_family(family: str, implementation: str):
    model = tiny_model(family)
    model.set_attn_implementation(implementation)
    decoder = locate(model)
    rows = random_rows(2, (24,))
    before = logits(model, rows)
    with streaming(decoder, prompt=8, sinks=4, recent=20):
        torch.testing.assert_close(logits(model, rows), before, rtol=1e-5, atol=1e-5)
    with streaming(decoder, prompt=8, sinks=1, recent=2):
        changed = logits(model, rows)
    assert torch.equal(logits(model, rows), before)
    torch.testing.assert_close(changed[:, :8], before[:, :8], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(changed[:, 8:], before[:, 8:], atol=1e-3)


def test_only_what_follows_the_prompt_is_measured():
    decoder = locate(tiny_model())
    rows = random_rows(3, (24,))
    budget = partial(streaming, decoder, prompt=8, sinks=1, recent=2)
    found = evaluate(decoder, {"kv": budget}, rows, prompt=8)
    assert found.tokens == 3 * (24 - 8 - 1)
    assert found.quality["kv"].kl > 0


def test_refuses_an_empty_window():
    with pytest.raises(ValueError, match="keeps nothing"), streaming(locate(tiny_model()), 4, 2, 0):
        pass
