"""Rows and groups of columns move as codes; the values are those that would have moved."""

import pytest
import torch

from server.engine.backends.matrix import Matrix, join_rows
from server.engine.backends.native.packing import quantise

ORDER = torch.tensor([2, 0, 1])


def coded(bits: int, seed: int = 0) -> Matrix:
    torch.manual_seed(seed)
    return Matrix(quantise(torch.randn(48, 96), bits), error=seed / 100)


def join(*parts: torch.Tensor) -> torch.Tensor:
    return torch.cat([part.unflatten(0, (3, -1)) for part in parts], dim=1)[ORDER].flatten(0, 1)


@pytest.mark.parametrize("bits", [4, 8])
def test_rows_move_as_codes(bits: int):
    parts = [coded(bits), coded(bits, 1)]
    joined = join_rows(join, *parts)
    assert joined.codes is not None
    assert torch.equal(joined.values(), join(*(part.values() for part in parts)))
    assert joined.error == 0.01


@pytest.mark.parametrize("other", [coded(4, 1), Matrix(torch.randn(48, 96).bfloat16())])
def test_what_is_joined_with_something_else_becomes_values(other: Matrix):
    joined = join_rows(join, coded(8), other)
    assert joined.codes is None
    assert torch.equal(joined.values(), join(coded(8).values(), other.values().float()))


@pytest.mark.parametrize("bits", [4, 8])
def test_columns_move_as_codes_in_whole_groups_only(bits: int):
    matrix = coded(bits)
    groups = (ORDER[:, None] * 32 + torch.arange(32)).flatten()
    for order, whole in ((groups, True), (groups.roll(1), False), (torch.randperm(96), False)):
        moved = matrix.columns(order)
        assert (moved.codes is not None) == whole
        assert torch.equal(moved.values(), matrix.values()[:, order])
    assert matrix.columns(None) is matrix
