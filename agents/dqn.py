"""Deep Q-Network (DQN): Q-learning with replay and a delayed target network, and every later part by a key of its own.

    key                        part                                    configs/agent/
    double, dueling, n_step    targets and head                        dqn.yaml (n_step 3, double)
    distribution=categorical   C51: returns on fixed atoms             c51.yaml
    distribution=quantile      QR-DQN: quantiles of the return         qr_dqn.yaml
    prioritized                replay by priority
    noisy                      exploration by noisy weights
    all of them                Rainbow                                 rainbow.yaml

Each part is a choice of replay, of layer, of head or of loss, made once when the agent is built; the learning step is
the same for all.

Sources:
    Mnih et al. 2015, "Human-level control through deep reinforcement learning", Nature 518, Algorithm 1.
    van Hasselt, Guez and Silver 2016, arXiv:1509.06461 (`double`).
    Wang et al. 2016, arXiv:1511.06581 (`dueling`).
    Schaul et al. 2016, arXiv:1511.05952 (`prioritized`).
    Bellemare, Dabney and Munos 2017, arXiv:1707.06887 (`distribution=categorical`).
    Dabney, Rowland, Bellemare and Munos 2018, arXiv:1710.10044 (`distribution=quantile`).
    Fortunato et al. 2018, arXiv:1706.10295 (`noisy`).
    Sutton 1988 (`n_step`); Hessel et al. 2018, arXiv:1710.02298 (all of them: Rainbow).

Deviations from the sources:
    1. Adam instead of RMSProp, with a linearly annealed learning rate if `learning_rate_end` is set.
    2. The norm of the whole gradient is clipped; Mnih et al. clip the error of each sample (which Huber's loss does).
    3. N environments act at once. Gradient steps are counted in replayed samples per environment step, so neither N nor
       the batch size changes how often a transition is learned from.
    4. The target network is synchronised every so many environment steps, not gradient steps.
    5. The dueling head has no hidden layer of its own (see `networks/heads.py`).
    6. `center_pixels` subtracts the mean image of the warm-up from what the network sees. The paper feeds raw pixels.
    7. Every environment that acts and every sample of a batch has noise of its own (`networks/noisy.py` says why).
       Evaluation uses the means. Epsilon is in force besides noise: before learning starts noise alone hardly explores.
    8. Priorities are the Kullback-Leibler divergence with a categorical distribution, as in Rainbow; with quantiles
       they are the error of the mean, for which there is no source.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from gymnasium.spaces import Discrete
from torch import Tensor, nn

from contract import Acted, ActionNet, Batch, Metrics, Mode, Obs, State, Task, Transition, to_device
from faults import ConfigError, check_choice, check_range
from memory.prioritized import PrioritizedReplay
from memory.q_policy import QPolicy
from memory.replay import Replay, ReplaySettings
from networks.heads import CategoricalHead, DistributionHead, DuelingQHead, QHead, QuantileHead
from networks.noisy import noise
from networks.q_learner import QLearner, QLearnerSettings, make_q_net
from rules.distributional import (
    categorical_loss,
    categorical_target,
    quantile_loss,
    quantile_midpoints,
    quantile_target,
)
from rules.exploration import epsilon_greedy_action, greedy_action
from rules.losses import huber_loss, weighted_mean
from rules.schedules import annealed, linear_schedule
from rules.targets import double_q_target, q_learning_target

LEARNS_IN_STEP = True
"""Several learners (learners.py) can share the work."""


@dataclass(frozen=True)
class Settings(ReplaySettings, QLearnerSettings):
    """The `agent.*` keys: those of the replay (memory/replay.py), of the network (networks/q_learner.py), and these."""

    algorithm: str = "dqn"
    name: str = "dqn"
    """What runs are called: the name of the file in configs/agent/."""
    epsilon_start: float = 1.0
    epsilon_end: float = 0.05
    epsilon_decay_env_steps: int = 10_000
    """Environment steps over which epsilon falls linearly from start to end."""
    double: bool = False
    """The online network chooses the next action, the target network values it."""
    prioritized: bool = False
    """Draw from the replay by priority."""
    priority_alpha: float = 0.5
    """0: uniformly; 1: in proportion to the error."""
    priority_beta: float = 0.4
    """Of the importance weights, at the start; it rises linearly to 1 over the run."""
    noisy: bool = False
    """Explore by noise in every fully connected layer but that of class codes, besides epsilon, which may then end
    at 0."""
    noisy_sigma: float = 0.5
    """Initial size of the noise."""
    distribution: str = "none"
    """none: action values; categorical: C51; quantile: QR-DQN."""
    num_atoms: int = 51
    """Atoms, or quantiles."""
    v_min: float = -10.0
    """Smallest return that a categorical distribution knows."""
    v_max: float = 10.0
    """Largest return that a categorical distribution knows."""

    def __post_init__(self) -> None:
        ReplaySettings.__post_init__(self)
        QLearnerSettings.__post_init__(self)
        check_range("agent.epsilon_start", self.epsilon_start, 0, 1)
        check_range("agent.epsilon_end", self.epsilon_end, 0, self.epsilon_start)
        check_range("agent.epsilon_decay_env_steps", self.epsilon_decay_env_steps, 0, None)
        check_range("agent.priority_alpha", self.priority_alpha, 0, 1)
        check_range("agent.priority_beta", self.priority_beta, 0, 1)
        check_range("agent.noisy_sigma", self.noisy_sigma, 0, None)
        check_choice("agent.distribution", self.distribution, LOSSES)
        check_range("agent.num_atoms", self.num_atoms, 2, 10_000)
        check_range("agent.v_max", self.v_max, self.v_min, None, open_low=True)


def make_agent(settings: Settings, task: Task) -> DQN:
    """Builds a DQN agent for `task`.

    Raises:
        ConfigError: if the actions are not discrete, or the backbone cannot read the observations.
    """
    s, space = settings, task.spec.action_space
    if not isinstance(space, Discrete):
        raise ConfigError(
            f"agent={s.name} chooses among discrete actions; {task.spec.env_id} has {type(space).__name__} actions "
            "(agent=ppo, a2c and sac take them)"
        )
    q_net = make_q_net(
        s,
        task.spec.observation_space,
        lambda width: make_head(s, width, int(space.n)),
        task.streams.seed("network"),
        s.noisy_sigma if s.noisy else None,
        task.donor,
    )
    generator = task.streams.numpy("replay")
    replay: Replay | PrioritizedReplay
    if s.prioritized:
        replay = PrioritizedReplay(s.replay_capacity, task.spec, s.gamma, s.n_step, s.priority_alpha, generator)
    else:
        replay = Replay(s.replay_capacity, task.spec, s.gamma, s.n_step, generator)
    return DQN(s, q_net, replay, task)


def make_head(settings: Settings, in_dim: int, num_actions: int) -> nn.Module:
    """What the last layer predicts of each action: its value, or a distribution of returns."""
    s = settings
    if s.distribution == "categorical":
        support = torch.linspace(s.v_min, s.v_max, s.num_atoms)
        return CategoricalHead(in_dim, num_actions, support, s.dueling)
    if s.distribution == "quantile":
        return QuantileHead(in_dim, num_actions, s.num_atoms, s.dueling)
    return (DuelingQHead if s.dueling else QHead)(in_dim, num_actions)


class Learned(NamedTuple):
    """What a loss says about a batch."""

    loss: Tensor
    """()."""
    q: Tensor
    """(B,): Q(s, a), detached."""
    error: Tensor
    """(B,): how far each sample is from its target, detached and unweighted: its priority."""


def td_loss(
    q_net: nn.Module, target_q_net: nn.Module, batch: Batch, double: bool, weight: Tensor | None = None
) -> Learned:
    """Huber loss of the action values against their Q-learning targets.

    Equation:
        loss = mean weight * huber(Q(s, a) - y),  y = reward + discount * max_a' Q_target(s', a')
        with `double`: y = reward + discount * Q_target(s', argmax_a' Q(s', a'))
    """
    with torch.no_grad():
        next_q_target = target_q_net(batch.next_obs)  # (B, A)
        if double:
            target = double_q_target(batch.reward, batch.discount, q_net(batch.next_obs), next_q_target)
        else:
            target = q_learning_target(batch.reward, batch.discount, next_q_target)
    q = q_net(batch.obs).gather(1, batch.action[:, None]).squeeze(1)  # (B,)
    return Learned(huber_loss(q, target, weight=weight), q.detach(), (target - q).detach())


def c51_loss(
    q_net: nn.Sequential, target_q_net: nn.Sequential, batch: Batch, double: bool, weight: Tensor | None = None
) -> Learned:
    """Divergence of the predicted distribution of returns from its projected target.

    Equation:
        loss = mean weight * KL(projection of (reward + discount * z, p_target(s', a')) || p(s, a))
        a' = argmax_a of the mean of p_target(s', a), or with `double` of p(s', a)
    """
    head = q_net[1]
    assert isinstance(head, CategoricalHead)
    with torch.no_grad():
        next_probability = predict_next(q_net, target_q_net, batch, double).softmax(dim=-1)  # (B, Z)
        target = categorical_target(batch.reward, batch.discount, next_probability, head.support)
    logits = predict(q_net, batch)  # (B, Z)
    loss = categorical_loss(logits, target)  # (B,)
    return Learned(weighted_mean(loss, weight), head.mean(logits.detach()), loss.detach())


def qr_loss(
    q_net: nn.Sequential, target_q_net: nn.Sequential, batch: Batch, double: bool, weight: Tensor | None = None
) -> Learned:
    """Quantile regression of the predicted quantiles of returns on those of the target.

    Equation:
        loss = mean weight * quantile_loss(theta(s, a), reward + discount * theta_target(s', a'))
        a' = argmax_a of the mean of theta_target(s', a), or with `double` of theta(s', a)
    """
    with torch.no_grad():
        next_quantiles = predict_next(q_net, target_q_net, batch, double)  # (B, Z)
        target = quantile_target(batch.reward, batch.discount, next_quantiles)
    quantiles = predict(q_net, batch)  # (B, Z)
    loss = quantile_loss(quantiles, target, quantile_midpoints(quantiles.shape[1], quantiles.device))  # (B,)
    q = quantiles.detach().mean(dim=1)
    return Learned(weighted_mean(loss, weight), q, target.mean(dim=1) - q)


LOSSES = {"none": td_loss, "categorical": c51_loss, "quantile": qr_loss}


def predict(q_net: nn.Sequential, batch: Batch) -> Tensor:
    """The distribution that a network predicts for the action of each sample: (B, Z)."""
    return of_action(distributions(q_net, batch.obs), batch.action)


def predict_next(q_net: nn.Sequential, target_q_net: nn.Sequential, batch: Batch, double: bool) -> Tensor:
    """The target network's distribution for the best action of the next state: (B, Z)."""
    next_distribution = distributions(target_q_net, batch.next_obs)
    if double:
        q = q_net(batch.next_obs)  # (B, A)
    else:
        head = target_q_net[1]
        assert isinstance(head, DistributionHead)
        q = head.mean(next_distribution)
    return of_action(next_distribution, greedy_action(q))


def distributions(q_net: nn.Sequential, obs: Obs) -> Tensor:
    """What a network of backbone and head predicts for every action: (B, A, Z)."""
    backbone, head = q_net
    assert isinstance(head, DistributionHead)
    return head.distribution(backbone(obs))


def of_action(distribution: Tensor, action: Tensor) -> Tensor:
    """(B, A, Z) and (B,) -> (B, Z)."""
    return distribution[torch.arange(len(action), device=action.device), action]


class DQN:
    """DQN agent; see the module docstring for sources and deviations."""

    def __init__(
        self, settings: Settings, q_net: nn.Sequential, replay: Replay | PrioritizedReplay, task: Task
    ) -> None:
        self._settings = settings
        self._total_env_steps = task.total_env_steps
        self.learner = QLearner(settings, q_net, task.device)
        self.q_net, self.target_q_net = self.learner.q_net, self.learner.target_q_net
        self.replay = replay
        self._loss = LOSSES[settings.distribution]
        self._noise = task.streams.torch("noise", device=task.device)

    @property
    def memory_bytes(self) -> int:
        return self.replay.bytes

    @property
    def epsilon(self) -> float:
        """The exploration rate at this step of training."""
        s = self._settings
        return linear_schedule(self.learner.env_steps, s.epsilon_start, s.epsilon_end, s.epsilon_decay_env_steps)

    @property
    def priority_beta(self) -> float:
        """Exponent of the importance weights at this step of training."""
        return linear_schedule(self.learner.env_steps, self._settings.priority_beta, 1.0, self._total_env_steps)

    @property
    def learning_rate(self) -> float:
        """The learning rate at this step of training."""
        s = self._settings
        return annealed(self.learner.env_steps, s.learning_rate, s.learning_rate_end, self._total_env_steps)

    def policy(self, mode: Mode, num_envs: int, generator: torch.Generator) -> QPolicy:
        if mode.name == "sample":
            raise ConfigError(
                f"agent={self._settings.name} has no stochastic policy of its own; use epsilon=<x> or temperature=<x>"
            )
        own_noise = generator if mode.name == "train" else None

        def values(obs: Obs) -> Tensor:
            with noise(own_noise, self.q_net):
                q: Tensor = self.q_net(to_device(obs, self.learner.device))
                return q

        return QPolicy(values, lambda q: epsilon_greedy_action(q, self.epsilon, generator), mode, generator)

    def action_net(self) -> ActionNet:
        return ActionNet(self.q_net, "values")

    def observe(self, transition: Transition, acted: Acted) -> None:
        reward = transition.reward.clamp(-1, 1) if self._settings.clip_reward else transition.reward
        self.replay.add(transition, reward)
        self.learner.env_steps += int(transition.valid.sum())

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
        s, device = self._settings, self.learner.device
        weight = None
        if isinstance(self.replay, PrioritizedReplay):
            batch, weight = self.replay.sample(s.batch_size, self.priority_beta)
            weight = weight.to(device)
        else:
            batch = self.replay.sample(s.batch_size)
        with noise(self._noise, self.q_net, self.target_q_net):
            loss, q, error = self._loss(self.q_net, self.target_q_net, batch.to(device), s.double, weight)
        metrics = self.learner.step(loss, self.learning_rate)
        if isinstance(self.replay, PrioritizedReplay):
            self.replay.update_priorities(error)
        return metrics | {
            "train/q_mean": q.mean(),
            "train/unweighted_error": error.abs().mean(),
            "rollout/exploration_rate": self.epsilon,
        }

    def policy_state_dict(self) -> State:
        return {"q_net": self.q_net.state_dict()}

    def load_policy_state_dict(self, state: State) -> None:
        self.q_net.load_state_dict(state["q_net"])

    def state_dict(self) -> State:
        return {
            "policy": self.policy_state_dict(),
            **self.learner.state_dict(),
            "replay": self.replay.state_dict(),
            "noise": self._noise.get_state(),
        }

    def load_state_dict(self, state: State) -> None:
        self.load_policy_state_dict(state["policy"])
        self.learner.load_state_dict(state)
        self.replay.load_state_dict(state["replay"])
        self._noise.set_state(state["noise"])
