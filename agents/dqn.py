"""Deep Q-Network (DQN): Q-learning with replay and a delayed target network; double, dueling and n-step by a key each.

Sources:
    Mnih et al. 2015, "Human-level control through deep reinforcement learning", Nature 518, Algorithm 1.
    van Hasselt, Guez and Silver 2016, arXiv:1509.06461 (`double`).
    Wang et al. 2016, arXiv:1511.06581 (`dueling`).
    Sutton 1988 and Hessel et al. 2018, arXiv:1710.02298 (`n_step`).

Deviations from the sources:
    1. Adam instead of RMSProp, with a linearly annealed learning rate if `learning_rate_end` is set.
    2. The norm of the whole gradient is clipped; Mnih et al. clip the error of each sample (which Huber's loss does).
    3. N environments act at once. Gradient steps are counted in replayed samples per environment step, so neither N nor
       the batch size changes how often a transition is learned from.
    4. The target network is synchronised every so many environment steps, not gradient steps.
    5. The dueling head has no hidden layer of its own (see `networks/heads.py`).
    6. `center_pixels` subtracts the mean image of the warm-up from what the network sees. The paper feeds raw pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from gymnasium.spaces import Discrete
from torch import Tensor, nn

from contract import Acted, Batch, Metrics, Mode, Obs, State, Task, Transition
from faults import ConfigError, NonFiniteError, check_choice, check_range
from memory.replay import Replay
from networks.backbones import BACKBONES, CNN, make_backbone
from networks.heads import DuelingQHead, QHead
from networks.optimizer import load_optimizer_state, optimizer_state
from rules.exploration import boltzmann_action, epsilon_greedy_action, greedy_action
from rules.losses import huber_loss
from rules.schedules import linear_schedule
from rules.targets import double_q_target, q_learning_target


@dataclass(frozen=True)
class Settings:
    """The `agent.*` keys."""

    algorithm: str = "dqn"
    gamma: float = 0.99
    """Discount per environment step, in [0, 1]."""
    learning_rate: float = 1e-3
    learning_rate_end: float | None = None
    """If set, the learning rate falls linearly to this value over the run."""
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 10.0
    batch_size: int = 128
    samples_per_env_step: float = 8.0
    """Replayed samples per environment step: a gradient step every `batch_size / samples_per_env_step` steps."""
    replay_capacity: int = 50_000
    """Transitions."""
    learning_starts_env_steps: int = 1_000
    target_sync_every_env_steps: int = 1_000
    epsilon_start: float = 1.0
    epsilon_end: float = 0.05
    epsilon_decay_env_steps: int = 10_000
    """Environment steps over which epsilon falls linearly from start to end."""
    n_step: int = 1
    double: bool = False
    dueling: bool = False
    clip_reward: bool = False
    """Learn from rewards clipped to [-1, 1]; reported returns stay raw."""
    backbone: str = "auto"
    """auto (nature_cnn for images, else mlp), mlp, nature_cnn, nips_cnn, small_cnn."""
    center_pixels: bool = False
    """Subtract the mean image of the steps before learning starts from every image."""
    bfloat16: bool = False
    """Compute the CNN in bfloat16: faster only where the processor has its instructions."""
    hidden_sizes: list[int] = field(default_factory=lambda: [256, 256])
    """Layer widths of the mlp."""

    def __post_init__(self) -> None:
        check_range("agent.gamma", self.gamma, 0, 1)
        check_range("agent.learning_rate", self.learning_rate, 0, None, open_low=True)
        if self.learning_rate_end is not None:
            check_range("agent.learning_rate_end", self.learning_rate_end, 0, None)
        check_range("agent.adam_epsilon", self.adam_epsilon, 0, None, open_low=True)
        check_range("agent.max_grad_norm", self.max_grad_norm, 0, None, open_low=True)
        check_range("agent.batch_size", self.batch_size, 1, None)
        check_range("agent.samples_per_env_step", self.samples_per_env_step, 0, None, open_low=True)
        check_range("agent.replay_capacity", self.replay_capacity, 1, None)
        check_range("agent.learning_starts_env_steps", self.learning_starts_env_steps, 1, None)
        check_range("agent.target_sync_every_env_steps", self.target_sync_every_env_steps, 1, None)
        check_range("agent.epsilon_start", self.epsilon_start, 0, 1)
        check_range("agent.epsilon_end", self.epsilon_end, 0, self.epsilon_start)
        check_range("agent.epsilon_decay_env_steps", self.epsilon_decay_env_steps, 0, None)
        check_range("agent.n_step", self.n_step, 1, 1000)
        check_choice("agent.backbone", self.backbone, BACKBONES)
        for size in self.hidden_sizes:
            check_range("agent.hidden_sizes", size, 1, 1_000_000)
        if self.batch_size > self.replay_capacity:
            raise ConfigError(
                f"agent.batch_size ({self.batch_size}) must not exceed agent.replay_capacity ({self.replay_capacity})"
            )


def make_agent(settings: Settings, task: Task) -> DQN:
    """Builds a DQN agent for `task`.

    Raises:
        ConfigError: if the actions are not discrete, or the backbone cannot read the observations.
    """
    space = task.spec.action_space
    if not isinstance(space, Discrete):
        raise ConfigError(
            f"agent=dqn chooses among discrete actions; {task.spec.env_id} has {type(space).__name__} actions "
            "(agent=sb3_ppo and sb3_a2c take them)"
        )
    with torch.random.fork_rng(devices=[]):  # initial weights come from the run's own stream
        torch.manual_seed(task.streams.seed("network"))
        backbone = make_backbone(
            settings.backbone,
            task.spec.observation_space,
            settings.hidden_sizes,
            settings.center_pixels,
            settings.bfloat16,
        )
        head = (DuelingQHead if settings.dueling else QHead)(backbone.out_dim, int(space.n))
    replay = Replay(settings.replay_capacity, task.spec, settings.gamma, settings.n_step, task.streams.numpy("replay"))
    return DQN(settings, nn.Sequential(backbone, head).to(task.device), replay, task)


def td_loss(q_net: nn.Module, target_q_net: nn.Module, batch: Batch, double: bool) -> tuple[Tensor, Tensor]:
    """Huber loss of the action values against their Q-learning targets.

    Equation:
        loss = mean huber(Q(s, a) - y),  y = reward + discount * max_a' Q_target(s', a')
        with `double`: y = reward + discount * Q_target(s', argmax_a' Q(s', a'))

    Returns:
        The loss () and Q(s, a) (B,).
    """
    with torch.no_grad():
        next_q_target = target_q_net(batch.next_obs)  # (B, A)
        if double:
            target = double_q_target(batch.reward, batch.discount, q_net(batch.next_obs), next_q_target)
        else:
            target = q_learning_target(batch.reward, batch.discount, next_q_target)
    q = q_net(batch.obs).gather(1, batch.action[:, None]).squeeze(1)  # (B,)
    return huber_loss(q, target), q.detach()


class QPolicy:
    """Acts on the values of a network: greedily, epsilon-greedily or by softmax."""

    def __init__(self, q_net: nn.Module, mode: Mode, epsilon: Callable[[], float], generator: torch.Generator) -> None:
        if mode.name == "sample":
            raise ConfigError("agent=dqn has no stochastic policy of its own; use epsilon=<x> or temperature=<x>")
        self._q_net = q_net
        self._mode = mode
        self._epsilon = epsilon
        self._generator = generator
        self._device = next(q_net.parameters()).device

    @torch.no_grad()
    def act(self, obs: Obs, episode_start: Tensor) -> Acted:
        assert isinstance(obs, Tensor)
        q = self._q_net(obs.to(self._device))  # (N, A)
        extras = {"q": q}
        if self._mode.name == "temperature":
            assert self._mode.value is not None
            action = boltzmann_action(q, self._mode.value, self._generator)
        elif self._mode.name == "greedy":
            action = greedy_action(q)
        else:
            epsilon = self._epsilon() if self._mode.value is None else self._mode.value
            action = epsilon_greedy_action(q, epsilon, self._generator)
        return Acted(action.to(obs.device), extras)

    def state_dict(self) -> State:
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: State) -> None:
        self._generator.set_state(state["generator"])


class DQN:
    """DQN agent; see the module docstring for sources and deviations."""

    def __init__(self, settings: Settings, q_net: nn.Sequential, replay: Replay, task: Task) -> None:
        self._settings = settings
        self._total_env_steps = task.total_env_steps
        self._device = task.device
        self.q_net = q_net
        self.target_q_net = copy.deepcopy(q_net).requires_grad_(False)
        self.replay = replay
        self.optimizer = torch.optim.Adam(
            q_net.parameters(), settings.learning_rate, eps=settings.adam_epsilon, fused=task.device.type != "meta"
        )
        self._env_steps = 0
        self._updates = 0
        self._syncs = 0

    @property
    def memory_bytes(self) -> int:
        return self.replay.bytes

    @property
    def epsilon(self) -> float:
        """The exploration rate at this step of training."""
        s = self._settings
        return linear_schedule(self._env_steps, s.epsilon_start, s.epsilon_end, s.epsilon_decay_env_steps)

    @property
    def learning_rate(self) -> float:
        """The learning rate at this step of training."""
        s = self._settings
        if s.learning_rate_end is None:
            return s.learning_rate
        return linear_schedule(self._env_steps, s.learning_rate, s.learning_rate_end, self._total_env_steps)

    def policy(self, mode: Mode, num_envs: int, generator: torch.Generator) -> QPolicy:
        return QPolicy(self.q_net, mode, lambda: self.epsilon, generator)

    def observe(self, transition: Transition, acted: Acted) -> None:
        reward = transition.reward.clamp(-1, 1) if self._settings.clip_reward else transition.reward
        self.replay.add(transition, reward)
        self._env_steps += int(transition.valid.sum())

    def update(self) -> Metrics:
        metrics: Metrics = {}
        due = self._updates_due()
        if due and not self._updates and self._settings.center_pixels:
            self._center_pixels()
        while self._updates < due:
            metrics = self._gradient_step()
        syncs_due = self._env_steps // self._settings.target_sync_every_env_steps
        if syncs_due > self._syncs:
            self.target_q_net.load_state_dict(self.q_net.state_dict())
            self._syncs = syncs_due
        return metrics

    def _updates_due(self) -> int:
        """Gradient steps that the environment steps so far have earned."""
        s = self._settings
        learning_env_steps = max(0, self._env_steps - s.learning_starts_env_steps)
        return int(learning_env_steps * s.samples_per_env_step / s.batch_size)

    def _center_pixels(self) -> None:
        image = self.replay.mean_obs().to(self._device)
        for net in (self.q_net, self.target_q_net):
            backbone = net[0]
            assert isinstance(backbone, CNN)
            backbone.center(image)

    def _gradient_step(self) -> Metrics:
        batch = Batch(*(part.to(self._device) for part in self.replay.sample(self._settings.batch_size)))
        loss, q = td_loss(self.q_net, self.target_q_net, batch, self._settings.double)
        self.optimizer.zero_grad()
        loss.backward()
        grad_norm = nn.utils.clip_grad_norm_(self.q_net.parameters(), self._settings.max_grad_norm)
        if not torch.isfinite(loss + grad_norm):  # before the step: afterwards every weight would be NaN
            raise NonFiniteError(
                f"update {self._updates + 1} has loss {float(loss.detach()):.3g} and gradient norm {float(grad_norm):.3g}; "
                "try a smaller agent.learning_rate"
            )
        self.optimizer.param_groups[0]["lr"] = self.learning_rate
        self.optimizer.step()
        self._updates += 1
        return {
            "train/loss": loss.detach(),
            "train/q_mean": q.mean(),
            "train/grad_norm": grad_norm,
            "train/learning_rate": self.learning_rate,
            "train/n_updates": float(self._updates),
            "rollout/exploration_rate": self.epsilon,
        }

    def policy_state_dict(self) -> State:
        return {"q_net": self.q_net.state_dict()}

    def load_policy_state_dict(self, state: State) -> None:
        self.q_net.load_state_dict(state["q_net"])

    def state_dict(self) -> State:
        return {
            "policy": self.policy_state_dict(),
            "target_q_net": self.target_q_net.state_dict(),
            "optimizer": optimizer_state(self.optimizer),
            "replay": self.replay.state_dict(),
            "counters": {"env_steps": self._env_steps, "updates": self._updates, "syncs": self._syncs},
        }

    def load_state_dict(self, state: State) -> None:
        self.load_policy_state_dict(state["policy"])
        self.target_q_net.load_state_dict(state["target_q_net"])
        load_optimizer_state(self.optimizer, state["optimizer"])
        self.replay.load_state_dict(state["replay"])
        counters = state["counters"]
        self._env_steps, self._updates, self._syncs = counters["env_steps"], counters["updates"], counters["syncs"]
