"""Advantage actor-critic (A2C): one policy-gradient step on every short rollout.

Sources:
    Mnih et al. 2016, "Asynchronous Methods for Deep Reinforcement Learning", arXiv:1602.01783, Algorithm S3.
    OpenAI baselines: N environments stepped together in place of asynchronous workers.

Deviations from the sources:
    1. One learner acts in N environments at once and takes one step per rollout; the paper's workers take theirs alone.
    2. A time limit is no terminal: the return bootstraps from the value of the true last observation.
    3. `gae_lambda` below 1 weighs the n-step returns; 1 is the paper's longest possible return.
    4. torch's RMSprop adds epsilon after the square root, the paper before it.
    5. The loss is a mean over the rollout, where the paper sums: learning rates are larger by that factor.
    6. `center_pixels` subtracts the mean image of the steps before learning starts from what the network sees.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from contract import Acted, ActionNet, Metrics, Mode, State, Task, Transition
from faults import check_choice, check_range
from memory.actor import ActorCriticPolicy, Experience, MeanImage, actor_critic_loss, actor_net
from memory.rollout import Rollout, rollout_bytes
from networks.actor_critic import ActorCritic, NetworkSettings, make_actor_critic
from networks.optimizer import clipped_gradient, load_optimizer_state, optimizer_state
from rules.distributions import GAUSSIANS, ActionDistribution, make_distribution
from rules.policy_gradient import explained_variance
from rules.schedules import annealed

LEARNS_IN_STEP = True
"""Several learners (learners.py) can share the work."""


@dataclass(frozen=True)
class Settings(NetworkSettings):
    """The `agent.*` keys."""

    algorithm: str = "a2c"
    gamma: float = 0.99
    """Discount per environment step, in [0, 1]."""
    gae_lambda: float = 1.0
    """Of generalized advantage estimation, in [0, 1]: 0 trusts the values, 1 the rewards."""
    rollout_steps: int = 5
    """Steps of each environment between two updates."""
    learning_rate: float = 7e-4
    learning_rate_end: float | None = None
    """If set, the learning rate falls linearly to this value over the run."""
    rmsprop_alpha: float = 0.99
    """Decay of the mean of squared gradients."""
    rmsprop_epsilon: float = 1e-5
    max_grad_norm: float = 0.5
    value_coef: float = 0.5
    entropy_coef: float = 0.0
    normalize_advantage: bool = False
    clip_reward: bool = False
    """Learn from rewards clipped to [-1, 1]; reported returns stay raw."""
    gaussian: str = "clipped"
    """Continuous actions: clipped at the bounds, or squashed into them by tanh."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("agent.gamma", self.gamma, 0, 1)
        check_range("agent.gae_lambda", self.gae_lambda, 0, 1)
        check_range("agent.rollout_steps", self.rollout_steps, 1, None)
        check_range("agent.learning_rate", self.learning_rate, 0, None, open_low=True)
        if self.learning_rate_end is not None:
            check_range("agent.learning_rate_end", self.learning_rate_end, 0, None)
        check_range("agent.rmsprop_alpha", self.rmsprop_alpha, 0, 0.999_999)
        check_range("agent.rmsprop_epsilon", self.rmsprop_epsilon, 0, None, open_low=True)
        check_range("agent.max_grad_norm", self.max_grad_norm, 0, None, open_low=True)
        check_range("agent.value_coef", self.value_coef, 0, None)
        check_range("agent.entropy_coef", self.entropy_coef, 0, None)
        check_choice("agent.gaussian", self.gaussian, GAUSSIANS)


def make_agent(settings: Settings, task: Task) -> A2C:
    """Builds an A2C agent for `task`.

    Raises:
        ConfigError: if the actions are of another kind, or the backbone cannot read the observations.
    """
    with torch.random.fork_rng(devices=[]):  # initial weights come from the run's own stream
        torch.manual_seed(task.streams.seed("network"))
        net = make_actor_critic(settings, task.spec.observation_space, task.spec.action_space, task.donor)
    distribution = make_distribution(task.spec.action_space, settings.gaussian, task.device)
    return A2C(settings, net.to(task.device), distribution, task)


