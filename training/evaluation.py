"""Evaluation: a policy plays whole episodes on environments of its own, and figures with intervals come out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from contract import Episode, Policy, ReadsModel, VecEnv

BOOTSTRAP_SAMPLES = 10_000


def evaluate(
    policy: Policy,
    env: VecEnv,
    episodes: int,
    *,
    cap_env_steps: int | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> list[Episode]:
    """Plays `episodes` episodes.

    Every environment has a fixed quota. Taking the first episodes to finish instead would favour short ones.

    Args:
        policy: acts; its weights are not touched.
        env: freshly built; it is reset here and not closed.
        episodes: how many.
        cap_env_steps: the time limit that the evaluation imposed, if it did: episodes that it ended are marked `cut`.
        stopped: asked at every step; True ends the evaluation early.

    Returns:
        The episodes, ordered by environment and then by time: the order does not depend on their lengths.
    """
    n = env.spec.num_envs
    quota = [(episodes + i) // n for i in range(n)]
    finished: list[list[Episode]] = [[] for _ in range(n)]
    if isinstance(policy, ReadsModel):
        policy.read_model(env.spec.model)
    obs = env.reset()
    episode_start = torch.ones(n, dtype=torch.bool)
    while any(len(done) < q for done, q in zip(finished, quota, strict=True)) and not stopped():
        step = env.step(policy.act(obs, episode_start).action)
        for episode in step.episodes:
            i = episode.env_index
            if len(finished[i]) < quota[i]:
                capped = cap_env_steps is not None and episode.length_env_steps >= cap_env_steps
                finished[i].append(episode._replace(cut=capped and not bool(step.transition.terminal[i])))
        obs, episode_start = step.obs, step.transition.episode_end | ~step.transition.valid
    return [episode for done in finished for episode in done]


def bootstrap_interval(values: Sequence[float], confidence: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean.

    Args:
        values: one number per episode (an interval for this policy) or per training seed (one for the algorithm);
            never a mixture of both.
        confidence: coverage, in (0, 1).
        seed: of the resampling.

    Source:
        Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13.
    """
    data = np.asarray(values, np.float64)
    generator = np.random.default_rng(seed)
    means = [data[generator.integers(0, len(data), len(data))].mean() for _ in range(BOOTSTRAP_SAMPLES)]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def summarise(episodes: Sequence[Episode]) -> dict[str, float | list[float] | None]:
    """The figures of a set of episodes, all of them raw undiscounted returns."""
    returns = np.array([e.episode_return for e in episodes], np.float64)
    lengths = np.array([e.length_env_steps for e in episodes], np.float64)
    known = [e.success for e in episodes if e.success is not None]
    extras = {name for e in episodes for name in e.extras}
    return {
        "mean_reward": float(returns.mean()),
        "std_reward": float(returns.std()),
        "ci95": list(bootstrap_interval(returns.tolist())),
        "median_reward": float(np.median(returns)),
        "min_reward": float(returns.min()),
        "max_reward": float(returns.max()),
        "mean_ep_length": float(lengths.mean()),
        "success_rate": float(np.mean(known)) if known else None,
        "cut_episodes": float(sum(e.cut for e in episodes)),
        **{
            f"mean_{name}": float(np.mean([e.extras[name] for e in episodes if name in e.extras]))
            for name in sorted(extras)
        },
    }
