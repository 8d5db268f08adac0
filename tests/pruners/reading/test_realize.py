"""A model that reads as a reader says, against one that reads token by token into a cache."""

from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from transformers import DynamicCache

from pruners.architecture import locate
from pruners.calibration.layer_replay import final_hidden
from pruners.data.rows import pad_rows
from pruners.kv.base import SINK_TOKENS, rotate
from pruners.reading.fit import fit_maps
from pruners.reading.maps import features
from pruners.reading.reader import NUMBER, SPECIAL, PromptReader, token_kinds
from pruners.reading.realize import read_by
from tests.support.models import FAMILIES, VOCAB, random_rows, tiny_model

DEPTH = 2


def read_token_by_token(located, maps, tokens, shallow):
    """Return final hidden states `[length, hidden]`; shallow tokens' caches are overwritten."""
    config = located.model.config
    cache, finals = DynamicCache(config=config), []
    for place, token in enumerate(tokens.tolist()):
        positions = torch.tensor([[place]])
        output = located.model.base_model(
            torch.tensor([[token]]),
            past_key_values=cache,
            position_ids=positions,
            use_cache=True,
            output_hidden_states=True,
        )
        finals.append(output.last_hidden_state[0, 0])
        if not shallow[place]:
            continue
        x = features(output.hidden_states[maps.depth][0, 0])
        for index in range(maps.depth, config.num_hidden_layers):
            layer = located.layers[index]
            keys, values = maps.keys_values(index, x)
            keys = layer.attention.key_heads(keys, located.shape.head_dim)
            values = values.view(-1, located.shape.head_dim)
            cos, sin = located.rope_tables(positions[0], layer.rope_layer_type)
            cache.layers[index].keys[0, :, -1] = rotate(keys, cos, sin)
            cache.layers[index].values[0, :, -1] = values
    return torch.stack(finals)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_full_tokens_see_what_a_cache_of_mapped_keys_would_show(family):
    located = locate(tiny_model(family))
    row, prompt = random_rows(1, (24,))[0], 18
    maps = fit_maps(located, random_rows(8, (30,), seed=1), [DEPTH])[DEPTH]
    reader = PromptReader("two", DEPTH, last=3)
    with read_by(located, reader, maps, torch.tensor([prompt]), row[None]) as shallow:
        found = final_hidden(located, pad_rows([row]))[0]
    full = ~shallow()[0]
    assert (~full).nonzero()[:, 0].tolist() == list(range(SINK_TOKENS, prompt - 3))
    expected = read_token_by_token(located, maps, row, ~full)
    torch.testing.assert_close(found[full], expected[full], rtol=1e-4, atol=1e-4)
    base = final_hidden(located, pad_rows([row]))[0]
    assert not torch.allclose(found[prompt - 3], base[prompt - 3], atol=1e-3)


@torch.no_grad()
def test_a_prompt_without_shallow_tokens_is_the_bases_own_bit_for_bit():
    located = locate(tiny_model())
    rows = random_rows(2, (14, 9))
    batch = pad_rows(rows)
    maps = fit_maps(located, rows, [DEPTH])[DEPTH]
    reader = PromptReader("two", DEPTH, last=16)
    expected = final_hidden(located, batch)
    with read_by(located, reader, maps, torch.tensor([14, 9]), batch.tokens):
        found = final_hidden(located, batch)
    assert torch.equal(found, expected)
    assert torch.equal(final_hidden(located, batch), expected)


