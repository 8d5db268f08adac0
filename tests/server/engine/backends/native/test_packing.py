"""Codes and their layout: exact for what GGUF holds, and read back block by block."""

import gguf
import numpy as np
import pytest
import torch

from server.engine.backends.native.packing import (
    BLOCK,
    GROUP,
    pack,
    quantise,
    relative_error,
    unpack,
)

SHAPES = [(64, 96), (16, 32), (50, 70), (1, 33)]


@pytest.mark.parametrize(("name", "bits"), [("Q4_0", 4), ("Q4_1", 4), ("Q8_0", 8)])
def test_what_gguf_holds_comes_back_exactly(name: str, bits: int):
    kind = getattr(gguf.GGMLQuantizationType, name)
    weight = np.random.default_rng(0).standard_normal((256, 512), dtype=np.float32)
    weight[3, :32] = 0  # an empty group
    held = gguf.quants.dequantize(gguf.quants.quantize(weight, kind), kind)
    codes = quantise(torch.from_numpy(held), bits)
    np.testing.assert_allclose(codes.values().numpy(), held, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("bits", "most"), [(4, 0.09), (8, 0.006)])
def test_other_weights_are_rounded_to_nearby_values(bits: int, most: float):
    weight = torch.randn(96, 160, generator=torch.Generator().manual_seed(1))
    codes = quantise(weight, bits)
    assert 0 < relative_error(codes, weight) < most
    assert codes.values().shape == weight.shape


def unpacked(matrix) -> torch.Tensor:
    """Every value of a packed matrix, one by one, by the text of `native.h`."""
    blocks = (-(-matrix.outputs // BLOCK), -(-matrix.inputs // GROUP))
    raw = matrix.data.numpy().reshape(blocks[0] * blocks[1], -1)
    found = np.zeros((blocks[0] * BLOCK, blocks[1] * GROUP), np.float32)
    for row in range(found.shape[0]):
        for column in range(found.shape[1]):
            at = (row // BLOCK, column // GROUP)
            order = at[1] * blocks[0] + at[0] if matrix.input_major else at[0] * blocks[1] + at[1]
            block, lane, place = raw[order], row % BLOCK, column % GROUP
            scales = block[256 if matrix.bits == 4 else 512 :].view(np.float16)
            if matrix.bits == 4:
                code = block[64 * (place % 16 // 4) + 4 * lane + place % 4]
                code = code & 15 if place < 16 else code >> 4
                value = float(code) * float(scales[lane]) + float(scales[BLOCK + lane])
            else:
                code = block[64 * (place // 4) + 4 * lane + place % 4].view(np.int8)
                value = float(code) * float(scales[lane])
            found[row, column] = value
    return torch.from_numpy(found[: matrix.outputs, : matrix.inputs])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("input_major", [False, True])
def test_a_packed_matrix_holds_its_values_where_the_kernels_look(shape, bits, input_major):
    codes = quantise(torch.randn(*shape, generator=torch.Generator().manual_seed(2)), bits)
    torch.testing.assert_close(unpacked(pack(codes, None, input_major)), codes.values())


def test_unpacked_codes_are_those_that_were_packed():
    codes = quantise(torch.randn(50, 70, generator=torch.Generator().manual_seed(1)), 8)
    for input_major in (False, True):
        found = unpack(pack(codes, None, input_major))
        assert torch.equal(found.codes, codes.codes)
        assert torch.equal(found.scales, codes.scales)
