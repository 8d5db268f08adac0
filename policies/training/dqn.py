"""A deep Q-network by Stable-Baselines3 (Mnih et al. 2015, doi 10.1038/nature14236)."""

from dataclasses import dataclass

import numpy as np
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback

from policies.learned import NetworkLayers
from policies.simulation.environment import TrafficEnvironment
from policies.training.trainer import TrainerState

_BUFFER_ARRAYS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


@dataclass(frozen=True, slots=True)
class DqnSettings:
    """Hyper-parameters of the network and of the training.

    `hidden` are the sizes of the hidden layers, `rate` is the learning rate of Adam, `buffer` the
    size of the replay buffer and `batch` that of a minibatch. With a `gamma` of 0 the network is a
    contextual bandit. The target network is replaced every `target_steps` decisions. The share of
    random choices falls from 1 to `explores_last` at the progress `explores_until` (0..1).
    """

    hidden: tuple[int, ...] = (64, 64)
    rate: float = 5e-4
    gamma: float = 0.97
    buffer: int = 50_000
    batch: int = 64
    target_steps: int = 500
    explores_last: float = 0.05
    explores_until: float = 0.4


class DqnTrainer:
    """A `PolicyTrainer` around Stable-Baselines3's `DQN`. A round has `episodes` episodes."""

    def __init__(
        self,
        environment: TrafficEnvironment,
        settings: DqnSettings,
        episodes: int,
        seed: int,
    ) -> None:
        self._settings, self._episodes = settings, episodes
        # Each request is decided on when it arrives, and again when it is read.
        self._most_steps = 2 * episodes * environment.episodes.length
        self._model = DQN(
            "MlpPolicy",
            environment,
            learning_rate=settings.rate,
            buffer_size=settings.buffer,
            learning_starts=2 * settings.batch,
            batch_size=settings.batch,
            gamma=settings.gamma,
            train_freq=4,
            target_update_interval=settings.target_steps,
            policy_kwargs={"net_arch": list(settings.hidden)},
            device="cpu",
            seed=seed,
        )

    def run_round(self, seed: int, progress: float) -> list[float]:
        """Learn for a round. See `PolicyTrainer`."""
        model, settings = self._model, self._settings
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # more threads only slow small matrices down
        try:
            share = min(1.0, progress / settings.explores_until)
            epsilon = 1.0 + share * (settings.explores_last - 1.0)
            model.exploration_schedule = lambda _: epsilon
            model.exploration_rate = epsilon
            model.set_random_seed(seed)
            model._last_obs = None  # makes the round begin with a new episode
            rewards = _EpisodeRewards(self._episodes)
            model.learn(self._most_steps, rewards, reset_num_timesteps=False)
            return rewards.rewards
        finally:
            torch.set_num_threads(threads)

    def state(self) -> TrainerState:
        """Return networks, Adam's moments, the filled part of the replay buffer, and counters."""
        model, buffer = self._model, self._model.replay_buffer
        assert buffer is not None
        state: TrainerState = {}
        for name, net in (("q", model.q_net), ("target", model.q_net_target)):
            state |= {f"{name}.{k}": v.detach().numpy().copy() for k, v in net.state_dict().items()}
        for index, moments in model.policy.optimizer.state_dict()["state"].items():
            state |= {f"adam.{index}.{k}": v.numpy().copy() for k, v in moments.items()}
        filled = buffer.buffer_size if buffer.full else buffer.pos
        state |= {
            f"buffer.{part}": getattr(buffer, part)[:filled].copy() for part in _BUFFER_ARRAYS
        }
        counts = (buffer.pos, buffer.full, model.num_timesteps, model._n_calls, model._n_updates)
        return state | {"counts": np.array(counts, np.int64)}

    def restore(self, state: TrainerState) -> None:
        """Continue from a state. Raises `KeyError`, `ValueError` or `RuntimeError`."""
        model, buffer = self._model, self._model.replay_buffer
        assert buffer is not None
        for name, net in (("q", model.q_net), ("target", model.q_net_target)):
            net.load_state_dict(
                {k: torch.from_numpy(state[f"{name}.{k}"]) for k in net.state_dict()}
            )
        optimizer = model.policy.optimizer
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in state.items():
            if key.startswith("adam."):
                _, index, name = key.split(".")
                moments.setdefault(int(index), {})[name] = torch.from_numpy(value.copy())
        optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
        for part in _BUFFER_ARRAYS:
            rows = state[f"buffer.{part}"]
            getattr(buffer, part)[: len(rows)] = rows
        position, full, steps, calls, updates = (int(v) for v in state["counts"])
        buffer.pos, buffer.full = position, bool(full)
        model.num_timesteps, model._n_calls, model._n_updates = steps, calls, updates

    def layers(self) -> NetworkLayers:
        """Return the linear layers of the Q-network."""
        linear = [m for m in self._model.q_net.q_net if isinstance(m, torch.nn.Linear)]
        return tuple(
            (m.weight.detach().numpy().copy(), m.bias.detach().numpy().copy()) for m in linear
        )


class _EpisodeRewards(BaseCallback):
    """Collects the rewards of the episodes that end, and ends the round after some of them."""

    def __init__(self, episodes: int) -> None:
        super().__init__()
        self._episodes = episodes
        self.rewards: list[float] = []

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                self.rewards.append(float(info["episode"]["r"]))
        return len(self.rewards) < self._episodes
