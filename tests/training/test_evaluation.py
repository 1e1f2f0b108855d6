"""Evaluation: fixed quotas, marked cuts, and the figures that come out."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import scipy.stats
import torch
from gymnasium.spaces import Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor

from contract import Acted, EnvSpec, Episode, Step, Streams, Transition
from envs.host import HostVecEnv
from training.evaluation import bootstrap_interval, evaluate, summarise


class Constant:
    """Always chooses action 0; notes when it was told that an episode starts."""

    def __init__(self) -> None:
        self.starts: list[list[bool]] = []

    def act(self, obs: Tensor, episode_start: Tensor) -> Acted:
        self.starts.append(episode_start.tolist())
        return Acted(torch.zeros(len(obs), dtype=torch.int64))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Coins:
    """N environments: an episode has length 1 and return 0, or length 100 and return 1, with probability 1/2 each."""

    def __init__(self, num_envs: int, seed: int) -> None:
        self.spec = EnvSpec("Coins-v0", Discrete(1), Discrete(1), num_envs)
        self.rng = np.random.default_rng(seed)
        self.obs = torch.zeros(num_envs, dtype=torch.int64)

    def reset(self) -> Tensor:
        self.t = np.zeros(self.spec.num_envs, np.int64)
        self.long = self.rng.random(self.spec.num_envs) < 0.5
        return self.obs

    def step(self, action: Tensor) -> Step:
        self.t += 1
        ended = self.t == np.where(self.long, 100, 1)
        episodes = [Episode(int(i), float(self.long[i]), int(self.t[i])) for i in np.flatnonzero(ended)]
        self.t[ended] = 0
        self.long[ended] = self.rng.random(int(ended.sum())) < 0.5
        end = torch.from_numpy(ended)
        reward, valid = torch.zeros(len(ended)), torch.ones(len(ended), dtype=torch.bool)
        return Step(Transition(self.obs, action, reward, self.obs, end, end, valid), self.obs, episodes)

    def close(self) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> Tensor:
        return self.obs


def test_quotas_do_not_favour_short_episodes() -> None:
    """Taking the first 64 episodes that finish gives 0.07."""
    returns = [e.episode_return for e in evaluate(Constant(), Coins(64, seed=0), 64)]
    assert len(returns) == 64
    low, high = bootstrap_interval(returns)
    assert low < 0.5 < high
    many = [e.episode_return for seed in range(20) for e in evaluate(Constant(), Coins(64, seed), 64)]
    assert abs(np.mean(many) - 0.5) < 3 * 0.5 / np.sqrt(len(many))


@pytest.mark.parametrize(("episodes", "num_envs"), [(1, 1), (5, 1), (2, 3), (7, 3), (9, 3)])
def test_each_environment_plays_its_quota(episodes: int, num_envs: int) -> None:
    played = evaluate(Constant(), Coins(num_envs, seed=1), episodes)
    counts = np.bincount([e.env_index for e in played], minlength=num_envs)
    assert counts.sum() == episodes
    assert counts.max() - counts.min() <= 1
    assert [e.env_index for e in played] == sorted(e.env_index for e in played)


def test_a_signal_ends_evaluation_early() -> None:
    asked = iter([False, False, True])
    assert len(evaluate(Constant(), Coins(4, seed=0), 1000, stopped=lambda: next(asked))) <= 8


class Ends(gym.Env[int, int]):
    """Ends after `ends` steps, cut after `limit` steps; reward 2."""

    observation_space = Discrete(1)
    action_space = Discrete(1)

    def __init__(self, ends: int, limit: int) -> None:
        self.ends, self.limit = ends, limit

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[int, dict[str, Any]]:
        self.t = 0
        return 0, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return 0, 2.0, self.t == self.ends, self.t == self.limit, {}


def vector(*makers: Callable[[], gym.Env[int, int]], mode: AutoresetMode = AutoresetMode.DISABLED) -> HostVecEnv:
    spec = EnvSpec("Ends-v0", Discrete(1), Discrete(1), len(makers))
    streams = Streams(0)
    masks = mode is AutoresetMode.DISABLED
    return HostVecEnv(
        SyncVectorEnv(makers, autoreset_mode=mode), spec, lambda i, k: streams.seed("env", i, k), resets_by_mask=masks
    )


def test_only_what_the_cap_ended_is_marked_cut() -> None:
    """Ends of its own before the cap, in the very step of the cap, and after it."""
    makers = [lambda: Ends(4, limit=6), lambda: Ends(6, limit=6), lambda: Ends(9, limit=6)]
    for cap, expected in ((6, [False, False, True]), (None, [False] * 3)):
        env = vector(*makers)
        assert [e.cut for e in evaluate(Constant(), env, 3, cap_env_steps=cap)] == expected
        env.close()


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_every_autoreset_mode_scores_the_same(mode: AutoresetMode) -> None:
    env, policy = vector(lambda: Ends(2, 9), lambda: Ends(9, 3), mode=mode), Constant()
    played = evaluate(policy, env, 5)
    assert [(e.env_index, e.episode_return, e.length_env_steps) for e in played] == [(0, 4.0, 2)] * 2 + [
        (1, 6.0, 3)
    ] * 3
    assert policy.starts[:3] == [[True, True], [False, False], [True, False]]
    env.close()


# ---------------------------------------------------------------- figures


@pytest.mark.parametrize(
    "values", [[0.0, 1.0, 1.0, 5.0, 9.0, -3.0, 2.0, 2.5], list(np.random.default_rng(0).normal(size=60))]
)
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_bootstrap_interval_is_that_of_scipy(values: list[float], confidence: float) -> None:
    interval = bootstrap_interval(values, confidence)
    reference = scipy.stats.bootstrap(
        (values,), np.mean, confidence_level=confidence, n_resamples=20_000, method="percentile", rng=1
    ).confidence_interval
    assert interval == pytest.approx(tuple(reference), abs=0.03 * (reference.high - reference.low))


def test_bootstrap_interval_is_deterministic_and_narrows() -> None:
    values = np.random.default_rng(1).normal(size=400)
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval(values) != bootstrap_interval(values, seed=1)
    assert np.diff(bootstrap_interval(values))[0] == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.05)
    assert bootstrap_interval([4.0]) == (4.0, 4.0)
    assert bootstrap_interval([4.0] * 7) == (4.0, 4.0)


def test_summary_by_hand() -> None:
    episodes = [
        Episode(0, 1.0, 10, True, {"crashes": 1.0}),
        Episode(0, 3.0, 20, False, {"crashes": 3.0, "fuel": 5.0}, cut=True),
        Episode(1, 8.0, 60, None),
    ]
    figures = summarise(episodes)
    interval = figures.pop("ci95")
    assert interval == list(bootstrap_interval([1.0, 3.0, 8.0]))
    assert figures.pop("std_reward") == pytest.approx((26 / 3) ** 0.5)
    assert figures == {
        "mean_reward": 4.0,
        "median_reward": 3.0,
        "min_reward": 1.0,
        "max_reward": 8.0,
        "mean_ep_length": 30.0,
        "success_rate": 0.5,
        "cut_episodes": 1.0,
        "mean_crashes": 2.0,
        "mean_fuel": 5.0,
    }
    assert summarise(episodes[2:])["success_rate"] is None
