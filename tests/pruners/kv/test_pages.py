"""Page-wise selection against plain loops over pages, and against attention to few keys."""

import pytest
import torch
from transformers import DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pruners.architecture import UnsupportedModelError, locate
from pruners.calibration.layer_replay import final_hidden
from pruners.data.rows import pad_rows
from pruners.kv.page_selection import PageSelection
from pruners.kv.pages import forward_with_pages
from tests.support.models import PRUNED_FAMILIES, random_rows, tiny_model

CAUSAL = [family for family in PRUNED_FAMILIES if family != "bert"]
SELECTION = PageSelection(16, page=4, sinks=2, recent=3)


def pages_by_hand(queries, keys, scale: float, selection: PageSelection) -> set[int]:
    """Return the tokens that one KV group's queries `[heads, dim]` of the last token attend to."""
    tokens, page = len(keys), selection.page
    starts = range(0, tokens, page)
    complete = [start for start in starts if start + page <= tokens - selection.recent]
    weights = torch.zeros(len(complete))
    for query in queries:
        bounds = []
        for start in complete:
            columns = keys[start : start + page].T
            pairs = zip(query.tolist(), columns.tolist(), strict=True)
            bounds.append(sum(max(q * min(column), q * max(column)) for q, column in pairs))
        weights += torch.tensor([scale * bound for bound in bounds]).softmax(0)
    kept = [
        place
        for place, start in enumerate(starts)
        if start < selection.sinks or start not in complete
    ]
    others = sorted(set(range(len(starts))) - set(kept), key=lambda place: -weights[place])
    kept += others[: selection.budget // page - len(kept)]
    return {token for place in kept for token in range(tokens)[place * page : (place + 1) * page]}


def test_pages_are_those_of_the_highest_bounds():
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(2, 6, 5, 8, generator=generator)
    keys = torch.randn(2, 3, 42, 8, generator=generator)
    found = SELECTION.select(queries, keys, 0.7)
    assert found.shape == (2, 3, 5, 42)
    for row, group, new in torch.cartesian_prod(*map(torch.arange, (2, 3, 5))).tolist():
        seen = 42 - 5 + new + 1
        asking = queries[row, 2 * group : 2 * group + 2, new]
        expected = pages_by_hand(asking, keys[row, group, :seen], 0.7, SELECTION)
        assert set(found[row, group, new].nonzero()[:, 0].tolist()) == expected
        assert len(expected) <= 16


def decode_by_hand(located, row: torch.Tensor, prompt: int) -> torch.Tensor:
    """Return final hidden states of the tokens behind the prompt, one after the other."""

    def attend(module, query, key, value, attention_mask, scaling, **_):
        groups = key.shape[1]
        found = []
        for group, asking in enumerate(query[0, :, 0].chunk(groups)):
            taken = pages_by_hand(asking, key[0, group], scaling, SELECTION)
            window = located.layers[module.layer_idx].window or len(row)
            taken = [one for one in sorted(taken) if one > key.shape[2] - 1 - window]
            weights = (scaling * asking @ key[0, group, taken].T).softmax(-1)
            found.append(weights @ value[0, group, taken])
        return torch.cat(found)[None, None], None

    cache = DynamicCache()
    body = located.model.base_model
    body(row[None, :prompt], past_key_values=cache, use_cache=True)
    ALL_ATTENTION_FUNCTIONS.register("pages_by_hand", attend)
    located.model.set_attn_implementation("pages_by_hand")
    finals = []
    for place in range(prompt, len(row)):
        output = body(
            row[None, place : place + 1],
            past_key_values=cache,
            position_ids=torch.tensor([[place]]),
            use_cache=True,
        )
        finals.append(output.last_hidden_state[0, 0])
    located.model.set_attn_implementation("sdpa")
    hidden = torch.stack(finals)
    return located.final_norm(hidden) if located.norm_in_head else hidden


@torch.no_grad()
@pytest.mark.parametrize("family", CAUSAL)
def test_the_model_attends_to_the_pages_that_are_selected(family):
    located = locate(tiny_model(family))
    row, prompt = random_rows(1, (46,))[0], 38
    found = forward_with_pages(located, pad_rows([row]), prompt, SELECTION)[0]
    expected = decode_by_hand(located, row, prompt)
    torch.testing.assert_close(found[prompt:], expected, rtol=1e-4, atol=1e-4)
    base = final_hidden(located, pad_rows([row]))[0]
    torch.testing.assert_close(found[:prompt], base[:prompt], rtol=1e-4, atol=1e-4)
    if family not in ("mistral", "phi3"):  # their window of 8 is what the last pages hold
        assert not torch.allclose(found[prompt:], base[prompt:], atol=1e-3)


@torch.no_grad()
def test_a_budget_of_all_tokens_is_the_base():
    located = locate(tiny_model())
    batch = pad_rows(random_rows(2, (40,)))
    found = forward_with_pages(located, batch, 30, PageSelection(44, page=4))
    torch.testing.assert_close(found, final_hidden(located, batch), rtol=1e-4, atol=1e-4)


def test_impossible_selections_are_refused():
    with pytest.raises(ValueError, match="give at least 48"):
        PageSelection(47)
    rows = random_rows(2, (9, 7))
    with pytest.raises(ValueError, match="equally long"):
        forward_with_pages(locate(tiny_model()), pad_rows(rows), 4, PageSelection(48))
    with pytest.raises(UnsupportedModelError, match="encoder"):
        forward_with_pages(locate(tiny_model("bert")), pad_rows(rows[:1]), 4, PageSelection(48))
