"""Policies on the same held-out traffic and prompts, and the verdict on a trained one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from policies.explore import ExploringPolicy
from policies.features import REFUSE
from policies.observation import REFUSED, Objectives, Policy
from policies.rule import RulePolicy
from policies.simulation.engine import EngineLimits
from policies.simulation.profile import Profile
from policies.simulation.rewards import Reward
from policies.simulation.server import Outcome, SimulatedServer, decided
from policies.simulation.traffic import Arrival, at_load
from policies.static import StaticPolicy
from policies.training.fluid_bound import quality_bounds

_WINDOW = 300  # requests of one run
_RESAMPLES = 2000
ORACLE, RULE = "oracle", "rule"


@dataclass(frozen=True, slots=True)
class EvaluationRun:
    """One policy over one window of traffic at one load."""

    load: float
    outcomes: tuple[Outcome, ...]
    reward: float  # mean of a request
    choices: tuple[str, ...]
    oracle: tuple[str, ...]  # what the oracle would have chosen in the same places
    complexity: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class PolicyEvaluation:
    """What all policies are put through: windows of a trace at several loads, by several seeds."""

    profile: Profile
    trace: Sequence[Arrival]
    prompts: np.ndarray
    reward: Reward
    objectives: Objectives
    limits: EngineLimits
    loads: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)
    seeds: int = 2

    def cases(self) -> list[tuple[float, int, int]]:
        """Load, first request and seed of each run; the same for all policies."""
        starts = range(0, max(1, len(self.trace) - _WINDOW + 1), _WINDOW)
        return [
            (load, start, seed)
            for load in self.loads
            for start in starts
            for seed in range(self.seeds)
        ]

    def run(
        self, policy: Policy, truth: bool = False, watched: bool = False
    ) -> list[EvaluationRun]:
        """Every case. With `truth` the policy is shown measured losses and true lengths; `watched`
        asks the oracle beside it."""
        return [self._run(policy, *case, truth, watched) for case in self.cases()]

    def _run(
        self, policy: Policy, load: float, start: int, seed: int, truth: bool, watched: bool
    ) -> EvaluationRun:
        window = self.trace[start : start + _WINDOW]
        arrivals = at_load(window, load, self.profile.rates, self.limits.max_running)
        drawn = np.random.default_rng((seed, start)).choice(self.prompts, len(arrivals)).tolist()
        world = SimulatedServer(
            self.profile, arrivals, drawn, self.objectives, self.limits, seed=seed
        )
        oracle, chosen, wished = RulePolicy(), [], []
        while world.arrive():
            if watched:
                best, why = oracle.choose(world.observation(truth=True))
                wished.append(REFUSE if why in REFUSED else best.variant)
            chosen.append(decided(world, policy, truth))
        outcomes = tuple(world.outcome(index) for index in range(len(arrivals)))
        mean = float(np.mean([self.reward.of(one) for one in outcomes]))
        seen = tuple(float(self.profile.prompts.complexity[row]) for row in drawn)
        return EvaluationRun(load, outcomes, mean, tuple(chosen), tuple(wished), seen)


def evaluate_policies(
    trial: PolicyEvaluation, trained: Mapping[str, Policy], tick: Callable[[], None] = lambda: None
) -> dict[str, list[EvaluationRun]]:
    """The trained policies beside every static one, chance, the rule and the oracle."""
    variants = trial.profile.variants
    policies: dict[str, Policy] = {f"static:{name}": StaticPolicy(name) for name in variants}
    policies[f"refusing:{variants[0]}"] = StaticPolicy(variants[0], refuses=True)
    policies |= {"random": ExploringPolicy(RulePolicy(), 1.0), RULE: RulePolicy(), **trained}
    found = {}
    for name, policy in policies.items():
        found[name] = trial.run(policy, watched=name in trained)
        tick()
    found[ORACLE] = trial.run(RulePolicy(), truth=True)
    tick()
    return found


def summarize(
    trial: PolicyEvaluation, runs: Mapping[str, Sequence[EvaluationRun]]
) -> dict[str, Any]:
    """By policy and load: attainment, effective quality (a lost request counts 0, or -0.5), mean
    loss of what was in time, refusals, the reward, and the best there is for as many in time; and
    the fluid bounds."""
    lengths = (
        int(np.mean([one.prompt for one in trial.trace])),
        int(np.mean([one.output for one in trial.trace])),
    )

    def bounds(load: float, served: float = 0.0) -> dict[str, float]:
        slots = trial.limits.max_running
        return quality_bounds(trial.profile, trial.prompts, lengths, load, slots, served)

    policies: dict[str, dict[str, dict[str, float]]] = {}
    for name, own in runs.items():
        policies[name] = {}
        for load in trial.loads:
            found = _figures([run for run in own if run.load == load])
            best = bounds(load, found["attained"])
            found |= {f"best_{figure}": value for figure, value in best.items()}
            policies[name][f"{load:g}"] = found
    return {
        "policies": policies,
        "fluid_bound": {f"{load:g}": bounds(load) for load in trial.loads},
    }


def _figures(runs: Sequence[EvaluationRun]) -> dict[str, float]:
    outcomes = [outcome for run in runs for outcome in run.outcomes]
    met = [one for one in outcomes if one.met]
    attained = len(met) / len(outcomes)
    quality = sum(one.quality for one in met) / len(outcomes)
    return {
        "attained": attained,
        "quality": quality,
        "quality_lost_half": quality - 0.5 * (1 - attained),
        "loss": float(np.mean([one.loss for one in met])) if met else float("nan"),
        "refused": sum(one.action is None for one in outcomes) / len(outcomes),
        "reward": float(np.mean([run.reward for run in runs])),
    }


def reward_interval(
    better: Sequence[EvaluationRun], worse: Sequence[EvaluationRun], seed: int = 0
) -> tuple[float, float]:
    """95 % bootstrap interval of the difference of mean rewards, over runs (pairs of the same
    traffic, prompts and seed), since requests within a run hang together."""
    return reward_interval_over_trainings(better, [worse], seed)


def reward_interval_over_trainings(
    better: Sequence[EvaluationRun], trainings: Sequence[Sequence[EvaluationRun]], seed: int = 0
) -> tuple[float, float]:
    """The same over what several trainings came to: both they and the runs are drawn again."""
    gaps = np.array(
        [[b.reward - w.reward for b, w in zip(better, runs, strict=True)] for runs in trainings]
    )
    generator = np.random.default_rng(seed)
    which = generator.integers(len(gaps), size=(_RESAMPLES, len(gaps), 1))
    cases = generator.integers(gaps.shape[1], size=(_RESAMPLES, 1, gaps.shape[1]))
    low, high = np.quantile(gaps[which, cases].mean((1, 2)), [0.025, 0.975])
    return float(low), float(high)


def decide_promotion(
    runs: Mapping[str, Sequence[EvaluationRun]], name: str, again: Sequence[str] = ()
) -> dict[str, Any]:
    """Whether a trained policy beats the rule and the static policy that is best in hindsight.

    `promoted` if both intervals of its gain lie above zero. `regret` is what the oracle has over
    it and over `again`, the same trained from other seeds; `trainings` are their mean rewards.
    """
    statics = [n for n in runs if n.startswith(("static:", "refusing:"))]
    best = max(statics, key=lambda n: float(np.mean([run.reward for run in runs[n]])))
    over_rule, over_best = (
        reward_interval(runs[name], runs[RULE]),
        reward_interval(runs[name], runs[best]),
    )
    return {
        "promoted": over_rule[0] > 0 and over_best[0] > 0,
        "best_static": best,
        "over_rule": over_rule,
        "over_best_static": over_best,
        "regret": reward_interval_over_trainings(
            runs[ORACLE], [runs[one] for one in (name, *again)]
        ),
        "trainings": [float(np.mean([r.reward for r in runs[one]])) for one in (name, *again)],
        "rule_regret": reward_interval(runs[ORACLE], runs[RULE]),
    }


def confusion(runs: Sequence[EvaluationRun], names: Sequence[str]) -> list[list[int]]:
    """Rows: what the oracle would have chosen; columns: what was chosen."""
    counts = [[0] * len(names) for _ in names]
    numbers = {name: number for number, name in enumerate(names)}
    for run in runs:
        for wished, chosen in zip(run.oracle, run.choices, strict=True):
            counts[numbers[wished]][numbers[chosen]] += 1
    return counts
