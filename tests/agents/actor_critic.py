"""One rollout, learned from by Stable-Baselines3 and by us, with the same weights."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from stable_baselines3.common.vec_env import DummyVecEnv

from contract import EnvSpec, Streams, Task, Transition
from networks.actor_critic import ActorCritic

T, N = 6, 3
OBS = Box(-10, 10, (5,), np.float32)
GAMMA = 0.9


class Nothing(gym.Env[Any, Any]):
    """An environment for Stable-Baselines3 to take its spaces from."""

    def __init__(self, action_space: gym.Space[Any]) -> None:
        self.observation_space, self.action_space = OBS, action_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return np.zeros(5, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(5, np.float32), 0.0, False, False, {}


def peer(model: Any, action_space: gym.Space[Any], **kwargs: Any) -> Any:
    """Stable-Baselines3's agent, whose training leaves the weights as they are and the gradients to be read."""
    env = DummyVecEnv([lambda: Nothing(action_space)] * N)
    policy = {"net_arch": [64, 64]} | kwargs.pop("policy_kwargs", {})
    return model(
        "MlpPolicy",
        env,
        n_steps=T,
        learning_rate=0.0,
        max_grad_norm=1e9,
        gamma=GAMMA,
        policy_kwargs=policy,
        seed=0,
        **kwargs,
    )


def names(net: ActorCritic) -> dict[str, str]:
    """Our parameters' names -> theirs."""
    pairs = {"policy_head": "action_net", "value_head": "value_net"}
    for ours, theirs in (("backbone", "policy_net"), ("value_backbone", "value_net")):
        pairs |= {f"{ours}.layers.{i}": f"mlp_extractor.{theirs}.{2 * i}" for i in (0, 1)}
    found = {f"{a}.{part}": f"{b}.{part}" for a, b in pairs.items() for part in ("weight", "bias")}
    return found | ({"log_std": "log_std"} if net.log_std is not None else {})


def copy_weights(net: ActorCritic, model: Any) -> None:
    theirs = dict(model.policy.named_parameters())
    mapping = names(net)
    assert set(mapping) == {name for name, _ in net.named_parameters()}
    for name, parameter in net.named_parameters():
        parameter.data.copy_(theirs[mapping[name]].data)


def task(action_space: gym.Space[Any]) -> Task:
    return Task(EnvSpec("nothing", OBS, action_space, N), 1_000, torch.device("cpu"), Streams(0))


def play(agent: Any, model: Any, seed: int = 0) -> None:
    """The same random rollout for both: ordinary steps, a terminal, a time limit, and a rollout that goes on.

    The actions are those of our policy; Stable-Baselines3 gets its log-probabilities and values from its own network.
    """
    from contract import Mode

    rng = np.random.default_rng(seed)
    policy = agent.policy(Mode("train"), N, torch.Generator().manual_seed(seed))
    obs = rng.normal(size=(T + 1, N, 5)).astype(np.float32)
    start = np.ones(N, bool)
    buffer = model.rollout_buffer
    buffer.reset()
    for t in range(T):
        acted = policy.act(torch.from_numpy(obs[t]), torch.from_numpy(start))
        reward = rng.normal(size=N).astype(np.float32)
        terminal, episode_end, next_obs = np.zeros(N, bool), np.zeros(N, bool), obs[t + 1].copy()
        if t == 2:
            terminal[0] = episode_end[0] = True
        if t in (1, 3):
            episode_end[1] = True  # a time limit
            next_obs[1] = rng.normal(size=5)
        with torch.no_grad():
            value, log_prob, _ = model.policy.evaluate_actions(torch.from_numpy(obs[t]), acted.extras["raw_action"])
            last_value = model.policy.predict_values(torch.from_numpy(next_obs)).flatten()
        bootstrapped = reward + GAMMA * np.where(episode_end & ~terminal, last_value.numpy(), 0).astype(np.float32)
        raw = acted.extras["raw_action"].numpy().reshape(N, -1)
        buffer.add(obs[t], raw, bootstrapped, start.astype(np.float32), value.flatten(), log_prob)
        flags = (torch.from_numpy(flag) for flag in (terminal, episode_end, np.ones(N, bool)))
        transition = Transition(
            torch.from_numpy(obs[t]), acted.action, torch.from_numpy(reward), torch.from_numpy(next_obs), *flags
        )
        agent.observe(transition, acted)
        start = episode_end
    with torch.no_grad():
        last_value = model.policy.predict_values(torch.from_numpy(obs[T]))
    buffer.compute_returns_and_advantage(last_value, start)


def gradients(net: ActorCritic) -> dict[str, np.ndarray]:
    return {name: p.grad.numpy().copy() for name, p in net.named_parameters() if p.grad is not None}


def peer_gradients(net: ActorCritic, model: Any) -> dict[str, np.ndarray]:
    theirs = dict(model.policy.named_parameters())
    return {name: theirs[other].grad.numpy() for name, other in names(net).items()}


DISCRETE, CONTINUOUS = Discrete(4), Box(-1, 1, (2,), np.float32)
