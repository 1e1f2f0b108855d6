"""Soft actor-critic (SAC): learns to be valuable and as random as a target entropy asks.

Sources:
    Haarnoja et al. 2018, "Soft Actor-Critic Algorithms and Applications", arXiv:1812.05905, Algorithm 1.
    Haarnoja et al. 2018, "Soft Actor-Critic: Off-Policy Maximum Entropy Deep Reinforcement Learning with a Stochastic
    Actor", arXiv:1801.01290, appendix C: the squashed Gaussian.

Deviations from the sources:
    1. The temperature's loss is of its logarithm, alpha replaced by log alpha, which keeps it positive.
    2. Uniformly random actions until learning starts.
    3. N environments act at once. Gradient steps are counted in replayed samples per environment step, so neither N nor
       the batch size changes how often a transition is learned from.
    4. Actions are in units of the box, [-1, 1] along each axis, up to the environment's door: log-probabilities and
       entropies are of these.
    5. A time limit is no terminal: its transition bootstraps from the true last observation.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from contract import Acted, ActionNet, Batch, Metrics, Mode, State, Task, Transition
from faults import check_range
from memory.continuous import ActionBounds, ContinuousPolicy, ContinuousSettings, InEnvUnits
from memory.replay import Replay
from networks.backbones import Backbone
from networks.continuous import Critic, GaussianActor, make_encoder, polyak_update
from networks.optimizer import descend, load_optimizer_state, optimizer_state
from rules.distributions import gaussian_log_prob, log_tanh_slope
from rules.targets import sampled_soft_target

LEARNS_IN_STEP = True
"""Several learners (learners.py) can share the work."""


@dataclass(frozen=True)
class Settings(ContinuousSettings):
    """The `agent.*` keys."""

    algorithm: str = "sac"
    temperature: float = 1.0
    """Weight of the entropy, in units of return: where it starts, if it is learned."""
    temperature_learning_rate: float = 1e-3
    """0 keeps the temperature where it is."""
    target_entropy: float | None = None
    """Nats that the policy is to keep, as a distribution over [-1, 1]^action_dim; null: -action_dim."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("agent.temperature", self.temperature, 0, None, open_low=True)
        check_range("agent.temperature_learning_rate", self.temperature_learning_rate, 0, None)


def make_agent(settings: Settings, task: Task) -> SAC:
    """Builds a SAC agent for `task`.

    Raises:
        ConfigError: if the actions are not continuous and bounded, or the observations cannot be read.
    """
    bounds = ActionBounds(task.spec, "sac", task.device)
    space, sizes = task.spec.observation_space, settings.hidden_sizes

    def encoder() -> Backbone:
        return make_encoder(settings.backbone, space, task.donor, settings.backbone_freeze)

    with torch.random.fork_rng(devices=[]):  # initial weights come from the run's own stream
        torch.manual_seed(task.streams.seed("network"))
        actor = GaussianActor(encoder(), sizes, bounds.action_dim)
        critic = Critic(encoder(), sizes, bounds.action_dim, count=2)
    replay = Replay(settings.replay_capacity, task.spec, settings.gamma, 1, task.streams.numpy("replay"))
    return SAC(settings, actor.to(task.device), critic.to(task.device), bounds, replay, task)


