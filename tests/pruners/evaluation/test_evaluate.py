from functools import partial

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from pruners.architecture import locate
from pruners.evaluation import divergence
from pruners.evaluation.evaluate import evaluate, variant_forward
from pruners.realization.mask import apply_mask
from pruners.realization.order import identity_order
from pruners.support.checkpoint import Checkpoint
from pruners.variant import VariantSpec, base_spec
from tests.support.models import logits, random_rows, tiny_model

NARROW = VariantSpec("narrow", (1, 2, 1), (32, 64, 0))


@pytest.mark.parametrize("chunk_bytes", [1, 97 * 4 * 5, 2**25])
def test_quality_equals_the_textbook_on_ragged_rows(monkeypatch, chunk_bytes: int):
    monkeypatch.setattr(divergence, "_CHUNK_BYTES", chunk_bytes)
    model = tiny_model()
    located = locate(model)
    rows = random_rows(5, (16, 2, 9))
    narrow = partial(apply_mask, located, NARROW, identity_order(located.shape))
    found = evaluate(located, {"narrow": variant_forward(located, narrow)}, rows)

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
    located = locate(tiny_model())
    base = partial(apply_mask, located, base_spec(located.shape), identity_order(located.shape))
    found = evaluate(located, {"base": variant_forward(located, base)}, random_rows(3, (16,)))
    assert found.quality["base"].kl == 0
    assert found.quality["base"].agreement == 1
    assert found.quality["base"].perplexity == found.base_perplexity


def test_rows_within_the_prompt_measure_nothing():
    located = locate(tiny_model())
    with pytest.raises(ValueError, match="no row is longer than 17 tokens"):
        evaluate(located, {}, random_rows(2, (16,)), prompt=16)


class KilledError(Exception):
    pass


def test_an_interrupted_measurement_goes_on_where_it_stopped(tmp_path, monkeypatch):
    located = locate(tiny_model())
    monkeypatch.setattr("pruners.data.rows.BATCH_TOKENS", 16)
    rows = random_rows(4, (700, 600))
    narrow = variant_forward(
        located, partial(apply_mask, located, NARROW, identity_order(located.shape))
    )
    expected = evaluate(located, {"narrow": narrow}, rows)
    reads = 0

    def dying(batch):
        nonlocal reads
        reads += 1
        if reads == 3:
            raise KilledError
        return narrow(batch)

    with pytest.raises(KilledError):
        evaluate(located, {"narrow": dying}, rows, checkpoint=Checkpoint(tmp_path / "j", "run"))
    found = evaluate(located, {"narrow": dying}, rows, checkpoint=Checkpoint(tmp_path / "j", "run"))
    assert found == expected
    assert reads == 5  # two batches, the one that died, and the two that were left

    other = Checkpoint(tmp_path / "j", "another run")
    assert other.load("quality behind 0 of narrow") is None
