"""Actor-critic networks: an observation in, the parameters of the action distribution and the state value out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor, nn

from faults import ConfigError, check_choice, check_range
from networks.backbones import ACTIVATIONS, BACKBONES, CNN, MLP, Backbone, OneHotLinear, make_backbone
from networks.recurrent import CORES, Core, make_core
from networks.transfer import Donor, begin_backbone

Obs = Tensor | dict[str, Tensor]


@dataclass(frozen=True)
class NetworkSettings:
    """The `agent.*` keys of every agent with an actor-critic network."""

    backbone: str = "auto"
    """auto (nature_cnn for images, else mlp), mlp, lenet, convnet, nature_cnn, nips_cnn, small_cnn, impala_cnn, resnet,
    resnet18."""
    backbone_init: str | None = None
    """A run folder, or latest: begin with the weights of its backbone, be it an agent's or a classifier's."""
    backbone_freeze: bool = False
    """Never change the backbone: only what stands on it learns. With a linear head, a linear probe."""
    hidden_sizes: list[int] = field(default_factory=lambda: [64, 64])
    """Layer widths of the mlp."""
    activation: str = "tanh"
    """Of the mlp: tanh, relu."""
    shared_backbone: bool | None = None
    """Whether policy and value read the same features; null: yes, but for an mlp without a core."""
    center_pixels: bool = False
    """Subtract the mean image of the steps before learning starts from every image."""
    learning_starts_env_steps: int = 0
    """Environment steps that are played and not learned from."""
    bfloat16: bool = False
    """Compute the CNN in bfloat16: faster only where the processor has its instructions."""
    core: str = "none"
    """Memory: none, lstm, gru."""
    core_dim: int = 128
    """Width of the core."""

    def __post_init__(self) -> None:
        check_choice("agent.backbone", self.backbone, BACKBONES)
        for size in self.hidden_sizes:
            check_range("agent.hidden_sizes", size, 1, 1_000_000)
        check_choice("agent.activation", self.activation, ACTIVATIONS)
        check_range("agent.learning_starts_env_steps", self.learning_starts_env_steps, 0, None)
        if self.center_pixels and not self.learning_starts_env_steps:
            raise ConfigError("agent.center_pixels needs agent.learning_starts_env_steps above 0, to see a mean image")
        check_choice("agent.core", self.core, CORES)
        check_range("agent.core_dim", self.core_dim, 1, 1_000_000)
        if self.core != "none" and self.shared_backbone is False:
            raise ConfigError(
                f"agent.core={self.core} is fed by one backbone: agent.shared_backbone must be true or null"
            )

    @property
    def measures_mean_image(self) -> bool:
        """Whether the image to subtract is still to be found; a given backbone brings its own."""
        return self.center_pixels and self.backbone_init is None


class ActorCritic(nn.Module):
    """Backbone, optionally a recurrent core, and two linear heads.

    The distribution's parameters are one tensor: logits (N, A) for discrete actions; for continuous ones the mean and,
    beside it, the logarithm of the standard deviation (N, 2 * action_dim), which is a weight of its own and the same
    everywhere.

    Initial weights: orthogonal with gain sqrt(2), the policy head with 0.01, the value head and a core with 1; biases
    are zero (Huang et al. 2022, "The 37 Implementation Details of PPO", details 2 and, for recurrence, 1).
    """

    def __init__(
        self,
        backbone: Backbone,
        core: Core | None,
        action_space: gym.Space[Any],
        value_backbone: Backbone | None = None,
    ) -> None:
        """Builds the heads.

        Args:
            backbone: observation -> features, for both heads unless there is a `value_backbone`.
            core: remembers, or None.
            action_space: Discrete or Box with one axis.
            value_backbone: the value's own observation -> features; not together with a core.
        """
        super().__init__()
        if core is not None and value_backbone is not None:
            raise ValueError("a recurrent core is fed by one backbone")
        self.backbone, self.core, self.value_backbone = backbone, core, value_backbone
        self.state_dim = 0 if core is None else core.state_dim
        width = backbone.out_dim if core is None else core.out_dim
        self.value_head = nn.Linear(width if value_backbone is None else value_backbone.out_dim, 1)
        self.log_std: nn.Parameter | None = None
        if isinstance(action_space, Discrete):
            self.policy_head = nn.Linear(width, int(action_space.n))
        else:
            assert isinstance(action_space, Box)
            action_dim = int(np.prod(action_space.shape))
            self.policy_head = nn.Linear(width, action_dim)
            self.log_std = nn.Parameter(torch.zeros(action_dim))
        self.apply(lambda module: orthogonal_(module, 2**0.5))
        orthogonal_(self.policy_head, 0.01)
        orthogonal_(self.value_head, 1.0)

    def initial_state(self, num_envs: int) -> Tensor:
        """(num_envs, state_dim) zeros; of no width without a core."""
        return torch.zeros(num_envs, self.state_dim, device=self.value_head.weight.device)

    def center(self, pixel_mean: Tensor) -> None:
        """Sets the image (C, H, W), in pixel values, that a CNN subtracts from every input."""
        for backbone in (self.backbone, self.value_backbone):
            if backbone is not None:
                assert isinstance(backbone, CNN)
                backbone.center(pixel_mean)

    def forward(self, obs: Obs, state: Tensor, episode_start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One step of N environments.

        Args:
            obs: (N, *obs_shape).
            state: (N, state_dim) from the step before.
            episode_start: (N,) bool: where the state is taken as zero.

        Returns:
            Distribution parameters (N, ...), values (N,), next state (N, state_dim).
        """
        features = self.backbone(obs)
        if self.core is not None:
            features, state = self.core(features, state.masked_fill(episode_start[:, None], 0.0))
        own = features if self.value_backbone is None else self.value_backbone(obs)
        return self.distribution(features), self.value_head(own).squeeze(-1), state

    def unroll(self, obs: Obs, state: Tensor, episode_start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """T steps of N environments: the same numbers as T calls of `forward`, and gradients through time.

        Args:
            obs: (T, N, *obs_shape).
            state: (N, state_dim) before the first step.
            episode_start: (T, N) bool: where the state is taken as zero.

        Returns:
            Distribution parameters (T, N, ...), values (T, N), state after the last step (N, state_dim).
        """
        steps = episode_start.shape
        flat = {k: v.flatten(0, 1) for k, v in obs.items()} if isinstance(obs, dict) else obs.flatten(0, 1)
        features = self.backbone(flat)
        if self.core is not None:
            unrolled, state = self.core.unroll(features.view(*steps, -1), state, episode_start)
            features = unrolled.flatten(0, 1)
        own = features if self.value_backbone is None else self.value_backbone(flat)
        return self.distribution(features).view(*steps, -1), self.value_head(own).view(steps), state

    def distribution(self, features: Tensor) -> Tensor:
        """Features (N, D) -> the distribution's parameters (N, ...)."""
        mean: Tensor = self.policy_head(features)
        return mean if self.log_std is None else torch.cat([mean, self.log_std.expand_as(mean)], dim=-1)


@torch.no_grad()
def orthogonal_(module: nn.Module, gain: float) -> None:
    """Initialises one layer in place: orthogonal weights, zero biases; cells of a core always with gain 1.

    Source:
        Saxe, McClelland and Ganguli 2014, arXiv:1312.6120.
    """
    if isinstance(module, nn.Linear | nn.Conv2d | OneHotLinear):
        weights, biases = [module.weight], [] if module.bias is None else [module.bias]
    elif isinstance(module, nn.RNNCellBase):
        weights, biases, gain = [module.weight_ih, module.weight_hh], [module.bias_ih, module.bias_hh], 1.0
    else:
        return
    for weight in weights:
        weight.copy_(nn.init.orthogonal_(torch.empty(weight.shape), gain))  # contiguous, whatever the weight's layout
    for bias in biases:
        nn.init.zeros_(bias)


def make_actor_critic(
    settings: NetworkSettings,
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    donor: Donor | None = None,
) -> ActorCritic:
    """Builds an actor-critic network from the keys of an agent.

    Args:
        settings: the keys.
        observation_space: see `make_backbone`.
        action_space: Discrete, or Box with one axis.
        donor: whose backbone to begin with, for policy and value.

    Raises:
        ConfigError: if a space cannot be read, or the backbone is not the donor's.
    """
    if not isinstance(action_space, Discrete) and not (isinstance(action_space, Box) and len(action_space.shape) == 1):
        raise ConfigError(f"actions must be Discrete or a Box with one axis, not {action_space}")

    def build() -> Backbone:
        return make_backbone(
            settings.backbone,
            observation_space,
            settings.hidden_sizes,
            settings.center_pixels,
            settings.bfloat16,
            settings.activation,
        )

    backbone = build()
    core = make_core(settings.core, backbone.out_dim, settings.core_dim)
    shared = settings.shared_backbone
    if shared is None:
        shared = core is not None or not isinstance(backbone, MLP)
    net = ActorCritic(backbone, core, action_space, None if shared else build())
    for each in (net.backbone, net.value_backbone):
        if each is not None:
            begin_backbone(each, settings.backbone, donor, settings.backbone_freeze)
    return net
