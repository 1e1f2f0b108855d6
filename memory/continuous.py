"""What agents with continuous actions share: keys, the bounds of the actions, and the policy that fills a replay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor, nn

from contract import Acted, EnvSpec, Mode, Obs, State, device_of, to_device
from faults import ConfigError, check_range


@dataclass(frozen=True)
class ContinuousSettings:
    """The `agent.*` keys of every agent that learns continuous actions from a replay."""

    gamma: float = 0.99
    """Discount per environment step, in [0, 1]."""
    actor_learning_rate: float = 1e-3
    critic_learning_rate: float = 1e-3
    batch_size: int = 256
    samples_per_env_step: float = 256.0
    """Replayed samples per environment step: a gradient step every `batch_size / samples_per_env_step` steps."""
    replay_capacity: int = 1_000_000
    """Transitions."""
    learning_starts_env_steps: int = 1_000
    """Until then actions are uniformly random and nothing is learned."""
    tau: float = 0.005
    """How far the target networks move towards the networks at each of their updates, in (0, 1]."""
    backbone: str = "auto"
    """What reads images before the hidden layers of actor and critics, for each of them: auto (nature_cnn), or another
    one of networks/backbones.py. Other observations need none."""
    backbone_init: str | None = None
    """A run folder, or latest: begin with the weights of its backbone, be it an agent's or a classifier's."""
    backbone_freeze: bool = False
    """Never change the backbone: only what stands on it learns."""
    hidden_sizes: list[int] = field(default_factory=lambda: [256, 256])
    """Layer widths of actor and critics."""

    def __post_init__(self) -> None:
        check_range("agent.gamma", self.gamma, 0, 1)
        check_range("agent.actor_learning_rate", self.actor_learning_rate, 0, None, open_low=True)
        check_range("agent.critic_learning_rate", self.critic_learning_rate, 0, None, open_low=True)
        check_range("agent.batch_size", self.batch_size, 1, None)
        check_range("agent.samples_per_env_step", self.samples_per_env_step, 0, None, open_low=True)
        check_range("agent.replay_capacity", self.replay_capacity, 1, None)
        check_range("agent.learning_starts_env_steps", self.learning_starts_env_steps, 1, None)
        check_range("agent.tau", self.tau, 0, 1, open_low=True)
        for size in self.hidden_sizes:
            check_range("agent.hidden_sizes", size, 1, 1_000_000)
        if self.batch_size > self.replay_capacity:
            raise ConfigError(
                f"agent.batch_size ({self.batch_size}) must not exceed agent.replay_capacity ({self.replay_capacity})"
            )

    def updates_due(self, env_steps: int) -> int:
        """Gradient steps that `env_steps` have earned."""
        learning_env_steps = max(0, env_steps - self.learning_starts_env_steps)
        return int(learning_env_steps * self.samples_per_env_step / self.batch_size)


class ActionBounds:
    """Between actions as the environment takes them and units of the box, in which each number lies in [-1, 1].

    Agents, replays and networks work in units of the box, so that noise means the same along every axis.
    """

    def __init__(self, spec: EnvSpec, agent: str, device: torch.device) -> None:
        """Reads the action space.

        Args:
            spec: the environment's.
            agent: its name, for the error line.
            device: where the actions are.

        Raises:
            ConfigError: if the actions are not a vector of numbers with finite bounds.
        """
        space = spec.action_space
        if not isinstance(space, Box) or len(space.shape) != 1 or not _has_width(space):
            raise ConfigError(
                f"agent={agent} needs continuous actions: a vector within finite bounds; {spec.env_id} has {space}"
            )
        self.action_dim = space.shape[0]
        self._low, self._high = (
            torch.as_tensor(b, dtype=torch.float32, device=device) for b in (space.low, space.high)
        )
        self._center, self._half_range = (self._low + self._high) / 2, (self._high - self._low) / 2

    def to_env(self, unit_action: Tensor) -> Tensor:
        """(B, action_dim) in [-1, 1] -> (B, action_dim) within the bounds."""
        action = self._center + self._half_range * unit_action
        return action.clamp(self._low, self._high)  # rounding may have stepped over the edge

    def to_unit(self, action: Tensor) -> Tensor:
        """(B, action_dim) within the bounds -> (B, action_dim) in [-1, 1]."""
        return ((action.to(self._center) - self._center) / self._half_range).clamp(-1, 1)


def _has_width(space: Box) -> bool:
    """Whether every number may vary, between finite bounds."""
    with np.errstate(over="ignore"):
        width = space.high.astype(np.float32) - space.low.astype(np.float32)
    return bool((np.isfinite(width) & (width > 0)).all())


class InEnvUnits(nn.Module):
    """The best action as the environment takes it: (N, *obs_shape) -> (N, action_dim)."""

    def __init__(self, actor: nn.Module, best: Callable[[Tensor], Tensor], bounds: ActionBounds) -> None:
        super().__init__()
        self.actor, self._best, self._bounds = actor, best, bounds

    def forward(self, obs: Tensor) -> Tensor:
        return self._bounds.to_env(self._best(obs))


class ContinuousPolicy:
    """Acts by an agent's functions of the observation; draws uniformly until learning starts (`train` only)."""

    def __init__(
        self,
        best: Callable[[Tensor], Tensor],
        draw: Callable[[Tensor, torch.Generator], Tensor],
        warming_up: Callable[[], bool],
        bounds: ActionBounds,
        device: torch.device,
        mode: Mode,
        generator: torch.Generator,
    ) -> None:
        """Wraps the functions.

        Args:
            best: observation (N, *obs_shape) -> the action to take without exploring, (N, action_dim) in [-1, 1].
            draw: the same with exploration, from the given random stream.
            warming_up: whether the agent still only collects experience.
            bounds: of the environment's actions.
            device: of the agent's networks.
            mode: `greedy` takes the best action, `sample` draws, `train` draws once learning has started.
            generator: the policy's own random stream, on `device`.

        Raises:
            ConfigError: if the mode is none of these.
        """
        if mode.name not in ("train", "sample", "greedy"):
            raise ConfigError(
                f"a policy of continuous actions explores in its own way; use sample or greedy, not {mode}"
            )
        self._best, self._draw, self._warming_up = best, draw, warming_up
        self._bounds, self._device, self._mode, self._generator = bounds, device, mode.name, generator

    @torch.no_grad()
    def act(self, obs: Obs, episode_start: Tensor) -> Acted:
        if self._mode == "train" and self._warming_up():
            shape = (len(episode_start), self._bounds.action_dim)
            unit_action = 2 * torch.rand(shape, generator=self._generator, device=self._device) - 1
        elif self._mode == "greedy":
            unit_action = self._best(to_device(obs, self._device))
        else:
            unit_action = self._draw(to_device(obs, self._device), self._generator)
        return Acted(self._bounds.to_env(unit_action).to(device_of(obs)))

    def state_dict(self) -> State:
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: State) -> None:
        self._generator.set_state(state["generator"])
