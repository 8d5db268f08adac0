"""Maps in 4 bits: against rounding one number after the other, and by what outputs they give."""

import pytest
import torch

from pruners.reading.codes import pack_pairs, round_maps, unpack_pairs

GENERATOR = torch.Generator().manual_seed(5)


def random_maps(hidden: int, layers: int = 2, rows: int = 8) -> torch.Tensor:
    return torch.randn(layers, rows, hidden + 1, generator=GENERATOR)


def correlated_features(hidden: int, tokens: int = 400) -> torch.Tensor:
    """Return features `[tokens, hidden + 1]` of few directions, with a mean, and the constant 1."""
    mixed = torch.randn(tokens, 6, generator=GENERATOR) @ torch.randn(
        6, hidden, generator=GENERATOR
    )
    noise = 0.2 * torch.randn(tokens, hidden, generator=GENERATOR)
    return torch.cat([mixed + noise + 1, torch.ones(tokens, 1)], dim=1)


@pytest.mark.parametrize("hidden", [8, 32, 33, 96, 145])
def test_each_number_goes_to_the_nearest_value_of_its_group(hidden):
    weight = random_maps(hidden)
    found = round_maps(weight)
    values = found.values()
    assert values.shape == weight.shape
    assert torch.equal(values[..., -1], weight[..., -1]), "the bias is kept as it is"
    for layer, row in ((0, 0), (1, 7)):
        for begin in range(0, hidden, 32):
            group = weight[layer, row, begin : min(begin + 32, hidden)].tolist()
            scale = float(found.scales[layer, row, begin // 32])
            minimum = float(found.minima[layer, row, begin // 32])
            assert minimum == pytest.approx(min(group), rel=1e-3)
            assert scale == pytest.approx((max(group) - min(group)) / 15, rel=1e-2, abs=1e-4)
            grid = [minimum + scale * code for code in range(16)]
            nearest = [min(grid, key=lambda value, x=x: abs(value - x)) for x in group]
            part = values[layer, row, begin : begin + len(group)].tolist()
            assert part == pytest.approx(nearest, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("hidden", [64, 81])
def test_rounding_that_knows_the_features_spoils_the_outputs_less(hidden):
    weight, x = random_maps(hidden), correlated_features(hidden)
    outputs = x @ weight.mT

    def error(moment: torch.Tensor | None) -> float:
        found = x @ round_maps(weight, moment).values().mT
        return float((found - outputs).square().mean())

    moment = x.T @ x
    assert error(moment) < 0.2 * error(None)
    assert error(1000 * moment) == pytest.approx(error(moment), rel=0.05)
    assert error(torch.eye(hidden + 1)) == pytest.approx(error(None), rel=0.01)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-7, 1e4])
def test_groups_of_any_size_have_finite_values(size):
    weight = size * torch.ones(1, 2, 65)
    weight[0, 1] *= torch.linspace(-1, 1, 65)
    values = round_maps(weight, torch.eye(65)).values()
    assert values.isfinite().all()
    assert (values - weight).abs().max() <= size / 14 + 2**-24


def test_two_codes_share_a_byte():
    codes = torch.randint(16, (3, 6, 5), dtype=torch.uint8, generator=GENERATOR)
    packed = pack_pairs(codes)
    assert packed.shape == (3, 3, 5)
    assert packed[1, 2, 4] == codes[1, 2, 4] + 16 * codes[1, 5, 4]
    assert torch.equal(unpack_pairs(packed), codes)
