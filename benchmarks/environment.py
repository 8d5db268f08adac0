"""How many decisions a second the simulation takes: `python -m benchmarks.environment`.

Random choices in the environment that policies learn in, on one core: whole steps, the observation
and the reward included; the profile is made up, with as many variants as the default model has.
"""

import time
from statistics import median

import numpy as np
from rich.console import Console

from benchmarks.support.results import option_parser, save_result, spread
from policies.simulation.environment import TrafficEnvironment
from policies.simulation.profile import Origin, Profile, Prompts
from policies.simulation.rates import Rates
from policies.simulation.rewards import Reward
from policies.simulation.traffic import synthetic
from telemetry.machine import describe

VARIANTS, PROMPTS = 10, 400


def made_up() -> Profile:
    """Costs from 1 to .5, losses from 0 to 3 nats."""
    costs = np.linspace(1.0, 0.5, VARIANTS)
    loss = np.tile(np.linspace(0.0, 3.0, VARIANTS, dtype=np.float32), (PROMPTS, 1))
    lengths = np.full(PROMPTS, 60)
    prompts = Prompts(
        tuple(f"{number:016x}" for number in range(PROMPTS)),
        lengths, lengths, np.zeros(PROMPTS, np.float32), loss, loss, loss + 2,
    )  # fmt: skip
    stream, row, prompt, cached = (tuple(costs * s) for s in (3.6e-3, 6.4e-4, 7e-4, 1.7e-6))
    return Profile(
        "made up", "made up", "", Origin("made up", "", PROMPTS, 48), "", {},
        tuple(f"v{i}" for i in range(VARIANTS)), prompts,
        Rates(stream, row, prompt, cached), tuple(costs), {512: 0.02, 256: 0.04}, None, {},
    )  # fmt: skip


def main() -> None:
    """Measures and prints."""
    options = option_parser(__doc__)
    options.add_argument("--episodes", type=int, default=100)
    options.add_argument("--repeats", type=int, default=5)
    arguments = options.parse_args()
    environment = TrafficEnvironment(made_up(), synthetic(6000, 0), np.arange(PROMPTS), Reward())
    length = environment.episodes.length
    drawn = np.random.default_rng(0).integers(VARIANTS + 1, size=(arguments.episodes, length))
    rates = []
    for _ in range(arguments.repeats + 1):
        started = time.perf_counter()
        for seed, choices in enumerate(drawn):
            environment.reset(seed=seed)
            for choice in choices:
                environment.step(choice)
        rates.append(drawn.size / (time.perf_counter() - started))
    rates = rates[1:]  # the first warms up
    console = Console()
    console.print(describe())
    console.print(f"{median(rates):,.0f} decisions/s ±{spread(rates):.0%}")
    result = {"machine": describe(), "decisions_per_second": rates}
    console.print(f"written to {save_result('environment', result, arguments.json)}")


if __name__ == "__main__":
    main()
