"""`benchmarks.kv_budgets` in small."""

import pytest
import torch

from benchmarks.kv_budgets import budget_forwards, compare_budgets
from pruners.architecture import locate
from pruners.calibration.layer_replay import final_hidden
from pruners.data.rows import pad_rows
from tests.support.models import random_rows, tiny_model


@torch.no_grad()
def test_budgets_are_compared_on_the_same_tokens_behind_the_prompt():
    located, prompt = locate(tiny_model()), 80
    rows = random_rows(3, (96,))
    forwards = budget_forwards(located, ["streaming", "pages"], [48, 128], prompt)
    found = compare_budgets(located, forwards, rows, prompt)
    assert set(found) == {"streaming 48", "streaming 128", "pages 48", "pages 128"}
    assert found["streaming 128"]["kl"] == pytest.approx(0, abs=1e-5)
    assert found["pages 128"]["kl"] == pytest.approx(0, abs=1e-5)
    losses = []
    for row in rows:
        base, pages = (
            located.head(hidden[0, prompt:-1]).log_softmax(-1)
            for hidden in (
                final_hidden(located, pad_rows([row])),
                forwards["pages 48"](pad_rows([row])),
            )
        )
        losses.append(float((base.exp() * (base - pages)).sum(-1).mean()))
    values = torch.tensor(losses)
    assert found["pages 48"]["kl"] == pytest.approx(float(values.mean()), rel=1e-3)
    half = 1.96 * float(values.std()) / 3**0.5
    assert found["pages 48"]["half_width"] == pytest.approx(half, rel=1e-3)
    assert found["streaming 48"]["kl"] > 0
