"""Policies on the same held-out traffic and prompts, and whether a trained one is promoted."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from policies.explore import ExploringPolicy
from policies.features import REFUSE
from policies.observation import REFUSED, Objectives, Policy
from policies.rule import RulePolicy
from policies.simulation.choices import choice_labels, profile_choices
from policies.simulation.deciding import decide
from policies.simulation.engine import EngineLimits
from policies.simulation.outcome import Outcome
from policies.simulation.profile import Profile
from policies.simulation.rewards import Reward
from policies.simulation.scenario import Scenario
from policies.simulation.server import SimulatedServer
from policies.simulation.traffic import Arrival, at_load
from policies.static import StaticPolicy
from policies.training.fluid_bound import QualityBounds

_WINDOW = 300
"""Requests of one run."""
_RESAMPLES = 2000
ORACLE, RULE = "oracle", "rule"


class EvaluationCase(NamedTuple):
    """What a run is made of: the load, the number of its first request in the trace, a seed."""

    load: float
    start: int
    seed: int


@dataclass(frozen=True, slots=True)
class EvaluationRun:
    """One policy over one window of traffic at one load, with an entry for each request.

    `reward` is the mean over requests. `choices` are their names or `refuse`; `oracle` is what
    the oracle would have chosen in the same places, empty if it was not asked. `complexity` is that
    of the prompts (0..1).
    """

    load: float
    outcomes: tuple[Outcome, ...]
    reward: float
    choices: tuple[str, ...]
    oracle: tuple[str, ...]
    complexity: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class PolicyEvaluation:
    """What all policies are evaluated on: windows of a trace at several loads, by several seeds.

    `prompts` are rows of the profile, `loads` multiples of what full batches of the base serve.
    """

    profile: Profile
    trace: Sequence[Arrival]
    prompts: np.ndarray
    reward: Reward
    objectives: Objectives
    limits: EngineLimits
    loads: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)
    seeds: int = 2

    def cases(self) -> list[EvaluationCase]:
        """Return what each run is made of. The same for all policies."""
        starts = range(0, max(1, len(self.trace) - _WINDOW + 1), _WINDOW)
        return [
            EvaluationCase(load, start, seed)
            for load in self.loads
            for start in starts
            for seed in range(self.seeds)
        ]

    def run(
        self, policy: Policy, use_truth: bool = False, ask_oracle: bool = False
    ) -> list[EvaluationRun]:
        """Run a policy on every case.

        With `use_truth` the policy is shown measured losses and true lengths. With `ask_oracle` the
        oracle's choices are noted beside the policy's.
        """
        return [self._run_case(policy, case, use_truth, ask_oracle) for case in self.cases()]

    def _run_case(
        self, policy: Policy, case: EvaluationCase, use_truth: bool, ask_oracle: bool
    ) -> EvaluationRun:
        load, start, seed = case
        window = self.trace[start : start + _WINDOW]
        arrivals = at_load(window, load, self.profile.rates, self.limits.max_running)
        random = np.random.default_rng((seed, start))
        rows = random.choice(self.prompts, len(arrivals)).tolist()
        scenario = Scenario(self.objectives, self.limits, seed=seed)
        server = SimulatedServer(self.profile, arrivals, rows, scenario)
        oracle = RulePolicy()
        choices, oracle_choices = [""] * len(arrivals), [""] * len(arrivals)
        while server.arrive():
            index = server.current  # what is chosen when its prompt is read replaces the estimate
            if ask_oracle:
                best, reason = oracle.choose(server.observation(use_truth=True))
                oracle_choices[index] = REFUSE if reason in REFUSED else best.choice
            choices[index] = decide(server, policy, use_truth)
        outcomes = tuple(server.outcome(index) for index in range(len(arrivals)))
        reward = float(np.mean([self.reward.of(outcome) for outcome in outcomes]))
        complexity = tuple(float(self.profile.prompts.complexity[row]) for row in rows)
        return EvaluationRun(
            load, outcomes, reward, tuple(choices), tuple(oracle_choices) if ask_oracle else (),
            complexity,
        )  # fmt: skip


def evaluate_policies(
    evaluation: PolicyEvaluation,
    trained: Mapping[str, Policy],
    on_done: Callable[[], None] = lambda: None,
) -> dict[str, list[EvaluationRun]]:
    """Run the trained policies, every static one, a random one, the rule and the oracle.

    The oracle is the rule with the true losses and lengths. `on_done` is called after each policy.
    Return the runs by the policy's name.
    """
    names = choice_labels(profile_choices(evaluation.profile))
    policies: dict[str, Policy] = {f"static:{name}": StaticPolicy(name) for name in names}
    policies[f"refusing:{names[0]}"] = StaticPolicy(names[0], refuses=True)
    policies |= {"random": ExploringPolicy(RulePolicy(), 1.0), RULE: RulePolicy(), **trained}
    runs = {}
    for name, policy in policies.items():
        runs[name] = evaluation.run(policy, ask_oracle=name in trained)
        on_done()
    runs[ORACLE] = evaluation.run(RulePolicy(), use_truth=True)
    on_done()
    return runs


def summarize(
    evaluation: PolicyEvaluation, runs: Mapping[str, Sequence[EvaluationRun]]
) -> dict[str, Any]:
    """Return figures by policy and load, and the fluid bounds by load.

    Figures are the share of requests that met their objectives, the quality (a lost request counts
    0, or -0.5), the mean loss of those that met them in nats per token, the share that was refused,
    the share of prompts read `in_full` among those that were served, the reward, and the best
    quality there is with as many requests served.
    """
    profile = evaluation.profile
    choices = profile_choices(profile)
    in_full = {number for number, one in enumerate(choices) if one.reader is None}
    bounds = QualityBounds(
        profile, evaluation.prompts, evaluation.trace, evaluation.limits.max_running
    )
    policies: dict[str, dict[str, dict[str, float]]] = {}
    for name, policy_runs in runs.items():
        policies[name] = {}
        for load in evaluation.loads:
            figures = _figures([run for run in policy_runs if run.load == load], in_full)
            best = bounds.at(load, figures["attained"])
            figures |= {f"best_{figure}": value for figure, value in best.items()}
            policies[name][f"{load:g}"] = figures
    return {
        "policies": policies,
        "fluid_bound": {f"{load:g}": bounds.at(load) for load in evaluation.loads},
    }


def _figures(runs: Sequence[EvaluationRun], in_full: set[int]) -> dict[str, float]:
    outcomes = [outcome for run in runs for outcome in run.outcomes]
    met = [outcome for outcome in outcomes if outcome.met]
    attained = len(met) / len(outcomes)
    quality = sum(outcome.quality for outcome in met) / len(outcomes)
    served = [outcome.action for outcome in outcomes if outcome.action is not None]
    return {
        "attained": attained,
        "quality": quality,
        "quality_lost_half": quality - 0.5 * (1 - attained),
        "loss": float(np.mean([outcome.loss for outcome in met])) if met else float("nan"),
        "refused": (len(outcomes) - len(served)) / len(outcomes),
        "in_full": sum(number in in_full for number in served) / max(1, len(served)),
        "reward": _mean_reward(runs),
    }


def _mean_reward(runs: Sequence[EvaluationRun]) -> float:
    return float(np.mean([run.reward for run in runs]))


def reward_interval(
    better: Sequence[EvaluationRun], worse: Sequence[EvaluationRun], seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the difference of mean rewards.

    Pairs of runs on the same case are resampled, not requests, since the requests of a run depend
    on each other.
    """
    return reward_interval_over_trainings(better, [worse], seed)


