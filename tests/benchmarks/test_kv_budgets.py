"""`benchmarks.kv_budgets` in small."""

import pytest
import torch

from benchmarks.kv_budgets import budget_forwards, compare_budgets
from pruners.architecture import locate
from pruners.calibration.layer_replay import final_hidden
from pruners.data.rows import pad_rows
from pruners.kv.transformers_cache import read_in_full
from pruners.reading.realize import read_by
from tests.support.models import random_rows, tiny_model
from tests.support.reading import reader_of, tiny_maps


@torch.no_grad()
def test_budgets_are_compared_on_the_same_tokens_behind_the_prompt():
    located, prompt = locate(tiny_model()), 80
    rows = random_rows(3, (96,))
    forwards = budget_forwards(
        located, ["streaming", "pages"], [48, 128], prompt, {"": read_in_full}
    )
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


@torch.no_grad()
def test_a_reader_with_a_budget_that_holds_everything_reads_as_without_a_cache():
    located, prompt = locate(tiny_model()), 80
    reader, numbers = reader_of(1)
    maps = tiny_maps(located.shape)[1]
    row = random_rows(1, (96,))[0]
    lengths = torch.tensor([prompt])

    def reading(prompts):
        return read_by(located, reader, maps, lengths, prompts, numbers)

    readings = {"": read_in_full, "shallow": reading}
    forwards = budget_forwards(located, ["streaming", "pages"], [48, 128], prompt, readings)
    batch = pad_rows([row])
    with read_by(located, reader, maps, lengths, batch.tokens, numbers):
        wanted = final_hidden(located, batch)[0, prompt:]
    in_full = final_hidden(located, batch)[0, prompt:]
    assert not torch.allclose(in_full, wanted, atol=1e-2)
    for name in ("shallow", "shallow streaming 128", "shallow pages 128"):
        assert torch.allclose(forwards[name](batch)[0, prompt:], wanted, atol=1e-5)
    for name in ("shallow streaming 48", "shallow pages 48"):
        assert not torch.allclose(forwards[name](batch)[0, prompt:], wanted, atol=1e-3)
