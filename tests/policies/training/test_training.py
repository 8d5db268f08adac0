"""Learning: to the table's optimum where nothing carries over, the same for a seed, resumable."""

from dataclasses import replace

import numpy as np
import pytest

from policies import LearnedPolicy, Objectives, RulePolicy
from policies.features import feature_names, hidden_columns
from policies.simulation.environment import ALONE, EpisodeSettings, TrafficEnvironment
from policies.simulation.rates import Rates
from policies.simulation.rewards import Reward
from policies.simulation.traffic import synthetic
from policies.training.checkpoint import CheckpointError
from policies.training.dqn import DqnSettings
from policies.training.train import TrainingPlan, split_prompts, train
from tests.support.paper import RATES, READERS, VARIANTS, profile

TRACE = synthetic(800, 0)
EPISODES = EpisodeSettings(
    length=32, objectives=(Objectives(ttft=1.0, firm=True),), loads=(1.0, 2.0)
)
SMALL = DqnSettings(hidden=(16,), buffer=2000)


def same(one, other):
    return all(
        np.array_equal(a, b)
        for x, y in zip(one, other, strict=True)
        for a, b in zip(x, y, strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("readers", [(), READERS])
@pytest.mark.parametrize("kind", ["dqn", "bandit"])
def test_the_same_seed_and_an_interruption_give_the_same_weights(kind, readers, tmp_path):
    plan = TrainingPlan(kind, 40, episode_settings=EPISODES, dqn=SMALL)
    table, rows = profile(readers=readers), np.arange(80)
    whole, rewards = train(table, TRACE, rows, plan)
    path = tmp_path / "checkpoint.safetensors"

    class KilledError(Exception):
        pass

    rounds = []

    def killed(episodes):
        rounds.append(episodes)
        if len(rounds) == 2:
            raise KilledError

    with pytest.raises(KilledError):
        train(table, TRACE, rows, plan, path, killed)
    assert path.exists()
    with pytest.raises(CheckpointError, match="another training"):
        train(table, TRACE, rows, replace(plan, seed=1), path)
    resumed, again = train(table, TRACE, rows, plan, path)
    assert same(whole, resumed)
    assert rewards == again
    done, _ = train(table, TRACE, rows, plan, path)
    assert same(whole, done), "a training that is done is not done again"
    other, _ = train(table, TRACE, rows, replace(plan, seed=1))
    assert not same(whole, other)


def test_a_damaged_checkpoint_is_one_line(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(b"x")
    with pytest.raises(CheckpointError, match="damaged"):
        train(
            profile(),
            TRACE,
            np.arange(80),
            TrainingPlan("bandit", 10, episode_settings=EPISODES),
            path,
        )


@pytest.mark.slow
def test_alone_the_network_reaches_the_tables_argmax():
    """Best is what loses least of those that are quick enough, by an objective that differs by
    episode. Compared on prompts that were not learned from."""
    base = RATES.full_step(0, 1)
    wanted = tuple(Objectives(tpot=share * base) for share in (1.2, 0.8, 0.45))
    drawn = EpisodeSettings(loads=(ALONE,), objectives=wanted, length=64)
    table = profile(200, rates=Rates(RATES.stream, RATES.row, RATES.prompt, (0.0, 0.0, 0.0)))
    learned, held = split_prompts(table.prompts.names)
    plan = TrainingPlan("dqn", 300, episode_settings=drawn, dqn=DqnSettings(gamma=0.0, rate=1e-3))
    layers, rewards = train(table, TRACE, learned, plan)
    assert np.mean(rewards[-20:]) > np.mean(rewards[:20])
    policy = LearnedPolicy("dqn", VARIANTS, layers)
    environment = TrafficEnvironment(table, TRACE, held, Reward(), drawn)
    right, seen = 0, 0
    for seed in range(12):
        environment.reset(seed=10_000 + seed)
        server, ended = environment.server, False
        while not ended:
            best, _ = RulePolicy().choose(server.observation(use_truth=True))
            chosen, _ = policy.choose(server.observation())
            right += chosen.variant == best.variant
            seen += 1
            _, _, ended, _, _ = environment.step(np.int64(0))
    assert right / seen >= 0.95


@pytest.mark.parametrize("what", ["host", "prompt"])
def test_a_blind_policy_is_blind(what):
    plan = TrainingPlan("bandit", 20, episode_settings=EPISODES, hidden_group=what)
    layers, _ = train(profile(), TRACE, np.arange(80), plan)
    policy = LearnedPolicy("bandit", VARIANTS, layers)
    hidden = hidden_columns(what, VARIANTS)
    points = np.random.default_rng(0).random((2, len(hidden)), np.float32)
    points[1, ~hidden] = points[0, ~hidden]
    one, other = policy.values(points)
    np.testing.assert_array_equal(one, other)
    assert hidden.sum() == {"host": 9, "prompt": 5}[what]
    assert len(hidden) == len(feature_names(VARIANTS))


def test_prompts_are_split_by_their_names_alone():
    names = tuple(
        f"{number:016x}" for number in np.random.default_rng(0).integers(2**60, size=1000)
    )
    learned, held = split_prompts(names)
    assert 150 < len(held) < 250
    assert sorted([*learned, *held]) == list(range(1000))
    again, _ = split_prompts(names[::-1])
    assert {names[i] for i in learned} == {names[::-1][i] for i in again}
