"""Test running a model layer by layer."""

import pytest
import torch

from pruners.architecture import locate
from pruners.calibration.layer_replay import final_hidden, record_layer_calls
from pruners.data.rows import make_batches
from tests.support.models import PRUNED_FAMILIES, logits, random_rows, tiny_model

RAGGED = random_rows(3, (12, 7, 9))


@torch.no_grad()
@pytest.mark.parametrize("family", PRUNED_FAMILIES)
def test_final_hidden_and_replayed_layers_equal_the_model_despite_padding(family: str):
    model = tiny_model(family)
    located = locate(model)
    (batch,) = make_batches(RAGGED)
    run = record_layer_calls(located, batch)
    hidden = run.hidden
    for index in range(len(located.layers)):
        hidden = run.layer(located, index, hidden)

    rows = [tokens[valid] for tokens, valid in zip(batch.tokens, batch.valid, strict=True)]
    assert sorted(map(len, rows)) == [7, 9, 12]
    for final in (final_hidden(located, batch), located.final_norm(hidden)):
        found = located.head(final)
        for index, row in enumerate(rows):
            expected = logits(model, [row])[0]
            torch.testing.assert_close(found[index, : len(row)], expected, rtol=1e-4, atol=1e-4)