def squash(parameters: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """An action of the squashed Gaussian as a function of its parameters and of standard normal noise.

    Equation:
        u = mean + std * noise,  a = tanh(u),  log pi(a|s) = log N(u; mean, std) - sum_d log(1 - a_d**2)

    Source:
        Haarnoja et al. 2018, arXiv:1801.01290, equation 21.

    Args:
        parameters: (B, 2 * D) means and logarithms of standard deviations; gradients flow into them.
        noise: (B, D).

    Returns:
        Actions (B, D) in (-1, 1) and their log-densities (B,).
    """
    mean, log_std = parameters.chunk(2, -1)
    raw = mean + log_std.exp() * noise
    return raw.tanh(), gaussian_log_prob(parameters, raw) - log_tanh_slope(raw).sum(-1)


def critic_loss(
    actor: nn.Module,
    critic: nn.Module,
    target_critic: nn.Module,
    batch: Batch,
    temperature: Tensor,
    noise: Tensor,
) -> tuple[Tensor, Tensor]:
    """Half squared errors of both critics against one soft target.

    Equation:
        loss = sum_i mean (Q_i(s, a) - y)**2 / 2
        y = reward + discount * (min_i Q_target_i(s', a') - temperature * log pi(a'|s')),  a' ~ pi(.|s')

    Source:
        Haarnoja et al. 2018, arXiv:1812.05905, equation 5.

    Args:
        actor: draws a'; the one that learns, as there is no other.
        critic: the two that learn.
        target_critic: values a'.
        batch: B transitions, actions in units of the box.
        temperature: ().
        noise: (B, action_dim), standard normal.

    Returns:
        The loss () and Q_i(s, a) (2, B).
    """
    with torch.no_grad():
        next_action, next_log_prob = squash(actor(batch.next_obs), noise)
        next_q = target_critic(batch.next_obs, next_action)
        target = sampled_soft_target(batch.reward, batch.discount, next_q, next_log_prob, temperature)
    q = critic(batch.obs, batch.action)
    return 0.5 * (q - target).square().mean(-1).sum(), q.detach()


def actor_loss(
    actor: nn.Module, critic: nn.Module, batch: Batch, temperature: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Divergence of the policy from the softmax over the lower critic's values, up to a constant.

    Equation:
        loss = mean (temperature * log pi(a|s) - min_i Q_i(s, a)),  a ~ pi(.|s)

    Source:
        Haarnoja et al. 2018, arXiv:1812.05905, equation 9.

    Args:
        actor: carries the gradient, through action and log-density.
        critic: the two that learn.
        batch: B transitions.
        temperature: ().
        noise: (B, action_dim), standard normal.

    Returns:
        The loss () and log pi(a|s) (B,), detached.
    """
    action, log_prob = squash(actor(batch.obs), noise)
    return (temperature * log_prob - critic(batch.obs, action).amin(0)).mean(), log_prob.detach()


def temperature_loss(log_temperature: Tensor, log_prob: Tensor, target_entropy: float) -> Tensor:
    """Raises the temperature where the policy is less random than it should be.

    Equation:
        loss = -log(temperature) * mean (log pi(a|s) + target entropy)

    Source:
        Haarnoja et al. 2018, arXiv:1812.05905, equation 18, with deviation 1.

    Returns:
        The loss ().
    """
    return -log_temperature * (log_prob + target_entropy).mean()


class SAC:
    """SAC agent; see the module docstring for sources and deviations."""

    def __init__(
        self, settings: Settings, actor: GaussianActor, critic: Critic, bounds: ActionBounds, replay: Replay, task: Task
    ) -> None:
        self._settings = settings
        self._bounds = bounds
        self._device = task.device
        self.actor, self.critic = actor, critic
        self.target_critic = copy.deepcopy(critic).requires_grad_(False)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(settings.temperature), device=task.device))
        self.target_entropy = -float(bounds.action_dim) if settings.target_entropy is None else settings.target_entropy
        self.replay = replay
        fused = task.device.type != "meta"
        self.actor_optimizer = torch.optim.Adam(actor.parameters(), settings.actor_learning_rate, fused=fused)
        self.critic_optimizer = torch.optim.Adam(critic.parameters(), settings.critic_learning_rate, fused=fused)
        self.temperature_optimizer = torch.optim.Adam(
            [self.log_temperature], settings.temperature_learning_rate, fused=fused
        )
        self._noise = task.streams.torch("learning", device=task.device)
        self._env_steps = 0
        self._updates = 0

    @property
    def memory_bytes(self) -> int:
        return self.replay.bytes

    def policy(self, mode: Mode, num_envs: int, generator: torch.Generator) -> ContinuousPolicy:
        return ContinuousPolicy(self._mode, self._draw, self._warming_up, self._bounds, self._device, mode, generator)

    def _mode(self, obs: Tensor) -> Tensor:
        mean: Tensor = self.actor(obs).chunk(2, -1)[0]
        return mean.tanh()

    def _draw(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        mean, log_std = self.actor(obs).chunk(2, -1)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        action: Tensor = torch.tanh(mean + log_std.exp() * noise)
        return action

    def _warming_up(self) -> bool:
        return self._env_steps < self._settings.learning_starts_env_steps

    def action_net(self) -> ActionNet:
        return ActionNet(InEnvUnits(self.actor, self._mode, self._bounds), "action")

    def observe(self, transition: Transition, acted: Acted) -> None:
        unit_action = self._bounds.to_unit(transition.action)
        self.replay.add(transition._replace(action=unit_action), transition.reward)
        self._env_steps += int(transition.valid.sum())

    def update(self) -> Metrics:
        metrics: Metrics = {}
        due = self._settings.updates_due(self._env_steps)
        while self._updates < due:
            metrics = self._gradient_step()
        return metrics

    def _gradient_step(self) -> Metrics:
        s = self._settings
        self._updates += 1
        batch = self.replay.sample(s.batch_size).to(self._device)
        temperature, shape = self.log_temperature.detach().exp(), batch.action.shape
        loss, q = critic_loss(
            self.actor, self.critic, self.target_critic, batch, temperature, self._standard_normal(shape)
        )
        critic_norm = descend(self.critic_optimizer, loss, self._updates, "critic")
        policy_loss, log_prob = actor_loss(self.actor, self.critic, batch, temperature, self._standard_normal(shape))
        actor_norm = descend(self.actor_optimizer, policy_loss, self._updates, "actor")
        entropy_loss = temperature_loss(self.log_temperature, log_prob, self.target_entropy)
        descend(self.temperature_optimizer, entropy_loss, self._updates, "temperature")
        polyak_update(self.target_critic, self.critic, s.tau)
        return {
            "train/critic_loss": loss.detach(),
            "train/actor_loss": policy_loss.detach(),
            "train/ent_coef": temperature,
            "train/ent_coef_loss": entropy_loss.detach(),
            "train/entropy": -log_prob.mean(),
            "train/q_mean": q.mean(),
            "train/critic_grad_norm": critic_norm,
            "train/actor_grad_norm": actor_norm,
            "train/n_updates": float(self._updates),
        }

    def _standard_normal(self, shape: torch.Size) -> Tensor:
        return torch.randn(shape, generator=self._noise, device=self._device)

    def policy_state_dict(self) -> State:
        return {"actor": self.actor.state_dict()}

    def load_policy_state_dict(self, state: State) -> None:
        self.actor.load_state_dict(state["actor"])

    def state_dict(self) -> State:
        return {
            "policy": self.policy_state_dict(),
            "critic": self.critic.state_dict(),
            "target_critic": self.target_critic.state_dict(),
            "log_temperature": self.log_temperature.detach(),
            "actor_optimizer": optimizer_state(self.actor_optimizer),
            "critic_optimizer": optimizer_state(self.critic_optimizer),
            "temperature_optimizer": optimizer_state(self.temperature_optimizer),
            "replay": self.replay.state_dict(),
            "noise": self._noise.get_state(),
            "counters": {"env_steps": self._env_steps, "updates": self._updates},
        }

    def load_state_dict(self, state: State) -> None:
        self.load_policy_state_dict(state["policy"])
        self.critic.load_state_dict(state["critic"])
        self.target_critic.load_state_dict(state["target_critic"])
        self.log_temperature.data.copy_(state["log_temperature"])
        load_optimizer_state(self.actor_optimizer, state["actor_optimizer"])
        load_optimizer_state(self.critic_optimizer, state["critic_optimizer"])
        load_optimizer_state(self.temperature_optimizer, state["temperature_optimizer"])
        self.replay.load_state_dict(state["replay"])
        self._noise.set_state(state["noise"])
        self._env_steps, self._updates = state["counters"]["env_steps"], state["counters"]["updates"]