@torch.no_grad()
def test_padding_and_other_rows_change_nothing():
    located = locate(tiny_model())
    rows, prompts = random_rows(2, (28, 19)), torch.tensor([20, 15])
    maps = fit_maps(located, rows, [DEPTH])[DEPTH]
    reader = PromptReader("two", DEPTH, last=2, attended=0.25)
    batch = pad_rows(rows)
    with read_by(located, reader, maps, prompts, batch.tokens):
        together = final_hidden(located, batch)
    for row, prompt, found in zip(rows, prompts, together, strict=True):
        with read_by(located, reader, maps, prompt[None], row[None]):
            alone = final_hidden(located, pad_rows([row]))[0]
        places = [*range(SINK_TOKENS), *range(int(prompt) - 2, len(row))]
        torch.testing.assert_close(found[places], alone[places], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_what_the_prompts_end_attends_to_is_read_in_full():
    located = locate(tiny_model())
    row, prompt, last = random_rows(1, (30,))[0], 26, 4
    maps = fit_maps(located, [row], [DEPTH])[DEPTH]
    located.model.set_attn_implementation("eager")
    attentions = located.model(row[None], output_attentions=True).attentions[DEPTH - 1][0]
    scores = attentions[:, prompt - last : prompt, :prompt].sum((0, 1))
    pooled = torch.nn.functional.avg_pool1d(scores[None], 5, 1, 2)[0]
    candidates = range(SINK_TOKENS, prompt - last)
    expected = sorted(sorted(candidates, key=lambda i: -pooled[i])[: prompt // 4])
    reader = PromptReader("two", DEPTH, last=last, attended=0.25)
    with read_by(located, reader, maps, torch.tensor([prompt]), row[None]) as shallow:
        final_hidden(located, pad_rows([row]))
    full = [i for i in candidates if not shallow()[0, i]]
    assert full == expected


def test_where_a_turn_begins_is_read_in_full():
    kinds = torch.tensor([0, 0, 0, SPECIAL], dtype=torch.int8)
    prompt = torch.tensor([3, 1, 2, 1, 2, 1, 2, 1, 3, 3, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2])
    shallow = PromptReader("one", 1, last=2, turn=3).shallow(prompt, kinds)
    # After the sinks: up to the two special tokens, and again from 3 tokens after the second.
    assert shallow.nonzero()[:, 0].tolist() == [4, 5, 6, 7, 13, 14, 15, 16, 17]
    shallow = PromptReader("one", 1, last=2, turn=0).shallow(prompt, kinds)
    assert shallow.nonzero()[:, 0].tolist() == [4, 5, 6, 7, 10, 11, 12, 13, 14, 15, 16, 17]


def test_a_byte_of_a_tokenizer_is_no_number_and_a_special_token_is_no_text():
    texts = ["<0x0A>", "<0x31>", "7", "\n7", "a", "<s>", "<|turn_1|>"]
    added = {5: SimpleNamespace(special=True), 6: SimpleNamespace(special=True)}
    tokenizer = MagicMock(added_tokens_decoder=added, all_special_ids=[5])
    tokenizer.__len__.return_value = len(texts)
    tokenizer.convert_ids_to_tokens = lambda ids: [texts[i] for i in ids]
    kinds = token_kinds(tokenizer, 9)
    assert kinds.tolist() == [0, 0, NUMBER, NUMBER, 0, SPECIAL, SPECIAL, 0, 0]


def test_numbers_are_read_in_full_with_the_three_tokens_before_each():
    numbers = torch.zeros(VOCAB, dtype=torch.bool)
    numbers[7] = True
    prompt = torch.tensor([7, 1, 1, 1, 7, 1, 1, 1, 1, 1, 1, 7, 1, 1, 1, 7])
    reader = PromptReader("numbers", 2, last=2, numbers=True)
    shallow = reader.shallow(prompt, numbers)
    assert shallow.nonzero()[:, 0].tolist() == [5, 6, 7]
    assert PromptReader("plain", 2, last=2).shallow(prompt, numbers).sum() == 16 - 4 - 2
    assert not reader.shallow(prompt[:2], numbers).any()


@pytest.mark.parametrize(
    ("reader", "message"),
    [
        (PromptReader("deep", 9), "depth 9 of 3 layers"),
        (PromptReader("none", 0), "depth 0 of 3 layers"),
        (PromptReader("one", 1), "its maps have 2"),
        (PromptReader("named", 2, numbers=True), "numbers"),
    ],
)
def test_a_reader_that_does_not_fit_is_refused(reader, message):
    located = locate(tiny_model())
    row = random_rows(1, (20,))[0]
    maps = fit_maps(located, [row], [2])[2]
    with (
        pytest.raises(ValueError, match=message),
        read_by(located, reader, maps, torch.tensor([18]), row[None]),
    ):
        pass
