import pytest
import torch

from pruners.correction import (
    LowRankCorrection,
    RecoveryError,
    RefitCorrection,
    from_tensors,
    to_tensors,
)
from pruners.variant import Block


def test_tensors_of_corrections_come_back():
    corrections = {
        Block(3, "mlp"): LowRankCorrection(torch.ones(4), torch.ones(4, 2), torch.ones(2, 7)),
        Block(0, "attention"): RefitCorrection(torch.ones(4), torch.ones(4, 5)),
    }
    tensors = to_tensors(corrections)
    assert set(tensors) == {
        "3.mlp.bias",
        "3.mlp.up",
        "3.mlp.down",
        "0.attention.bias",
        "0.attention.weight",
    }
    again = from_tensors(tensors)
    assert again.keys() == corrections.keys()
    assert again[Block(3, "mlp")].input_width == 7
    assert again[Block(0, "attention")].input_width == 5


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"x.mlp.bias": torch.ones(4)}, "'x.mlp.bias' is not the name"),
        ({"1.norm.bias": torch.ones(4)}, "'1.norm.bias' is not the name"),
        ({"1.mlp.bias": torch.ones(4)}, "layer 1 mlp has shapes"),
        ({"1.mlp.bias": torch.ones(4), "1.mlp.weight": torch.ones(3, 7)}, "has shapes"),
        (
            {
                "1.mlp.bias": torch.ones(4),
                "1.mlp.up": torch.ones(4, 2),
                "1.mlp.down": torch.ones(3, 7),
            },
            "has shapes",
        ),
    ],
)
def test_tensors_that_are_no_corrections_are_refused(tensors, message: str):
    with pytest.raises(RecoveryError, match=message):
        from_tensors(tensors)
