"""How to train a variant."""

from dataclasses import dataclass
from typing import Literal

Tier = Literal["norms", "residuals", "lora"]
"""What is trained: `norms` biases and norms; `residuals` also the low ranks of narrowed output
projections, which a variant has already; `lora` low ranks of every projection, which it is given.
"""


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """How to train.

    `rank` is that of trained low ranks, `rate` the highest learning rate (None: by tier and batch
    size), `batch_tokens` the least tokens of a step. A check on held-out rows is made every `check`
    steps; a variant stops `patience` checks after its best one. `seed` draws the order of rows and
    new low ranks.
    """

    tier: Tier = "residuals"
    rank: int = 16
    batch_tokens: int = 2048
    rate: float | None = None
    check: int = 10
    patience: int = 4
    seed: int = 0
