"""Deep SARSA: on-policy TD control with a network, from n-step or lambda-returns of many environments.

After every T steps of N environments the returns are computed once, backwards, from the action values of a delayed
network at the actions that were taken; then the network is fitted to them in minibatches, and the steps are forgotten.

Sources:
    Rummery and Niranjan 1994, "On-line Q-learning using connectionist systems".
    Sutton and Barto 2018, sections 7.2 (n-step SARSA) and 12.7 (SARSA(lambda); here its forward view).
    Mnih et al. 2016, arXiv:1602.01783, Algorithm S2 and section 4 (one-step SARSA with a delayed target network).

Deviations from the sources:
    1. N environments stepped together in place of asynchronous workers; Adam and a clipped gradient.
    2. Returns are cut after T steps, so lambda-returns mix at most T rewards; each step is used `epochs` times.
    3. Learning waits for one step more than it learns from, whose actions close the last returns.
    4. At a time limit, which the sources do not have, the value behind the limit is that of an action drawn for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Dict, Discrete
from torch import Tensor, nn

from contract import Acted, ActionNet, Metrics, Mode, Obs, State, Task, Transition, to_device
from faults import ConfigError, check_range
from memory.q_policy import QPolicy
from memory.rollout import map_obs
from networks.heads import DuelingQHead, QHead
from networks.q_learner import QLearner, QLearnerSettings, make_q_net
from rules.exploration import epsilon_greedy_action
from rules.losses import squared_loss
from rules.returns import lambda_returns, n_step_returns
from rules.schedules import annealed, linear_schedule

LEARNS_IN_STEP = True
"""Several learners (learners.py) can share the work."""


@dataclass(frozen=True)
class Settings(QLearnerSettings):
    """The `agent.*` keys: those of the network (networks/q_learner.py), and these."""

    algorithm: str = "deep_sarsa"
    gamma: float = 0.99
    """Discount per environment step, in [0, 1]."""
    lambda_: float = 0.9
    """Between one-step targets (0) and Monte Carlo returns (1)."""
    n_step: int | None = None
    """If set, returns of so many rewards, and lambda_ is not used."""
    rollout_steps: int = 16
    """T: steps of every environment between two rounds of learning."""
    epochs: int = 2
    """Passes over a rollout."""
    minibatch_size: int = 64
    """Steps per gradient step; a smaller rollout is one minibatch."""
    epsilon_start: float = 1.0
    epsilon_end: float = 0.05
    epsilon_decay_env_steps: int = 10_000
    """Environment steps over which epsilon falls linearly from start to end."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("agent.gamma", self.gamma, 0, 1)
        check_range("agent.lambda_", self.lambda_, 0, 1)
        if self.n_step is not None:
            check_range("agent.n_step", self.n_step, 1, self.rollout_steps)
        check_range("agent.rollout_steps", self.rollout_steps, 1, None)
        check_range("agent.epochs", self.epochs, 1, None)
        check_range("agent.minibatch_size", self.minibatch_size, 1, None)
        check_range("agent.epsilon_start", self.epsilon_start, 0, 1)
        check_range("agent.epsilon_end", self.epsilon_end, 0, self.epsilon_start)
        check_range("agent.epsilon_decay_env_steps", self.epsilon_decay_env_steps, 0, None)


def make_agent(settings: Settings, task: Task) -> DeepSarsa:
    """Builds a deep SARSA agent for `task`.

    Raises:
        ConfigError: if the actions are not discrete, or the backbone cannot read the observations.
    """
    space = task.spec.action_space
    if not isinstance(space, Discrete):
        raise ConfigError(
            f"agent=deep_sarsa chooses among discrete actions; {task.spec.env_id} has {type(space).__name__} actions"
        )
    head = DuelingQHead if settings.dueling else QHead
    q_net = make_q_net(
        settings,
        task.spec.observation_space,
        lambda width: head(width, int(space.n)),
        task.streams.seed("network"),
        donor=task.donor,
    )
    return DeepSarsa(settings, q_net, task)


@torch.no_grad()
def sarsa_returns(
    q_net: nn.Module,
    target_q_net: nn.Module,
    steps: Transition,
    action_after: Tensor,
    epsilon: float,
    settings: Settings,
    generator: torch.Generator,
) -> Tensor:
    """Targets of on-policy steps.

    Equation:
        lambda- or n-step return of reward[t] with next_value[t] = Q_target(s_{t+1}, a_{t+1})

    Args:
        q_net: what the policy acts on; draws the actions behind time limits.
        target_q_net: values the actions.
        steps: T steps of N environments, (T, N, ...) each.
        action_after: (N,) int64, taken after the last step; not read where an episode ended there.
        epsilon: of the policy.
        settings: gamma, and the kind of return.
        generator: on the networks' device.

    Returns:
        (T, N) float32. Rows that are not valid are meaningless.
    """
    num_steps, num_envs = steps.reward.shape
    next_obs = steps.next_obs
    flat = map_obs(lambda part: part.flatten(0, 1), next_obs)
    next_q: Tensor = target_q_net(flat).view(num_steps, num_envs, -1)
    next_action = torch.cat([steps.action[1:], action_after[None]])
    time_limit = steps.episode_end & ~steps.terminal
    next_action[time_limit] = epsilon_greedy_action(
        q_net(map_obs(lambda part: part[time_limit], next_obs)), epsilon, generator
    )
    next_value = next_q.gather(2, next_action[..., None]).squeeze(2)
    discount = settings.gamma * (~steps.terminal).float()
    cut = steps.terminal | steps.episode_end
    if settings.n_step is not None:
        return n_step_returns(steps.reward, discount, next_value, cut, settings.n_step)
    return lambda_returns(steps.reward, discount, next_value, cut, settings.lambda_)


