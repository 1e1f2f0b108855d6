"""Softmax-over-Q with a network: acts by pi(a|s) = exp(Q(s,a)/tau) / sum_b exp(Q(s,b)/tau), learns under that policy.

    backup=expected_sarsa   sum_a' pi(a'|s') Q(s', a')            what the policy earns
    backup=soft             tau log sum_a' exp(Q(s', a') / tau)   what it earns, and tau times its entropy

The temperature tau is fixed, falls with the environment steps, or is tuned until the policy has a wanted entropy.

A file of its own rather than keys of agents/dqn.py: the same tau acts, forms the targets and may itself be learned, and
what makes DQN's variants (double targets, epsilon, distributions) has no meaning here.

Sources:
    Sutton and Barto 2018, equation 2.11 with preferences Q / tau.
    van Seijen et al. 2009 (expected SARSA); Asadi and Littman 2017, arXiv:1612.05628 (what its softmax form lacks).
    Haarnoja, Tang, Abbeel and Levine 2017, arXiv:1702.08165 (soft backup).
    Haarnoja et al. 2018, arXiv:1812.05905, section 5 (tuning tau to a target entropy).
    Vieillard, Pietquin and Geist 2020, arXiv:2007.14430 (`munchausen`).

Deviations from the sources:
    1. A replay, a delayed target network, Huber's loss, Adam and a clipped gradient as in agents/dqn.py.
    2. The softmax in the targets is that of the target network.
    3. With `n_step` above 1 the steps between are those of older policies; the soft backup leaves out their entropy.
    4. tau is tuned by plain gradient steps on its logarithm: it rises in proportion to the entropy that is missing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from gymnasium.spaces import Discrete
from torch import Tensor, nn

from contract import Acted, ActionNet, Batch, Metrics, Mode, Obs, State, Task, Transition, to_device
from faults import ConfigError, check_choice, check_range
from learners import average
from memory.q_policy import QPolicy
from memory.replay import Replay, ReplaySettings
from networks.heads import DuelingQHead, QHead
from networks.q_learner import QLearner, QLearnerSettings, make_q_net
from rules.exploration import boltzmann_action, softmax_policy
from rules.losses import huber_loss
from rules.schedules import annealed, linear_schedule
from rules.targets import munchausen_reward, soft_target, softmax_target

LEARNS_IN_STEP = True
"""Several learners (learners.py) can share the work."""

BACKUPS = {"expected_sarsa": softmax_target, "soft": soft_target}


@dataclass(frozen=True)
class Settings(ReplaySettings, QLearnerSettings):
    """The `agent.*` keys: those of the replay (memory/replay.py), of the network (networks/q_learner.py), and these."""

    algorithm: str = "softmax_dqn"
    backup: str = "expected_sarsa"
    """expected_sarsa or soft."""
    temperature_start: float = 1.0
    """tau, in the units of Q."""
    temperature_end: float = 0.05
    temperature_decay_env_steps: int = 10_000
    """Environment steps over which tau falls linearly from start to end; 0: tau is temperature_end throughout."""
    target_entropy: float | None = None
    """If set, tau starts at temperature_start and is tuned until the policy's mean entropy is this share of log(A)."""
    temperature_learning_rate: float = 1e-3
    """Of log tau, per gradient step."""
    munchausen: float = 0.0
    """Weight of the log-probability that is added to the reward, in [0, 1]; the paper has 0.9. Needs backup=soft."""
    munchausen_floor: float = -1.0
    """Smallest tau times log-probability that is added."""

    def __post_init__(self) -> None:
        ReplaySettings.__post_init__(self)
        QLearnerSettings.__post_init__(self)
        check_choice("agent.backup", self.backup, BACKUPS)
        check_range("agent.temperature_start", self.temperature_start, 0, None, open_low=True)
        check_range("agent.temperature_end", self.temperature_end, 0, None, open_low=True)
        check_range("agent.temperature_decay_env_steps", self.temperature_decay_env_steps, 0, None)
        if self.target_entropy is not None:
            check_range("agent.target_entropy", self.target_entropy, 0, 1)
        check_range("agent.temperature_learning_rate", self.temperature_learning_rate, 0, None)
        check_range("agent.munchausen", self.munchausen, 0, 1)
        check_range("agent.munchausen_floor", self.munchausen_floor, None, 0)
        if self.munchausen and (self.backup != "soft" or self.n_step > 1):
            raise ConfigError("agent.munchausen needs agent.backup=soft and agent.n_step=1")


def make_agent(settings: Settings, task: Task) -> SoftmaxDQN:
    """Builds a softmax-over-Q agent for `task`.

    Raises:
        ConfigError: if the actions are not discrete, or the backbone cannot read the observations.
    """
    s, space = settings, task.spec.action_space
    if not isinstance(space, Discrete):
        raise ConfigError(
            f"agent=softmax_dqn chooses among discrete actions; {task.spec.env_id} has {type(space).__name__} actions"
        )
    head = DuelingQHead if s.dueling else QHead
    q_net = make_q_net(
        s,
        task.spec.observation_space,
        lambda width: head(width, int(space.n)),
        task.streams.seed("network"),
        donor=task.donor,
    )
    replay = Replay(s.replay_capacity, task.spec, s.gamma, s.n_step, task.streams.numpy("replay"))
    return SoftmaxDQN(s, q_net, replay, task)


