"""Products and arg-max of the native kernels, by instruction set, against PyTorch."""

import pytest
import torch

from server.engine.backends.native.head_screening import build_head_screen
from server.engine.backends.native.library import NativeEngine, is_available
from server.engine.backends.native.model import head_screen_struct, matrix_struct
from server.engine.backends.native.packing import pack, quantise
from server.engine.draw import Draw
from tests.support.native import instruction_sets

pytestmark = pytest.mark.skipif(not is_available(), reason="the native kernels are not built")
each_isa = pytest.mark.parametrize("isa", instruction_sets() or [None])
each_bits = pytest.mark.parametrize("bits", [4, 8])


def rounded_to_int8(x: torch.Tensor) -> torch.Tensor:
    """Return inputs as the kernels round them: 127 steps to the largest of each 32."""
    groups = torch.nn.functional.pad(x, (0, -x.shape[1] % 32)).unflatten(1, (-1, 32))
    scale = groups.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 127
    return ((groups / scale).round() * scale).flatten(1)[:, : x.shape[1]]


@each_isa
@each_bits
@pytest.mark.parametrize("input_major", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("size", [(64, 96), (50, 70), (17, 33), (16, 1536), (48, 600)])
def test_products_equal_those_of_the_rounded_numbers(isa, bits, input_major, threads, size):
    generator = torch.Generator().manual_seed(3)
    engine = NativeEngine(threads, isa)
    outputs, inputs = size
    for rows in (0, 1, 3, 4, 5, 12, 17, 70):
        weight = torch.randn(outputs, inputs, generator=generator)
        bias = torch.randn(outputs, generator=generator)
        codes = quantise(weight, bits)
        matrix = pack(codes, bias, input_major)
        x = torch.randn(rows, inputs, generator=generator)
        y = torch.empty(rows, outputs)
        engine.project(matrix_struct(matrix), x, y)
        expected = rounded_to_int8(x).double() @ codes.values().double().t() + bias
        torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-4)


@each_isa
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("size", [(384, 64), (50, 70), (17, 33), (5000, 96)])
@pytest.mark.parametrize("rows", [1, 3, 9])
def test_argmax_is_the_arg_max_of_the_product(isa, biased, threads, size, rows):
    generator = torch.Generator().manual_seed(5)
    engine = NativeEngine(threads, isa)
    outputs, inputs = size
    weight = torch.randn(outputs, inputs, generator=generator)
    weight[outputs // 2] = weight[outputs // 3]  # a tie, if it is the highest
    bias = torch.randn(outputs, generator=generator) if biased else None
    codes = quantise(weight, 8)
    packed = pack(codes, bias)
    screen = build_head_screen(codes, torch.randn(9, inputs, generator=generator))
    matrix = matrix_struct(packed)
    x = torch.randn(rows, inputs, generator=generator)
    x[0] = 9 * weight[outputs // 3]
    x[-1, : inputs // 2] = 0
    y = torch.empty(rows, outputs)
    engine.project(matrix, x, y)
    for given in (head_screen_struct(screen), None):
        assert engine.draw(matrix, given, x, [Draw()] * len(x)) == y.argmax(-1).tolist()


@each_isa
@each_bits
@pytest.mark.parametrize("index", [0, 13, 69])
@pytest.mark.parametrize("bad", [torch.nan, -torch.nan, torch.inf, -torch.inf])
def test_values_that_are_not_finite_spoil_only_their_own_row(isa, bits, index, bad):
    generator = torch.Generator().manual_seed(6)
    engine = NativeEngine(2, isa)
    codes = quantise(torch.randn(3000, 70, generator=generator), bits)
    packed = pack(codes)
    screen = build_head_screen(codes, torch.randn(9, 70, generator=generator))
    matrix = matrix_struct(packed)
    x = torch.randn(6, 70, generator=generator)
    y, alone = torch.empty(6, 3000), torch.empty(6, 3000)
    engine.project(matrix, x, alone)
    x[2, index] = x[5, index] = bad
    engine.project(matrix, x, y)
    assert not y[[2, 5]].isfinite().any()
    assert torch.equal(y[[0, 1, 3, 4]], alone[[0, 1, 3, 4]])
    expected = alone.argmax(-1).tolist()
    expected[2] = expected[5] = -1
    for given in (head_screen_struct(screen) if bits == 8 else None, None):
        assert engine.draw(matrix, given, x, [Draw()] * len(x)) == expected


def test_coarse_values_are_within_their_bound_of_error():
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(3000, 150, generator=generator) + torch.randn(150, generator=generator)
    codes = quantise(weight * torch.linspace(0.5, 2, 3000)[:, None], 8)
    x = torch.randn(200, 150, generator=generator).cumsum(0)
    screen = build_head_screen(codes, x)
    z = torch.nn.functional.pad(x, (0, 10))[:, screen.order.long()] * screen.factor
    scale, planes = screen.scale[:3000], screen.planes.repeat_interleave(32)
    exact = codes.values() @ x.T - (screen.mean[:150] @ x.T)
    coarse = scale[:, None] * ((coarse_codes(screen, 3000) - (4.0**planes - 1) / 2) @ z.T)
    bound = (z.square().unflatten(1, (-1, 32)).sum(2) @ screen.code_error).sqrt()
    bound = bound * screen.spread[:3000, None]
    assert 0.4 < ((exact - coarse).abs() / bound).max() < 0.9  # safe, and small enough to be of use


@each_isa
def test_argmax_holds_where_one_input_outweighs_all_others(isa):
    """The error is then no sum of many: a weight far out is clipped by much, and must be found."""
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(6000, 128, generator=generator)
    weight[1234, 100] = 9.0
    codes = quantise(weight, 8)
    sample = torch.ones(1, 128)
    sample[:, 100] = 1e-3  # seems to have no influence
    x = torch.full((1, 128), 1e-4)
    x[:, 100] = 50.0
    packed, screen = pack(codes), build_head_screen(codes, sample)
    engine = NativeEngine(2, isa)
    outputs = engine.draw(matrix_struct(packed), head_screen_struct(screen), x, [Draw()])
    assert outputs == (codes.values() @ x[0]).argmax(0, keepdim=True).tolist() == [1234]


def coarse_codes(screen, outputs: int) -> torch.Tensor:
    """Return the codes of a head screen, unpacked as `native.h` describes them."""
    planes = screen.planes.tolist()
    blocks = screen.data.unflatten(0, (-1, sum(planes), 2, 16, 4))  # lines of 16 outputs
    digits = torch.stack([blocks >> 2 * t & 3 for t in range(4)], dim=-2).transpose(2, 3)
    digits = digits.flatten(3).float()  # [output blocks, planes, 16, 32]
    parts, at = [], 0
    for count in planes:
        weights = 4.0 ** torch.arange(count - 1, -1, -1)
        parts.append((digits[:, at : at + count] * weights[:, None, None]).sum(1))
        at += count
    return torch.cat(parts, dim=2).flatten(0, 1)[:outputs]


def test_an_unknown_instruction_set_is_refused():
    with pytest.raises(RuntimeError, match="no 'mmx'"):
        NativeEngine(1, "mmx")
