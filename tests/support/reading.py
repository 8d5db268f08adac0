"""What tests of readers share: maps of tiny models, shallow tokens, and a driven decoder."""

import itertools

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pruners.architecture import Shape, locate
from pruners.reading.maps import KVMaps
from pruners.reading.reader import PromptReader
from pruners.reading.realize import read_by
from pruners.variant import VariantSpec
from server.engine.backends.base import Decoder, Segment
from tests.support.parameters import random_order
from tests.support.tiny import VOCAB

LAST = 5
"""Tokens at a prompt's end that the readers of tests read in full."""


def random_tokens(count: int, seed: int = 0) -> list[int]:
    """Return random tokens of the tiny vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCAB, (count,), generator=generator).tolist()


def tiny_maps(shape: Shape) -> dict[int, KVMaps]:
    """Return random maps of all depths, as stored: other keys and values than the model's own."""
    generator = torch.Generator().manual_seed(3)
    size = (2 * shape.kv_groups * shape.head_dim, shape.hidden + 1)
    return {
        depth: KVMaps(
            depth, 0.15 * torch.randn(shape.layers - depth, *size, generator=generator)
        ).quantised()
        for depth in range(1, shape.layers)
    }


def served_order(shape: Shape) -> Tensor:
    """Return the order of KV groups in which `driving.weights_of` serves a model."""
    return random_order(shape.layers, shape.kv_groups, 7)


def reader_of(depth: int, numbers: bool = True) -> tuple[PromptReader, Tensor]:
    """Return a reader, and which tokens are numbers: one token in twenty."""
    found = torch.rand(VOCAB, generator=torch.Generator().manual_seed(9)) < 0.05
    return PromptReader(f"to-{depth}", depth, last=LAST, numbers=numbers), found


def marks_of(reader: PromptReader, numbers: Tensor, prompt: list[int], written: int) -> list[bool]:
    """Return which tokens are shallow: of a prompt, and none of those written after it."""
    return [*reader.shallow(torch.tensor(prompt), numbers).tolist(), *[False] * written]


@torch.no_grad()
def transformers_logits(
    model: PreTrainedModel, maps: KVMaps, reader: PromptReader, tokens: list[int], prompt: int
) -> Tensor:
    """Return the logits `[LAST + written, vocab]` of what follows the shallow tokens."""
    numbers, ids = reader_of(reader.depth)[1], torch.tensor([tokens])
    with read_by(locate(model), reader, maps, torch.tensor([prompt]), ids, numbers):
        return model(ids, use_cache=False).logits[0, prompt - LAST :]


def chunk(
    segment: Segment, marks: list[bool], depth: int, begin: int, end: int
) -> tuple[Segment, int]:
    """Return tokens `begin..end` of a segment, and how many last rows are full."""
    part = marks[begin:end]
    full = len(list(itertools.takewhile(lambda mark: not mark, reversed(part))))
    return Segment(
        segment.tokens[begin:end], segment.cache, segment.variant, full, part, depth
    ), full


def logits_in_chunks(
    decoder: Decoder,
    variant: VariantSpec,
    tokens: list[int],
    marks: list[bool],
    depth: int,
    cuts: list[int],
) -> Tensor:
    """Return logits of the last rows of each chunk that are in full, `[rows, vocab]`."""
    cache, rows = decoder.cache.open(), []
    assert cache.reserve(len(tokens))
    whole = Segment(tokens, cache, variant)
    for begin, end in itertools.pairwise([0, *cuts, len(tokens)]):
        segment, full = chunk(whole, marks, depth, begin, end)
        hidden = decoder.forward([segment])
        rows.append(decoder.logits(hidden[len(hidden) - full :]))
    cache.close()
    return torch.cat(rows)
