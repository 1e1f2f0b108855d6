"""Proximal policy optimisation (PPO): several epochs of clipped policy-gradient steps on every rollout.

Sources:
    Schulman, Wolski, Dhariwal, Radford and Klimov 2017, arXiv:1707.06347, Algorithm 1 and equations 7 and 9.
    Huang, Dossa, Raffin, Kanervisto and Wang 2022, "The 37 Implementation Details of Proximal Policy Optimization".

Deviations from the sources:
    1. A time limit is no terminal: the advantage bootstraps from the value of the true last observation. The paper and
       baselines treat it as the end of the task.
    2. A recurrent minibatch holds whole sequences, from the state that the policy had at the start of the rollout.
    3. `center_pixels` subtracts the mean image of the steps before learning starts from what the network sees.

The 37 details: x is done; [key] switches it; what is left out has its reason.

    Core        1 vectorised environments x; 2 orthogonal weights, zero biases x; 3 Adam's epsilon [adam_epsilon];
                4 annealed learning rate [learning_rate_end]; 5 generalized advantage estimation [gae_lambda];
                6 minibatches x; 7 advantages normalised per minibatch [normalize_advantage]; 8 clipped surrogate x;
                9 value clipping [value_clip]; 10 one loss with entropy bonus [value_coef, entropy_coef];
                11 clipping of the whole gradient [max_grad_norm]; 12 figures to debug with x;
                13 shared or separate networks [shared_backbone]
    Atari       1 no-op starts [env.noop_max]; 2 maximum of two frames [env.max_pool]; 3 frame skip [env.frame_skip];
                4 a lost life ends the bootstrap [env.life_loss_is_terminal]; 5 fire at reset [env.fire_reset];
                6 grey, small images [env.image_size]; 7 clipped rewards [clip_reward]; 8 stacked frames
                [env.frame_stack]; 9 shared Nature CNN [backbone], on pixels scaled to [0, 1] x
    Continuous  1 Gaussian actions x; 2 a standard deviation that the state does not change x; 3 independent components
                x; 4 separate tanh networks [activation, shared_backbone]; 5 clipped actions, and the unclipped ones
                learned from [gaussian]; 6 to 9 normalised and clipped observations and rewards: left to wrappers of the
                environment, because they change what a score means
    LSTM        1 orthogonal weights, zero biases x; 2 zero initial states x; 3 states cleared where episodes start x;
                4 minibatches of whole sequences x; 5 states rebuilt from the rollout's start on x
    MultiDiscrete  1 independent components: no environment here has such actions
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from contract import Acted, ActionNet, Metrics, Mode, State, Task, Transition
from faults import check_choice, check_range
from learners import average, total
from memory.actor import ActorCriticPolicy, Experience, MeanImage, actor_net
from memory.rollout import Rollout, rollout_bytes
from networks.actor_critic import ActorCritic, NetworkSettings, make_actor_critic
from networks.optimizer import clipped_gradient, load_optimizer_state, optimizer_state
from rules.distributions import GAUSSIANS, ActionDistribution, make_distribution
from rules.policy_gradient import (
    approximate_kl,
    clip_fraction,
    explained_variance,
    masked_mean,
    normalized,
    ppo_clip_loss,
    value_loss,
)
from rules.schedules import annealed

LEARNS_IN_STEP = True
"""Several learners (learners.py) can share the work."""


@dataclass(frozen=True)
class Settings(NetworkSettings):
    """The `agent.*` keys."""

    algorithm: str = "ppo"
    gamma: float = 0.99
    """Discount per environment step, in [0, 1]."""
    gae_lambda: float = 0.95
    """Of generalized advantage estimation, in [0, 1]: 0 trusts the values, 1 the rewards."""
    rollout_steps: int = 128
    """Steps of each environment between two updates."""
    num_epochs: int = 4
    """How often an update goes through its rollout."""
    batch_size: int = 256
    """Steps of a minibatch; with a recurrent core, of whole sequences."""
    learning_rate: float = 2.5e-4
    learning_rate_end: float | None = None
    """If set, the learning rate falls linearly to this value over the run."""
    adam_epsilon: float = 1e-5
    max_grad_norm: float = 0.5
    clip_range: float = 0.2
    """How far the probability ratio may move from 1."""
    clip_range_end: float | None = None
    """If set, the clip range falls linearly to this value over the run."""
    value_clip: float | None = None
    """How far a value may move from what it was when acting, in units of the return; null: as far as it likes."""
    value_coef: float = 0.5
    entropy_coef: float = 0.0
    normalize_advantage: bool = True
    """Per minibatch."""
    target_kl: float | None = None
    """An update ends early once a minibatch's estimate of KL(old || new) is above 1.5 times this."""
    clip_reward: bool = False
    """Learn from rewards clipped to [-1, 1]; reported returns stay raw."""
    gaussian: str = "clipped"
    """Continuous actions: clipped at the bounds, or squashed into them by tanh."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("agent.gamma", self.gamma, 0, 1)
        check_range("agent.gae_lambda", self.gae_lambda, 0, 1)
        check_range("agent.rollout_steps", self.rollout_steps, 1, None)
        check_range("agent.num_epochs", self.num_epochs, 1, None)
        check_range("agent.batch_size", self.batch_size, 1, None)
        check_range("agent.learning_rate", self.learning_rate, 0, None, open_low=True)
        if self.learning_rate_end is not None:
            check_range("agent.learning_rate_end", self.learning_rate_end, 0, None)
        check_range("agent.adam_epsilon", self.adam_epsilon, 0, None, open_low=True)
        check_range("agent.max_grad_norm", self.max_grad_norm, 0, None, open_low=True)
        check_range("agent.clip_range", self.clip_range, 0, 1, open_low=True)
        if self.clip_range_end is not None:
            check_range("agent.clip_range_end", self.clip_range_end, 0, 1)
        if self.value_clip is not None:
            check_range("agent.value_clip", self.value_clip, 0, None, open_low=True)
        check_range("agent.value_coef", self.value_coef, 0, None)
        check_range("agent.entropy_coef", self.entropy_coef, 0, None)
        if self.target_kl is not None:
            check_range("agent.target_kl", self.target_kl, 0, None, open_low=True)
        check_choice("agent.gaussian", self.gaussian, GAUSSIANS)


def make_agent(settings: Settings, task: Task) -> PPO:
    """Builds a PPO agent for `task`.

    Raises:
        ConfigError: if the actions are of another kind, or the backbone cannot read the observations.
    """
    with torch.random.fork_rng(devices=[]):  # initial weights come from the run's own stream
        torch.manual_seed(task.streams.seed("network"))
        net = make_actor_critic(settings, task.spec.observation_space, task.spec.action_space, task.donor)
    distribution = make_distribution(task.spec.action_space, settings.gaussian, task.device)
    return PPO(settings, net.to(task.device), distribution, task)


def ppo_loss(
    net: ActorCritic, distribution: ActionDistribution, batch: Experience, settings: Settings, clip_range: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """The objective of one minibatch.

    Equation:
        loss = clipped surrogate + value_coef * mean squared value error - entropy_coef * mean entropy

    Args:
        net: carries the gradient.
        distribution: what the network's parameters mean.
        batch: (T, N) steps.
        settings: coefficients.
        clip_range: as the schedule has it now.

    Returns:
        The loss () and its parts.
    """
    parameters, value, _ = net.unroll(batch.obs, batch.state, batch.episode_start)
    log_prob = distribution.log_prob(parameters, batch.raw_action)
    advantage = normalized(batch.advantage, batch.valid, total) if settings.normalize_advantage else batch.advantage
    policy_term = ppo_clip_loss(log_prob, batch.log_prob, advantage, clip_range, batch.valid)
    value_term = value_loss(value, batch.value_target, batch.value, settings.value_clip, batch.valid)
    entropy = masked_mean(distribution.entropy(parameters), batch.valid)
    loss = policy_term + settings.value_coef * value_term - settings.entropy_coef * entropy
    return loss, {
        "train/loss": loss.detach(),
        "train/policy_gradient_loss": policy_term.detach(),
        "train/value_loss": value_term.detach(),
        "train/entropy_loss": -entropy.detach(),
        "train/approx_kl": approximate_kl(log_prob.detach(), batch.log_prob, batch.valid),
        "train/clip_fraction": clip_fraction(log_prob.detach(), batch.log_prob, clip_range, batch.valid),
    }


class PPO:
    """PPO agent; see the module docstring for sources and deviations."""

    def __init__(self, settings: Settings, net: ActorCritic, distribution: ActionDistribution, task: Task) -> None:
        self._settings = settings
        self._distribution = distribution
        self._total_env_steps = task.total_env_steps
        self._device = task.device
        self.net = net
        self.rollout = Rollout(settings.rollout_steps)
        self.memory_bytes = rollout_bytes(settings.rollout_steps, task.spec, net.state_dim)
        self._mean_image = MeanImage()
        self.optimizer = torch.optim.Adam(
            net.parameters(), settings.learning_rate, eps=settings.adam_epsilon, fused=task.device.type != "meta"
        )
        self._generator = task.streams.torch("minibatches", device=task.device)
        self._env_steps = 0
        self._updates = 0

    @property
    def learning_rate(self) -> float:
        """The learning rate at this step of training."""
        return self._scheduled(self._settings.learning_rate, self._settings.learning_rate_end)

    @property
    def clip_range(self) -> float:
        """The clip range at this step of training."""
        return self._scheduled(self._settings.clip_range, self._settings.clip_range_end)

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
        learning_rate, clip_range = self.learning_rate, self.clip_range
        self.optimizer.param_groups[0]["lr"] = learning_rate
        parts, grad_norms = list[dict[str, Tensor]](), list[Tensor]()
        epochs = (experience.minibatches(s.batch_size, self._generator) for _ in range(s.num_epochs))
        for batch in chain.from_iterable(epochs):
            loss, figures = ppo_loss(self.net, self._distribution, batch, s, clip_range)
            parts.append(figures)
            if s.target_kl is not None and average(figures["train/approx_kl"]) > 1.5 * s.target_kl:
                break
            grad_norms.append(self._gradient_step(loss))
        self._updates += 1
        means: Metrics = {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}
        if grad_norms:
            means["train/grad_norm"] = torch.stack(grad_norms).mean()
        return means | {
            "train/explained_variance": explained_variance(experience.value, experience.value_target, experience.valid),
            "train/learning_rate": learning_rate,
            "train/clip_range": clip_range,
            "train/n_updates": float(self._updates),
        }

    def _gradient_step(self, loss: Tensor) -> Tensor:
        grad_norm = clipped_gradient(self.net, loss, self._settings.max_grad_norm, f"update {self._updates + 1}")
        self.optimizer.step()
        return grad_norm

    def _scheduled(self, start: float, end: float | None) -> float:
        return annealed(self._env_steps, start, end, self._total_env_steps)

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
            "generator": self._generator.get_state(),
            "counters": {"env_steps": self._env_steps, "updates": self._updates},
        }

    def load_state_dict(self, state: State) -> None:
        self.load_policy_state_dict(state["policy"])
        load_optimizer_state(self.optimizer, state["optimizer"])
        self.rollout.load_state_dict(state["rollout"])
        self._mean_image.load_state_dict(state["mean_image"])
        self._generator.set_state(state["generator"])
        self._env_steps, self._updates = state["counters"]["env_steps"], state["counters"]["updates"]
