"""Twin delayed deep deterministic policy gradient (TD3): DDPG with two critics, a slower actor and a smoothed target.

Sources:
    Fujimoto, van Hoof and Meger 2018, "Addressing Function Approximation Error in Actor-Critic Methods",
    arXiv:1802.09477, Algorithm 1.

Deviations from the source:
    1. N environments act at once. Gradient steps are counted in replayed samples per environment step, so neither N nor
       the batch size changes how often a transition is learned from.
    2. Actions are in units of the box, [-1, 1] along each axis, up to the environment's door.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from contract import Acted, ActionNet, Batch, Metrics, Mode, State, Task, Transition
from faults import check_range
from memory.continuous import ActionBounds, ContinuousPolicy, ContinuousSettings, InEnvUnits
from memory.replay import Replay
from networks.backbones import Backbone
from networks.continuous import Critic, DeterministicActor, make_encoder, polyak_update
from networks.optimizer import descend, load_optimizer_state, optimizer_state
from rules.exploration import gaussian_action
from rules.targets import clipped_double_q_target, smoothed_action

LEARNS_IN_STEP = True
"""Several learners (learners.py) can share the work."""


@dataclass(frozen=True)
class Settings(ContinuousSettings):
    """The `agent.*` keys."""

    algorithm: str = "td3"
    exploration_noise: float = 0.1
    """Standard deviation of the noise on actions, in units of the box [-1, 1]."""
    smoothing_noise: float = 0.2
    """Standard deviation of the noise on the target actor's actions, in units of the box."""
    smoothing_clip: float = 0.5
    """Largest such noise, in units of the box."""
    policy_delay: int = 2
    """Critic updates for each update of the actor and of the target networks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("agent.exploration_noise", self.exploration_noise, 0, None)
        check_range("agent.smoothing_noise", self.smoothing_noise, 0, None)
        check_range("agent.smoothing_clip", self.smoothing_clip, 0, None)
        check_range("agent.policy_delay", self.policy_delay, 1, None)


def make_agent(settings: Settings, task: Task) -> TD3:
    """Builds a TD3 agent for `task`.

    Raises:
        ConfigError: if the actions are not continuous and bounded, or the observations cannot be read.
    """
    bounds = ActionBounds(task.spec, "td3", task.device)
    space, sizes = task.spec.observation_space, settings.hidden_sizes

    def encoder() -> Backbone:
        return make_encoder(settings.backbone, space, task.donor, settings.backbone_freeze)

    with torch.random.fork_rng(devices=[]):  # initial weights come from the run's own stream
        torch.manual_seed(task.streams.seed("network"))
        actor = DeterministicActor(encoder(), sizes, bounds.action_dim)
        critic = Critic(encoder(), sizes, bounds.action_dim, count=2)
    replay = Replay(settings.replay_capacity, task.spec, settings.gamma, 1, task.streams.numpy("replay"))
    return TD3(settings, actor.to(task.device), critic.to(task.device), bounds, replay, task)


def critic_loss(
    critic: nn.Module,
    target_actor: nn.Module,
    target_critic: nn.Module,
    batch: Batch,
    noise: Tensor,
    smoothing_clip: float,
) -> tuple[Tensor, Tensor]:
    """Squared errors of both critics against one target: the lower value of a smoothed next action.

    Equation:
        loss = sum_i mean (Q_i(s, a) - y)**2,  y = reward + discount * min_i Q_target_i(s', a')
        a' = clip(mu_target(s') + clip(noise, -c, c), -1, 1)

    Source:
        Fujimoto, van Hoof and Meger 2018, Algorithm 1, equations 10 and 14.

    Args:
        critic: the two that learn.
        target_actor: chooses a'.
        target_critic: values a'.
        batch: B transitions, actions in units of the box.
        noise: (B, action_dim), with the standard deviation of the smoothing.
        smoothing_clip: c, in units of the box.

    Returns:
        The loss () and Q_i(s, a) (2, B).
    """
    with torch.no_grad():
        next_action = smoothed_action(target_actor(batch.next_obs), noise, smoothing_clip)
        target = clipped_double_q_target(batch.reward, batch.discount, target_critic(batch.next_obs, next_action))
    q = critic(batch.obs, batch.action)
    return (q - target).square().mean(-1).sum(), q.detach()


def actor_loss(actor: nn.Module, critic: nn.Module, batch: Batch) -> Tensor:
    """How far the actor's actions are from valuable in the eyes of the first critic.

    Equation:
        loss = -mean Q_1(s, mu(s))

    Source:
        Fujimoto, van Hoof and Meger 2018, Algorithm 1.

    Returns:
        The loss ().
    """
    q_1: Tensor = critic(batch.obs, actor(batch.obs))[0]
    return -q_1.mean()


class TD3:
    """TD3 agent; see the module docstring for sources and deviations."""

    def __init__(
        self,
        settings: Settings,
        actor: DeterministicActor,
        critic: Critic,
        bounds: ActionBounds,
        replay: Replay,
        task: Task,
    ) -> None:
        self._settings = settings
        self._bounds = bounds
        self._device = task.device
        self.actor, self.critic = actor, critic
        self.target_actor, self.target_critic = (copy.deepcopy(n).requires_grad_(False) for n in (actor, critic))
        self.replay = replay
        fused = task.device.type != "meta"
        self.actor_optimizer = torch.optim.Adam(actor.parameters(), settings.actor_learning_rate, fused=fused)
        self.critic_optimizer = torch.optim.Adam(critic.parameters(), settings.critic_learning_rate, fused=fused)
        self._noise = task.streams.torch("smoothing", device=task.device)
        self._env_steps = 0
        self._updates = 0

    @property
    def memory_bytes(self) -> int:
        return self.replay.bytes

    def policy(self, mode: Mode, num_envs: int, generator: torch.Generator) -> ContinuousPolicy:
        return ContinuousPolicy(
            self.actor, self._explore, self._warming_up, self._bounds, self._device, mode, generator
        )

    def _explore(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        return gaussian_action(self.actor(obs), self._settings.exploration_noise, generator)

    def _warming_up(self) -> bool:
        return self._env_steps < self._settings.learning_starts_env_steps

    def action_net(self) -> ActionNet:
        return ActionNet(InEnvUnits(self.actor, self.actor, self._bounds), "action")

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
        noise = s.smoothing_noise * self._standard_normal(batch.action.shape)
        loss, q = critic_loss(self.critic, self.target_actor, self.target_critic, batch, noise, s.smoothing_clip)
        critic_norm = descend(self.critic_optimizer, loss, self._updates, "critic")
        metrics: Metrics = {
            "train/critic_loss": loss.detach(),
            "train/q_mean": q.mean(),
            "train/critic_grad_norm": critic_norm,
            "train/n_updates": float(self._updates),
        }
        if self._updates % s.policy_delay == 0:
            policy_loss = actor_loss(self.actor, self.critic, batch)
            metrics["train/actor_grad_norm"] = descend(self.actor_optimizer, policy_loss, self._updates, "actor")
            metrics["train/actor_loss"] = policy_loss.detach()
            polyak_update(self.target_critic, self.critic, s.tau)
            polyak_update(self.target_actor, self.actor, s.tau)
        return metrics

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
            "target_actor": self.target_actor.state_dict(),
            "target_critic": self.target_critic.state_dict(),
            "actor_optimizer": optimizer_state(self.actor_optimizer),
            "critic_optimizer": optimizer_state(self.critic_optimizer),
            "replay": self.replay.state_dict(),
            "noise": self._noise.get_state(),
            "counters": {"env_steps": self._env_steps, "updates": self._updates},
        }

    def load_state_dict(self, state: State) -> None:
        self.load_policy_state_dict(state["policy"])
        self.critic.load_state_dict(state["critic"])
        self.target_actor.load_state_dict(state["target_actor"])
        self.target_critic.load_state_dict(state["target_critic"])
        load_optimizer_state(self.actor_optimizer, state["actor_optimizer"])
        load_optimizer_state(self.critic_optimizer, state["critic_optimizer"])
        self.replay.load_state_dict(state["replay"])
        self._noise.set_state(state["noise"])
        self._env_steps, self._updates = state["counters"]["env_steps"], state["counters"]["updates"]
