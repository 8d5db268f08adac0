"""A made-up profile: variants and readers whose losses and costs can be worked out by hand."""

import numpy as np

from policies.simulation.profile import Origin, Profile, Prompts
from policies.simulation.rates import Rates
from policies.simulation.reader_profile import ReaderProfile

VARIANTS = ("base", "half", "tenth")
COSTS = (1.0, 0.6, 0.3)
LOSSES = (0.0, 0.3, 1.2)
RATES = Rates(
    stream=tuple(0.004 * cost for cost in COSTS),
    row=tuple(0.001 * cost for cost in COSTS),
    prompt=tuple(0.0005 * cost for cost in COSTS),
    cached=tuple(1e-7 * cost for cost in COSTS),
)
READERS = (
    ReaderProfile("quick", {128: 0.7 + 16 / 128, 1024: 0.7 + 16 / 1024}, {60: 0.02, 2000: 0.05},
                  {"passkey": 0.97}),
    ReaderProfile("quicker", {128: 0.5 + 16 / 128, 1024: 0.5 + 16 / 1024}, {60: 0.1, 2000: 0.2},
                  {"passkey": 0.2}),
)  # fmt: skip
"""They take .7 and .5 of the time, and 16 tokens in full."""
CHOICES = ("base", "base+quick", "base+quicker", "half", "tenth", "half+quick")
"""Those of a profile with `READERS`. The first two keep the reading tasks."""


def profile(
    prompts: int = 100,
    noise: float = 0.3,
    rates: Rates = RATES,
    readers: tuple[ReaderProfile, ...] = (),
) -> Profile:
    chance = np.random.default_rng(0)
    spread = np.exp(noise * chance.standard_normal((prompts, 1)))
    loss = (np.array(LOSSES) * spread).astype(np.float32)
    return Profile(
        fingerprint="model",
        model="paper",
        artefact="artefact",
        origin=Origin("paper", "0" * 64, prompts, 48),
        device="device",
        machine={"processor": "paper"},
        variants=VARIANTS,
        prompts=Prompts(
            names=tuple(f"{number:016x}" for number in range(prompts)),
            tokens=chance.integers(10, 100, prompts),
            answer=chance.integers(10, 60, prompts),
            complexity=chance.random(prompts).astype(np.float32),
            predicted=np.tile(np.float32(LOSSES), (prompts, 1)),
            loss=loss,
            surprise=loss + 2,
        ),
        rates=rates,
        bytes_read=COSTS,
        kv_loss={64: 0.05},
        joules=None,
        measured={},
        readers=readers,
        pairs=(("half", "quick"),) if readers else (),
        keep_tasks=("base", "base+quick") if readers else ("base",),
    )