class A2C:
    """A2C agent; see the module docstring for sources and deviations."""

    def __init__(self, settings: Settings, net: ActorCritic, distribution: ActionDistribution, task: Task) -> None:
        self._settings = settings
        self._distribution = distribution
        self._total_env_steps = task.total_env_steps
        self._device = task.device
        self.net = net
        self.rollout = Rollout(settings.rollout_steps)
        self.memory_bytes = rollout_bytes(settings.rollout_steps, task.spec, net.state_dim)
        self._mean_image = MeanImage()
        self.optimizer = torch.optim.RMSprop(
            net.parameters(), settings.learning_rate, alpha=settings.rmsprop_alpha, eps=settings.rmsprop_epsilon
        )
        self._env_steps = 0
        self._updates = 0

    @property
    def learning_rate(self) -> float:
        """The learning rate at this step of training."""
        s = self._settings
        return annealed(self._env_steps, s.learning_rate, s.learning_rate_end, self._total_env_steps)

    def policy(self, mode: Mode, num_envs: int, generator: torch.Generator) -> ActorCriticPolicy:
        return ActorCriticPolicy(self.net, self._distribution, mode, num_envs, generator)

    def action_net(self) -> ActionNet:
        return actor_net(self.net, self._distribution)

    def observe(self, transition: Transition, acted: Acted) -> None:
        reward = transition.reward.clamp(-1, 1) if self._settings.clip_reward else transition.reward
        self.rollout.add(transition, reward, acted.extras)

    def update(self) -> Metrics:
        if not self.rollout.full:
            return {}
        learning = self._env_steps >= self._settings.learning_starts_env_steps
        self._env_steps += self.rollout.env_steps
        metrics = self._learn() if learning else self._warm_up()
        self.rollout.clear()
        return metrics

    def _warm_up(self) -> Metrics:
        if self._settings.measures_mean_image:
            self._mean_image.add(self.rollout.obs)
            if self._env_steps >= self._settings.learning_starts_env_steps:
                self.net.center(self._mean_image.mean)
        return {}

    def _learn(self) -> Metrics:
        s = self._settings
        experience = Experience.of(self.rollout, self.net, s.gamma, s.gae_lambda, self._device)
        loss, figures = actor_critic_loss(
            self.net, self._distribution, experience, s.value_coef, s.entropy_coef, s.normalize_advantage
        )
        grad_norm = clipped_gradient(self.net, loss, s.max_grad_norm, f"update {self._updates + 1}")
        self.optimizer.param_groups[0]["lr"] = self.learning_rate
        self.optimizer.step()
        self._updates += 1
        metrics: Metrics = dict(figures)
        return metrics | {
            "train/explained_variance": explained_variance(experience.value, experience.value_target, experience.valid),
            "train/grad_norm": grad_norm,
            "train/learning_rate": self.learning_rate,
            "train/n_updates": float(self._updates),
        }

    def policy_state_dict(self) -> State:
        return {"net": self.net.state_dict()}

    def load_policy_state_dict(self, state: State) -> None:
        self.net.load_state_dict(state["net"])

    def state_dict(self) -> State:
        return {
            "policy": self.policy_state_dict(),
            "optimizer": optimizer_state(self.optimizer),
            "rollout": self.rollout.state_dict(),
            "mean_image": self._mean_image.state_dict(),
            "counters": {"env_steps": self._env_steps, "updates": self._updates},
        }

    def load_state_dict(self, state: State) -> None:
        self.load_policy_state_dict(state["policy"])
        load_optimizer_state(self.optimizer, state["optimizer"])
        self.rollout.load_state_dict(state["rollout"])
        self._mean_image.load_state_dict(state["mean_image"])
        self._env_steps, self._updates = state["counters"]["env_steps"], state["counters"]["updates"]
