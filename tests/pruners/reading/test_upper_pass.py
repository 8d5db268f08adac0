"""The layers above a depth, run for full tokens alone, agree with a model that runs all."""

import pytest
import torch

from pruners.architecture import UnsupportedModelError, locate
from pruners.calibration.layer_replay import final_hidden
from pruners.data.rows import pad_rows
from pruners.distill.reading_lessons import make_lessons
from pruners.evaluation.reading_quality import PromptAnswer
from pruners.reading.fit import fit_maps
from pruners.reading.reader import PromptReader
from pruners.reading.realize import read_by
from pruners.reading.upper_pass import find_full, read_upper
from tests.support.models import FAMILIES, VOCAB, random_rows, tiny_model

DEPTH = 1
NUMBERS = torch.arange(VOCAB) % 7 == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_full_tokens_are_as_in_the_model_that_runs_all(family: str) -> None:
    located = locate(tiny_model(family))
    rows = random_rows(3, (30, 24, 9), seed=4)
    prompts = [22, 20, 2]
    maps = fit_maps(located, rows, [DEPTH])[DEPTH]
    reader = PromptReader("one", DEPTH, last=4, numbers=True)
    batch = pad_rows(rows)
    with (
        torch.no_grad(),
        read_by(located, reader, maps, torch.tensor(prompts), batch.tokens, NUMBERS) as shallow,
    ):
        expected = final_hidden(located, batch)
        marked = shallow()
    pairs = [PromptAnswer(row[:cut], row[cut:]) for row, cut in zip(rows, prompts, strict=True)]
    lessons, _ = make_lessons(located, DEPTH, pairs)
    hidden = torch.nn.utils.rnn.pad_sequence([one.hidden for one in lessons], batch_first=True)
    full = find_full(marked, batch.valid)
    found = read_upper(located, maps, hidden, marked, full)
    places = full.places[:, :, None].expand(-1, -1, expected.shape[2])
    torch.testing.assert_close(
        found[full.real], expected.gather(1, places)[full.real], rtol=1e-4, atol=1e-4
    )
    assert int(full.real.sum()) == int((batch.valid & ~marked).sum())


def test_embedded_positions_are_refused() -> None:
    located = locate(tiny_model("gpt2"))
    rows = random_rows(1, (20,))
    maps = fit_maps(located, rows, [DEPTH])[DEPTH]
    shallow = torch.zeros(1, 20, dtype=torch.bool)
    full = find_full(shallow, ~shallow)
    with pytest.raises(UnsupportedModelError, match="no rotary positions"):
        read_upper(located, maps, torch.zeros(1, 20, located.shape.hidden), shallow, full)