def reward_interval_over_trainings(
    better: Sequence[EvaluationRun], trainings: Sequence[Sequence[EvaluationRun]], seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean difference to the runs of several trainings.

    Trainings are resampled as well as runs.
    """
    gaps = np.array(
        [[b.reward - w.reward for b, w in zip(better, runs, strict=True)] for runs in trainings]
    )
    random = np.random.default_rng(seed)
    rows = random.integers(len(gaps), size=(_RESAMPLES, len(gaps), 1))
    columns = random.integers(gaps.shape[1], size=(_RESAMPLES, 1, gaps.shape[1]))
    low, high = np.quantile(gaps[rows, columns].mean((1, 2)), [0.025, 0.975])
    return float(low), float(high)


def decide_promotion(
    runs: Mapping[str, Sequence[EvaluationRun]], name: str, other_seeds: Sequence[str] = ()
) -> dict[str, Any]:
    """Return whether the trained policy `name` beats the rule and the best static policy.

    The best static policy is chosen in hindsight. `promoted` is true if both 95 % intervals of the
    gain lie above 0. `regret` is the interval of the oracle's gain over the policy and over
    `other_seeds`, the same training from other seeds; `trainings` are the mean rewards of these.
    """
    statics = [n for n in runs if n.startswith(("static:", "refusing:"))]
    best = max(statics, key=lambda n: _mean_reward(runs[n]))
    over_rule = reward_interval(runs[name], runs[RULE])
    over_best = reward_interval(runs[name], runs[best])
    trainings = [runs[one] for one in (name, *other_seeds)]
    return {
        "promoted": over_rule[0] > 0 and over_best[0] > 0,
        "best_static": best,
        "over_rule": over_rule,
        "over_best_static": over_best,
        "regret": reward_interval_over_trainings(runs[ORACLE], trainings),
        "trainings": [_mean_reward(training) for training in trainings],
        "rule_regret": reward_interval(runs[ORACLE], runs[RULE]),
    }


def confusion(runs: Sequence[EvaluationRun], names: Sequence[str]) -> list[list[int]]:
    """Return the confusion matrix of choices, rows by the oracle's, columns by the policy's."""
    counts = [[0] * len(names) for _ in names]
    numbers = {name: number for number, name in enumerate(names)}
    for run in runs:
        for expected, chosen in zip(run.oracle, run.choices, strict=True):
            counts[numbers[expected]][numbers[chosen]] += 1
    return counts
