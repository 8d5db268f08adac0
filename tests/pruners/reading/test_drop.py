"""A model that drops prompt tokens, against one that never caches them in the upper layers."""

import pytest
import torch
from transformers import DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pruners.architecture import locate
from pruners.calibration.layer_replay import final_hidden
from pruners.data.rows import pad_rows
from pruners.kv.base import SINK_TOKENS
from pruners.reading.drop import TokenDropping, drop_tokens
from tests.support.models import FAMILIES, random_rows, tiny_model

DROPPING = TokenDropping("half", depth=2, keep=0.5, last=3)


def most_attended(located, row: torch.Tensor, prompt: int) -> list[int]:
    """Return the tokens that `DROPPING` keeps, from the model's own attention weights."""
    located.model.set_attn_implementation("eager")
    attention = located.model(row[None], output_attentions=True).attentions[1][0]
    scores = attention[:, prompt - 3 : prompt, :prompt].sum((0, 1))
    located.model.set_attn_implementation("sdpa")
    pooled = torch.nn.functional.avg_pool1d(scores[None], 5, 1, 2)[0]
    always = {*range(SINK_TOKENS), *range(prompt - 3, prompt)}
    others = sorted(set(range(prompt)) - always, key=lambda place: -pooled[place])
    return sorted([*always, *others[: prompt // 2 - len(always)]])


def read_token_by_token(located, row: torch.Tensor, dropped: set[int]) -> torch.Tensor:
    """Return final hidden states `[length, hidden]`, token by token.

    Attention of the upper layers is computed from the keys and values that are left.
    """
    left = {"now": 0}

    def attend(module, query, key, value, attention_mask, scaling, **_):
        place, layer = left["now"], located.layers[module.layer_idx]
        assert key.shape[2] == place + 1
        first = 0 if layer.window is None else max(0, place + 1 - layer.window)
        above = module.layer_idx >= DROPPING.depth
        seen = [i for i in range(first, place + 1) if i == place or i not in dropped or not above]
        repeats = query.shape[1] // key.shape[1]
        keys, values = (part[:, :, seen].repeat_interleave(repeats, 1) for part in (key, value))
        weights = (scaling * query @ keys.transpose(2, 3)).softmax(-1)
        return (weights @ values).transpose(1, 2), None

    ALL_ATTENTION_FUNCTIONS.register("of_this_test", attend)
    located.model.set_attn_implementation("of_this_test")
    cache, finals = DynamicCache(), []
    for place, token in enumerate(row.tolist()):
        left["now"] = place
        output = located.model.base_model(
            torch.tensor([[token]]),
            past_key_values=cache,
            position_ids=torch.tensor([[place]]),
            use_cache=True,
        )
        finals.append(output.last_hidden_state[0, 0])
    located.model.set_attn_implementation("sdpa")
    return torch.stack(finals)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_other_tokens_see_what_a_cache_without_dropped_keys_would_show(family):
    located = locate(tiny_model(family))
    row, prompt = random_rows(1, (24,))[0], 18
    kept = most_attended(located, row, prompt)
    assert len(kept) == prompt // 2
    with drop_tokens(located, DROPPING, torch.tensor([prompt]), row[None]) as dropped:
        found = final_hidden(located, pad_rows([row]))[0]
    places = (~dropped()[0]).nonzero()[:, 0].tolist()
    assert places == [*kept, *range(prompt, len(row))]
    expected = read_token_by_token(located, row, set(range(prompt)) - set(kept))
    torch.testing.assert_close(found[places], expected[places], rtol=1e-4, atol=1e-4)
    base = final_hidden(located, pad_rows([row]))[0]
    assert not torch.allclose(found[prompt - 1 :], base[prompt - 1 :], atol=1e-3)


@torch.no_grad()
def test_keeping_all_is_the_base_and_nothing_stays_behind():
    located = locate(tiny_model())
    rows, prompts = random_rows(2, (24, 17)), torch.tensor([20, 15])
    batch = pad_rows(rows)
    base = final_hidden(located, batch)
    for dropping in (TokenDropping("all", 2, 1.0), TokenDropping("short", 2, 0.1, last=20)):
        with drop_tokens(located, dropping, prompts, batch.tokens) as dropped:
            found = final_hidden(located, batch)
        assert not dropped().any()
        torch.testing.assert_close(found[batch.valid], base[batch.valid])
    assert torch.equal(final_hidden(located, batch), base)


@torch.no_grad()
def test_each_row_drops_its_own_tokens():
    located = locate(tiny_model())
    rows, prompts = random_rows(2, (24, 17)), torch.tensor([20, 15])
    batch = pad_rows(rows)
    with drop_tokens(located, DROPPING, prompts, batch.tokens) as dropped:
        together = final_hidden(located, batch)
    for index, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        kept = ~dropped()[index, : len(row)]
        with drop_tokens(located, DROPPING, prompt[None], row[None]) as alone:
            found = final_hidden(located, pad_rows([row]))[0]
        assert torch.equal(~alone()[0], kept)
        torch.testing.assert_close(together[index, : len(row)][kept], found[kept])


def test_a_depth_that_the_model_does_not_have_is_refused():
    located, row = locate(tiny_model()), random_rows(1, (20,))[0]
    with (
        pytest.raises(ValueError, match="depth 3 of 3 layers"),
        drop_tokens(located, TokenDropping("deep", 3, 0.5), torch.tensor([18]), row[None]),
    ):
        pass