class DeepSarsa:
    """Deep SARSA agent; see the module docstring for sources and deviations."""

    def __init__(self, settings: Settings, q_net: nn.Sequential, task: Task) -> None:
        self._settings = settings
        self._total_env_steps = task.total_env_steps
        self.learner = QLearner(settings, q_net, task.device)
        self.q_net, self.target_q_net = self.learner.q_net, self.learner.target_q_net
        self._generator = task.streams.torch("deep_sarsa", device=task.device)
        self._rows: list[Transition] = []
        space = task.spec.observation_space
        parts = space.values() if isinstance(space, Dict) else [space]
        row_bytes = 2 * sum(int(np.prod(part.shape or ())) * np.dtype(part.dtype).itemsize for part in parts) + 15
        self.memory_bytes = (settings.rollout_steps + 1) * task.spec.num_envs * row_bytes

    @property
    def epsilon(self) -> float:
        """The exploration rate at this step of training."""
        s = self._settings
        return linear_schedule(self.learner.env_steps, s.epsilon_start, s.epsilon_end, s.epsilon_decay_env_steps)

    @property
    def learning_rate(self) -> float:
        """The learning rate at this step of training."""
        s = self._settings
        return annealed(self.learner.env_steps, s.learning_rate, s.learning_rate_end, self._total_env_steps)

    def policy(self, mode: Mode, num_envs: int, generator: torch.Generator) -> QPolicy:
        if mode.name == "sample":
            raise ConfigError(
                "agent=deep_sarsa has no stochastic policy of its own; use epsilon=<x> or temperature=<x>"
            )

        def values(obs: Obs) -> Tensor:
            q: Tensor = self.q_net(to_device(obs, self.learner.device))
            return q

        return QPolicy(values, lambda q: epsilon_greedy_action(q, self.epsilon, generator), mode, generator)

    def action_net(self) -> ActionNet:
        return ActionNet(self.q_net, "values")

    def observe(self, transition: Transition, acted: Acted) -> None:
        reward = transition.reward.clamp(-1, 1) if self._settings.clip_reward else transition.reward
        row = transition._replace(reward=reward)
        self._rows.append(Transition(*(map_obs(Tensor.clone, to_device(part, self.learner.device)) for part in row)))
        self.learner.env_steps += int(transition.valid.sum())

    def update(self) -> Metrics:
        metrics: Metrics = {}
        if len(self._rows) > self._settings.rollout_steps:
            metrics = self._learn()
            del self._rows[:-1]
        self.learner.sync_target()
        return metrics

    def _learn(self) -> Metrics:
        s = self._settings
        steps = Transition(*(_stack(parts) for parts in zip(*self._rows[:-1], strict=True)))
        if s.measures_mean_image and not self.learner.updates:
            assert isinstance(steps.obs, Tensor)
            self.learner.center_pixels(steps.obs.float().mean(dim=(0, 1)))
        target = sarsa_returns(
            self.q_net, self.target_q_net, steps, self._rows[-1].action, self.epsilon, s, self._generator
        )
        obs = map_obs(lambda part: part[steps.valid], steps.obs)
        action, target = steps.action[steps.valid], target[steps.valid]
        metrics: Metrics = {}
        for _ in range(s.epochs):
            order = torch.randperm(len(target), generator=self._generator, device=target.device)
            for chosen in torch.split(order, s.minibatch_size):
                q = self.q_net(map_obs(itemgetter(chosen), obs)).gather(1, action[chosen, None]).squeeze(1)
                metrics = self.learner.step(squared_loss(q, target[chosen]), self.learning_rate)
                metrics["train/q_mean"] = q.detach().mean()
        return metrics | {"rollout/exploration_rate": self.epsilon}

    def policy_state_dict(self) -> State:
        return {"q_net": self.q_net.state_dict()}

    def load_policy_state_dict(self, state: State) -> None:
        self.q_net.load_state_dict(state["q_net"])

    def state_dict(self) -> State:
        return {
            "policy": self.policy_state_dict(),
            **self.learner.state_dict(),
            "rows": {str(t): row._asdict() for t, row in enumerate(self._rows)},
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: State) -> None:
        self.load_policy_state_dict(state["policy"])
        self.learner.load_state_dict(state)
        rows = state["rows"]
        self._rows = [
            Transition(**{name: to_device(part, self.learner.device) for name, part in rows[str(t)].items()})
            for t in range(len(rows))
        ]
        self._generator.set_state(state["generator"])


def _stack(rows: tuple[Any, ...]) -> Any:
    """T tensors, or dicts of them -> one tensor (T, ...), or a dict."""
    if isinstance(rows[0], dict):
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    return torch.stack(rows)
