"""The environment keeps Gymnasium's contract, and decisions have consequences in it."""

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from policies import Objectives
from policies.features import feature_names, hidden_columns
from policies.simulation.environment import ALONE, EpisodeSettings, TrafficEnvironment
from policies.simulation.host import BATTERY, MAINS
from policies.simulation.outcome import Outcome
from policies.simulation.rewards import Reward
from policies.simulation.traffic import synthetic
from tests.support.paper import VARIANTS, profile


def environment(reward=None, hidden=None, **drawn):
    episodes = EpisodeSettings(
        length=64, **{"objectives": (Objectives(ttft=1.0, firm=True),), **drawn}
    )
    return TrafficEnvironment(
        profile(), synthetic(500, 0), np.arange(100), reward or Reward(), episodes, hidden
    )


@pytest.mark.filterwarnings("ignore:.*alternative render modes.*")
def test_gymnasium_has_no_complaints():
    check_env(environment(hosts=(MAINS, BATTERY)), skip_render_check=True)


def rewards(env, action, seed=0):
    env.reset(seed=seed)
    found, ended = [], False
    while not ended:
        _, reward, ended, truncated, _ = env.step(np.int64(action))
        assert not truncated
        found.append(reward)
    return found


def test_the_same_seed_is_the_same_episode():
    assert rewards(environment(), 1, 5) == rewards(environment(), 1, 5)
    assert rewards(environment(), 1, 5) != rewards(environment(), 1, 6)


def test_every_request_is_paid_for_once():
    env = environment(loads=(3.0,))
    total = sum(rewards(env, 0))
    assert total == pytest.approx(sum(env.reward.of(one) for one in env.server.outcomes))
    assert sum(rewards(env, len(VARIANTS))) == pytest.approx(-0.5 * 64), "all refused"


def test_a_choice_costs_those_behind_it():
    env = environment(loads=(3.0,))
    base, tenth = sum(rewards(env, 0)), sum(rewards(env, 2))
    assert tenth > base + 10
    calm = environment(loads=(0.3,))
    assert sum(rewards(calm, 0)) > sum(rewards(calm, 2))


def test_at_next_to_no_load_each_request_is_alone():
    env = environment(loads=(ALONE,))
    found = rewards(env, 1)
    assert found == pytest.approx([one.quality for one in env.server.outcomes])


def test_hidden_features_read_zero():
    hidden = hidden_columns("host", VARIANTS)
    env = environment(hidden=hidden)
    seen, _ = env.reset(seed=0)
    names = feature_names(VARIANTS)
    assert not seen[hidden].any()
    assert "wait" in {names[i] for i in np.flatnonzero(hidden)}
    assert seen[names.index("complexity")] > 0


def test_the_thesis_reward_is_its_formula():
    outcome = Outcome(1, False, 0.4, np.log(20.0), 0.5, 0.02, 2.0, 50)
    assert Reward("thesis").of(outcome) == pytest.approx(0.6 * 25 - 0.4 * 20 / 10)
    assert Reward().of(outcome) == -0.5
    assert Reward("thesis").of(Outcome(None, False)) == 0.0
