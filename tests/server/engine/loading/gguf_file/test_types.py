"""Each type of tensor: exact values, and codes rounded as its module says."""

import gguf
import numpy as np
import pytest
import torch

from server.engine.backends.native.packing import quantise, relative_error
from server.engine.loading.gguf_file.types import tensor_type, tensor_types
from tests.support.gguf_blocks import QUANTISED, dequantised, random_blocks

EXACT = ["Q4_0", "Q4_1", "Q5_0", "Q8_0", "IQ4_NL"]
ROUNDED = ["Q5_1", "Q2_K", "Q3_K", "Q5_K", "Q6_K"]  # to 8 bits
ROWS, INPUTS = 300, 1024  # more than is converted at a time


@pytest.mark.parametrize("kind", QUANTISED)
def test_values_are_those_of_the_gguf_package(kind: str):
    raw = random_blocks(kind, 40, 512)
    found = tensor_type(kind).values(raw[3:30:2])
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found.numpy(), dequantised(raw, kind)[3:30:2])


@pytest.mark.parametrize("kind", ["F32", "F16", "F64", "BF16"])
def test_floats_have_values_and_no_codes(kind: str):
    weight = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float16)
    if kind == "BF16":
        data = gguf.quantize(weight.astype(np.float32), gguf.GGMLQuantizationType.BF16)
        wanted = torch.from_numpy(weight).float().bfloat16().float().numpy()
    else:
        data, wanted = weight.astype(f"f{int(kind[1:]) // 8}"), weight.astype(np.float32)
    np.testing.assert_array_equal(tensor_type(kind).values(data).numpy(), wanted)
    np.testing.assert_array_equal(tensor_type(kind).values(data[0]).numpy(), wanted[0])
    assert tensor_type(kind).codes(data) is None


@pytest.mark.parametrize("kind", EXACT)
def test_codes_keep_every_value(kind: str):
    raw = random_blocks(kind, ROWS, INPUTS)
    codes = tensor_type(kind).codes(raw)
    assert codes is not None
    assert codes.bits == (4 if kind in ("Q4_0", "Q4_1") else 8)
    np.testing.assert_array_equal(codes.values().numpy(), dequantised(raw, kind))


def test_q4_k_rounds_its_scales_and_minima_to_fp16():
    raw = random_blocks("Q4_K", ROWS, INPUTS)
    codes = tensor_type("Q4_K").codes(raw)
    assert codes is not None
    assert codes.minima is not None
    blocks = raw.reshape(-1, 144)
    scales, minima = gguf.quants.Q4_K.get_scale_min(blocks[:, 4:16])
    factors = np.ascontiguousarray(blocks[:, :4]).view(np.float16).astype(np.float32)
    products = [factors[:, :1] * scales.astype("f4"), factors[:, 1:] * minima.astype("f4")]
    scale, minimum = (product.astype(np.float16).reshape(ROWS, -1) for product in products)
    np.testing.assert_array_equal(codes.scales.numpy(), scale)
    np.testing.assert_array_equal(codes.minima.numpy(), -minimum)
    exact = dequantised(raw, "Q4_K")
    limit = 2.0**-11 * (15 * np.abs(scale).max() + np.abs(minimum).max())
    assert np.abs(codes.values().numpy() - exact).max() <= limit
    assert relative_error(codes, torch.from_numpy(exact)) < 5e-4


def test_iq4_xs_rounds_its_scales_to_fp16():
    raw = random_blocks("IQ4_XS", ROWS, INPUTS)
    codes, exact = tensor_type("IQ4_XS").codes(raw), dequantised(raw, "IQ4_XS")
    assert codes is not None
    found = codes.values().numpy()
    assert (np.abs(found - exact) <= 2.0**-11 * np.abs(exact)).all()
    assert (found != exact).any()


@pytest.mark.parametrize("kind", ROUNDED)
def test_others_are_rounded_to_the_nearest_of_8_bits(kind: str):
    raw = random_blocks(kind, ROWS, INPUTS)
    codes, exact = tensor_type(kind).codes(raw), torch.from_numpy(dequantised(raw, kind))
    assert codes is not None
    assert codes.bits == 8
    step = codes.scales.float().repeat_interleave(32, 1)
    assert bool(((codes.values() - exact).abs() <= 0.5001 * step).all())
    usual = quantise(exact, 8)
    assert relative_error(codes, exact) < 1.1 * relative_error(usual, exact) < 0.01


@pytest.mark.parametrize("kind", QUANTISED)
def test_rows_are_converted_one_like_the_other(kind: str):
    raw = random_blocks(kind, ROWS, INPUTS)
    whole, part = tensor_type(kind).codes(raw), tensor_type(kind).codes(raw[200:203])
    assert whole is not None
    assert part is not None
    assert torch.equal(whole.codes[200:203], part.codes)
    assert torch.equal(whole.scales[200:203], part.scales)


@pytest.mark.parametrize("kind", QUANTISED)
def test_scales_beyond_fp16_have_no_codes(kind: str):
    assert tensor_type(kind).codes(random_blocks(kind, 4, 512, scale=1e9)) is None


@pytest.mark.parametrize("kind", ["Q4_K", "IQ4_XS", "Q6_K"])
@pytest.mark.parametrize("scale", [1e-2, 1e-3, 1e-4])
def test_small_scales_lose_no_precision(kind: str, scale: float):
    """Below 6e-5 numbers of fp16 have fewer bits."""
    raw = random_blocks(kind, 4, 512, scale=scale)
    codes, exact = tensor_type(kind).codes(raw), torch.from_numpy(dequantised(raw, kind))
    assert codes is not None
    assert int(codes.codes.int().abs().max()) <= 127
    limit = quantise(exact, 8) if kind == "Q6_K" else None
    most = 5e-4 if limit is None else 1.1 * relative_error(limit, exact)
    assert relative_error(codes, exact) <= most


def test_codes_that_kernels_do_not_have_are_none():
    raw = random_blocks("Q8_0", 4, 64)
    raw[2, 40] = 128  # -128
    assert tensor_type("Q8_0").codes(raw) is None
    assert tensor_type("Q8_0").codes(raw[:2]) is not None


def test_types_are_those_of_the_files_in_their_folder():
    assert tensor_types() == {*QUANTISED, "F32", "F16", "BF16", "F64"}


def test_a_type_without_a_file_has_values_and_no_codes():
    raw = np.random.default_rng(0).integers(0, 256, (3, 2 * 54), np.uint8)
    raw = np.where(np.isfinite(raw.view(np.float16)), raw.view(np.float16), 1).view(np.uint8)
    found = tensor_type("TQ1_0").values(raw)
    assert found.shape == (3, 512)
    np.testing.assert_array_equal(found.numpy(), dequantised(raw, "TQ1_0"))
    assert tensor_type("TQ1_0").codes(raw) is None


@pytest.mark.parametrize("name", ["Q8_K", "I32", "base", "no such type"])
def test_types_that_cannot_be_read_are_unknown(name: str):
    with pytest.raises(KeyError):
        tensor_type(name)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K", "IQ4_XS"])
def test_products_beyond_fp16_have_no_codes(kind: str):
    """Where the factors in the file are still numbers of fp16."""
    raw = random_blocks(kind, 4, 512, scale=3e6 if kind != "IQ4_XS" else 3e8)
    assert np.isfinite(dequantised(raw, kind)).all()
    assert tensor_type(kind).codes(raw) is None
