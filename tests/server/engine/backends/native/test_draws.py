"""Draws of the native kernels, with and without head screening, against `draw.choose`."""

import numpy as np
import pytest
import torch

from server.engine.backends.native.head_screening import build_head_screen
from server.engine.backends.native.library import NativeEngine, is_available
from server.engine.backends.native.model import head_screen_struct, matrix_struct
from server.engine.backends.native.packing import pack, quantise
from server.engine.draw import Draw, choose, key_of
from tests.support.native import instruction_sets

pytestmark = pytest.mark.skipif(not is_available(), reason="the native kernels are not built")
each_isa = pytest.mark.parametrize("isa", instruction_sets() or [None])

OUTPUTS, INPUTS = 5000, 96
KINDS = [
    Draw(),
    Draw(1.0),
    Draw(0.3),
    Draw(4.0),
    Draw(1.0, top_k=1),
    Draw(1.0, top_k=40),
    Draw(0.7, top_k=64, top_p=0.95),
    Draw(1.0, top_k=50, min_p=0.1),
    Draw(1.0, top_p=0.9),
    Draw(0.5, top_p=0.5),
    Draw(2.0, top_p=0.8, min_p=0.02),
    Draw(1.0, min_p=0.05),
]


class Head:
    """A head whose logits are about as far apart as those of a language model."""

    def __init__(self, bits=8, outputs=OUTPUTS, biased=False):
        generator = torch.Generator().manual_seed(8)
        weight = torch.randn(outputs, INPUTS, generator=generator)
        weight *= torch.linspace(0.6, 1.4, outputs)[:, None]
        bias = torch.randn(outputs, generator=generator) if biased else None
        codes = quantise(weight, bits)
        self.packed = pack(codes, bias)
        self.screen = build_head_screen(codes, torch.randn(64, INPUTS, generator=generator))
        self.x = 0.3 * torch.randn(len(KINDS), INPUTS, generator=generator)
        self.matrix, self.coarse = matrix_struct(self.packed), head_screen_struct(self.screen)

    def logits(self, engine):
        y = torch.empty(len(self.x), self.packed.outputs)
        engine.project(self.matrix, self.x, y)
        return y


def draws_at(position):
    return [
        kind._replace(key=key_of(seed, position)) if kind.temperature else kind
        for seed, kind in enumerate(KINDS)
    ]


@each_isa
@pytest.mark.parametrize(("bits", "biased"), [(8, False), (8, True), (4, False)])
def test_draws_are_those_of_all_logits(isa, bits, biased):
    engine, head = NativeEngine(2, isa), Head(bits, biased=biased)
    logits = head.logits(engine)
    for position in range(8 if isa == "portable" else 60):
        draws = draws_at(position)
        expected = [choose(row, one) for row, one in zip(logits, draws, strict=True)]
        assert engine.draw(head.matrix, None, head.x, draws) == expected
        assert engine.draw(head.matrix, head.coarse, head.x, draws) == expected


def masks_of(outputs, share, rows, seed=0):
    """Masks of `rows` rows that allow about a share of the outputs, one at least."""
    generator = torch.Generator().manual_seed(seed)
    allowed = torch.rand(rows, outputs, generator=generator) < share
    allowed[torch.arange(rows), torch.randint(outputs, (rows,), generator=generator)] = True
    padded = torch.nn.functional.pad(allowed, (0, -outputs % 32)).numpy()
    return torch.from_numpy(np.packbits(padded, axis=1, bitorder="little").view(np.int32))


@each_isa
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.999])
@pytest.mark.parametrize(("bits", "biased"), [(8, False), (8, True), (4, False)])
def test_draws_keep_to_token_masks(isa, bits, biased, share):
    engine, head = NativeEngine(2, isa), Head(bits, biased=biased)
    logits = head.logits(engine)
    for position in range(2 if isa == "portable" else 12):
        masks = masks_of(OUTPUTS, share, len(KINDS), position)
        draws = [
            one if row % 5 == 4 else one._replace(allowed=masks[row])
            for row, one in enumerate(draws_at(position))
        ]
        expected = [choose(row, one) for row, one in zip(logits, draws, strict=True)]
        assert engine.draw(head.matrix, None, head.x, draws) == expected
        assert engine.draw(head.matrix, head.coarse, head.x, draws) == expected


def test_a_mask_that_allows_nothing_draws_nothing():
    engine, head = NativeEngine(2), Head()
    nothing = torch.zeros(-(-OUTPUTS // 32), dtype=torch.int32)
    draws = [one._replace(allowed=nothing) for one in draws_at(0)]
    for coarse in (None, head.coarse):
        assert engine.draw(head.matrix, coarse, head.x, draws) == [-1] * len(draws)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_draw_depends_neither_on_its_batch_nor_on_threads(threads):
    head = Head()
    many, alone = NativeEngine(2), NativeEngine(threads)
    for position in range(20):
        draws = draws_at(position)
        expected = many.draw(head.matrix, head.coarse, head.x, draws)
        for row, one in enumerate(draws):
            x = head.x[row : row + 1]
            assert alone.draw(head.matrix, head.coarse, x, [one]) == [expected[row]]
            assert alone.draw(head.matrix, None, x, [one]) == [expected[row]]


def test_frequencies_follow_the_softmax():
    engine, head = NativeEngine(2), Head(outputs=200)
    logits, count = head.logits(engine)[0] / 0.8, 20_000
    draws = [Draw(0.8, key=key_of(1, position)) for position in range(count)]
    x = head.x[:1].expand(count, -1).contiguous()
    found = torch.tensor(engine.draw(head.matrix, head.coarse, x, draws)).bincount(minlength=200)
    expected = logits.softmax(0)
    z = (found - count * expected) / (count * expected).sqrt()
    assert z[count * expected > 10].abs().max() < 4.5
    assert 0.5 * (found / count - expected).abs().sum() < 0.03


@pytest.mark.parametrize(
    "draw",
    [
        Draw(1e30, key=3),
        Draw(1e30, top_p=0.99, key=3),
        Draw(2e-5, key=3),
        Draw(2e-5, top_p=0.3, key=3),
        Draw(1.0, top_p=0.0, key=3),
        Draw(1.0, top_p=1 - 2e-7, key=3),
        Draw(1.0, top_k=2**62, key=3),
        Draw(1.0, top_k=OUTPUTS - 1, key=3),
        Draw(1.0, top_k=OUTPUTS // 2, top_p=0.999, key=3),
        Draw(1.0, min_p=1.0, key=3),
        Draw(1.0, min_p=1e-46, key=3),
        Draw(1.0, min_p=1e-30, top_p=0.9999, key=2**64 - 1),
    ],
)
def test_extreme_filters_are_those_of_all_logits(draw):
    engine, head = NativeEngine(2), Head()
    expected = [choose(row, draw) for row in head.logits(engine)]
    draws = [draw] * len(head.x)
    assert engine.draw(head.matrix, None, head.x, draws) == expected
    assert engine.draw(head.matrix, head.coarse, head.x, draws) == expected


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_rows_that_are_no_numbers_give_no_token(bad):
    engine, head = NativeEngine(2), Head()
    expected = engine.draw(head.matrix, None, head.x, draws_at(0))
    x = head.x.clone()
    x[1::2, 7] = bad
    expected[1::2] = [-1] * len(expected[1::2])
    for screen in (head.coarse, None):
        assert engine.draw(head.matrix, screen, x, draws_at(0)) == expected
