"""Deep deterministic policy gradient (DDPG): Q-learning with an actor that finds the best action.

Sources:
    Lillicrap et al. 2016, "Continuous control with deep reinforcement learning", arXiv:1509.02971, Algorithm 1.
    Silver et al. 2014, "Deterministic Policy Gradient Algorithms", ICML: the actor's gradient.

Deviations from the sources:
    1. Exploration noise is Gaussian and fresh at every step, where the paper's is an Ornstein-Uhlenbeck process.
    2. Uniformly random actions until learning starts.
    3. N environments act at once. Gradient steps are counted in replayed samples per environment step, so neither N nor
       the batch size changes how often a transition is learned from.
    4. The action joins the observation at the critic's first layer, the paper's at its second. No batch normalisation,
       no weight decay, no small initial output layers.
    5. Actions are in units of the box, [-1, 1] along each axis, up to the environment's door.
    6. A time limit is no terminal: its transition bootstraps from the true last observation.
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
from rules.losses import squared_loss
from rules.targets import td_target

LEARNS_IN_STEP = True
"""Several learners (learners.py) can share the work."""


@dataclass(frozen=True)
class Settings(ContinuousSettings):
    """The `agent.*` keys."""

    algorithm: str = "ddpg"
    exploration_noise: float = 0.1
    """Standard deviation of the noise on actions, in units of the box [-1, 1]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("agent.exploration_noise", self.exploration_noise, 0, None)


def make_agent(settings: Settings, task: Task) -> DDPG:
    """Builds a DDPG agent for `task`.

    Raises:
        ConfigError: if the actions are not continuous and bounded, or the observations cannot be read.
    """
    bounds = ActionBounds(task.spec, "ddpg", task.device)
    space, sizes = task.spec.observation_space, settings.hidden_sizes

    def encoder() -> Backbone:
        return make_encoder(settings.backbone, space, task.donor, settings.backbone_freeze)

    with torch.random.fork_rng(devices=[]):  # initial weights come from the run's own stream
        torch.manual_seed(task.streams.seed("network"))
        actor = DeterministicActor(encoder(), sizes, bounds.action_dim)
        critic = Critic(encoder(), sizes, bounds.action_dim, count=1)
    replay = Replay(settings.replay_capacity, task.spec, settings.gamma, 1, task.streams.numpy("replay"))
    return DDPG(settings, actor.to(task.device), critic.to(task.device), bounds, replay, task)


def critic_loss(
    critic: nn.Module, target_actor: nn.Module, target_critic: nn.Module, batch: Batch
) -> tuple[Tensor, Tensor]:
    """Squared error of the action values against the value of what the target actor would do next.

    Equation:
        loss = mean (Q(s, a) - y)**2,  y = reward + discount * Q_target(s', mu_target(s'))

    Source:
        Lillicrap et al. 2016, Algorithm 1.

    Returns:
        The loss () and Q(s, a) (B,).
    """
    with torch.no_grad():
        (next_q,) = target_critic(batch.next_obs, target_actor(batch.next_obs))
        target = td_target(batch.reward, batch.discount, next_q)
    (q,) = critic(batch.obs, batch.action)
    return 2 * squared_loss(q, target), q.detach()


def actor_loss(actor: nn.Module, critic: nn.Module, batch: Batch) -> Tensor:
    """How far the actor's actions are from valuable; its gradient is the deterministic policy gradient.

    Equation:
        loss = -mean Q(s, mu(s))

    Source:
        Silver et al. 2014, equation 9; Lillicrap et al. 2016, equation 6.

    Returns:
        The loss ().
    """
    q: Tensor = critic(batch.obs, actor(batch.obs))[0]
    return -q.mean()


class DDPG:
    """DDPG agent; see the module docstring for sources and deviations."""

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
        loss, q = critic_loss(self.critic, self.target_actor, self.target_critic, batch)
        critic_norm = descend(self.critic_optimizer, loss, self._updates, "critic")
        policy_loss = actor_loss(self.actor, self.critic, batch)
        actor_norm = descend(self.actor_optimizer, policy_loss, self._updates, "actor")
        polyak_update(self.target_critic, self.critic, s.tau)
        polyak_update(self.target_actor, self.actor, s.tau)
        return {
            "train/critic_loss": loss.detach(),
            "train/actor_loss": policy_loss.detach(),
            "train/q_mean": q.mean(),
            "train/critic_grad_norm": critic_norm,
            "train/actor_grad_norm": actor_norm,
            "train/n_updates": float(self._updates),
        }

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
        self._env_steps, self._updates = state["counters"]["env_steps"], state["counters"]["updates"]