class Learned(NamedTuple):
    """What the loss says about a batch."""

    loss: Tensor
    """()."""
    q: Tensor
    """(B,): Q(s, a), detached."""
    entropy: Tensor
    """(): mean entropy of the policy, detached."""


def softmax_td_loss(
    q_net: nn.Module, target_q_net: nn.Module, batch: Batch, settings: Settings, temperature: float
) -> Learned:
    """Huber loss of the action values against the backup of the softmax policy.

    Equation:
        loss = mean huber(Q(s, a) - y),  y = backup(reward, discount, Q_target(s', .), tau)
        with `munchausen` the reward is munchausen_reward(reward, Q_target(s, .), a, tau)
    """
    s = settings
    reward = batch.reward
    with torch.no_grad():
        if s.munchausen:
            q_target = target_q_net(batch.obs)
            reward = munchausen_reward(reward, q_target, batch.action, temperature, s.munchausen, s.munchausen_floor)
        target = BACKUPS[s.backup](reward, batch.discount, target_q_net(batch.next_obs), temperature)
    all_q = q_net(batch.obs)  # (B, A)
    q = all_q.gather(1, batch.action[:, None]).squeeze(1)  # (B,)
    policy = softmax_policy(all_q.detach(), temperature)
    return Learned(huber_loss(q, target), q.detach(), -torch.xlogy(policy, policy).sum(dim=1).mean())


class SoftmaxDQN:
    """Softmax-over-Q agent; see the module docstring for sources and deviations."""

    def __init__(self, settings: Settings, q_net: nn.Sequential, replay: Replay, task: Task) -> None:
        self._settings = settings
        self._total_env_steps = task.total_env_steps
        self.learner = QLearner(settings, q_net, task.device)
        self.q_net, self.target_q_net = self.learner.q_net, self.learner.target_q_net
        self.replay = replay
        assert isinstance(task.spec.action_space, Discrete)
        self._max_entropy = math.log(task.spec.action_space.n)
        self.temperature = settings.temperature_start
        self._schedule_temperature()

    @property
    def memory_bytes(self) -> int:
        return self.replay.bytes

    @property
    def learning_rate(self) -> float:
        """The learning rate at this step of training."""
        s = self._settings
        return annealed(self.learner.env_steps, s.learning_rate, s.learning_rate_end, self._total_env_steps)

    def policy(self, mode: Mode, num_envs: int, generator: torch.Generator) -> QPolicy:
        def values(obs: Obs) -> Tensor:
            q: Tensor = self.q_net(to_device(obs, self.learner.device))
            return q

        return QPolicy(values, lambda q: boltzmann_action(q, self.temperature, generator), mode, generator)

    def action_net(self) -> ActionNet:
        return ActionNet(self.q_net, "values")

    def observe(self, transition: Transition, acted: Acted) -> None:
        reward = transition.reward.clamp(-1, 1) if self._settings.clip_reward else transition.reward
        self.replay.add(transition, reward)
        self.learner.env_steps += int(transition.valid.sum())
        self._schedule_temperature()

    def update(self) -> Metrics:
        metrics: Metrics = {}
        due = self._settings.updates_due(self.learner.env_steps)
        if due and not self.learner.updates and self._settings.measures_mean_image:
            self.learner.center_pixels(self.replay.mean_obs())
        while self.learner.updates < due:
            metrics = self._gradient_step()
        self.learner.sync_target()
        return metrics

    def _gradient_step(self) -> Metrics:
        batch = self.replay.sample(self._settings.batch_size).to(self.learner.device)
        loss, q, entropy = softmax_td_loss(self.q_net, self.target_q_net, batch, self._settings, self.temperature)
        metrics = self.learner.step(loss, self.learning_rate)
        self._tune_temperature(entropy)
        return metrics | {
            "train/q_mean": q.mean(),
            "train/entropy": entropy,
            "rollout/temperature": self.temperature,
        }

    def _schedule_temperature(self) -> None:
        s = self._settings
        if s.target_entropy is None:
            self.temperature = linear_schedule(
                self.learner.env_steps, s.temperature_start, s.temperature_end, s.temperature_decay_env_steps
            )

    def _tune_temperature(self, entropy: Tensor) -> None:
        s = self._settings
        if s.target_entropy is not None:
            missing = s.target_entropy * self._max_entropy - float(average(entropy))
            self.temperature *= math.exp(s.temperature_learning_rate * missing)

    def policy_state_dict(self) -> State:
        return {"q_net": self.q_net.state_dict(), "temperature": self.temperature}

    def load_policy_state_dict(self, state: State) -> None:
        self.q_net.load_state_dict(state["q_net"])
        self.temperature = float(state["temperature"])

    def state_dict(self) -> State:
        return {
            "policy": self.policy_state_dict(),
            **self.learner.state_dict(),
            "replay": self.replay.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        self.load_policy_state_dict(state["policy"])
        self.learner.load_state_dict(state)
        self.replay.load_state_dict(state["replay"])
