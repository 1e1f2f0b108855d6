"""What agents that learn a Q-network share: its settings, the network, and what steps it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn

from faults import check_choice, check_range
from networks.backbones import BACKBONES, CNN, make_backbone
from networks.noisy import make_noisy
from networks.optimizer import clipped_gradient, load_optimizer_state, optimizer_state
from networks.transfer import Donor, begin_backbone


@dataclass(frozen=True)
class QLearnerSettings:
    """The `agent.*` keys of a Q-network and its optimiser."""

    algorithm: str = ""
    learning_rate: float = 1e-3
    learning_rate_end: float | None = None
    """If set, the learning rate falls linearly to this value over the run."""
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 10.0
    target_sync_every_env_steps: int = 1_000
    dueling: bool = False
    """State value plus advantages (Wang et al. 2016)."""
    clip_reward: bool = False
    """Learn from rewards clipped to [-1, 1]; reported returns stay raw."""
    backbone: str = "auto"
    """auto (nature_cnn for images, else mlp), mlp, lenet, convnet, nature_cnn, nips_cnn, small_cnn, impala_cnn, resnet,
    resnet18."""
    backbone_init: str | None = None
    """A run folder, or latest: begin with the weights of its backbone, be it an agent's or a classifier's."""
    backbone_freeze: bool = False
    """Never change the backbone: only what stands on it learns. With a linear head, a linear probe."""
    center_pixels: bool = False
    """Subtract the mean image of the steps before learning starts from every image."""
    bfloat16: bool = False
    """Compute the CNN in bfloat16: faster only where the processor has its instructions."""
    hidden_sizes: list[int] = field(default_factory=lambda: [256, 256])
    """Layer widths of the mlp."""

    def __post_init__(self) -> None:
        check_range("agent.learning_rate", self.learning_rate, 0, None, open_low=True)
        if self.learning_rate_end is not None:
            check_range("agent.learning_rate_end", self.learning_rate_end, 0, None)
        check_range("agent.adam_epsilon", self.adam_epsilon, 0, None, open_low=True)
        check_range("agent.max_grad_norm", self.max_grad_norm, 0, None, open_low=True)
        check_range("agent.target_sync_every_env_steps", self.target_sync_every_env_steps, 1, None)
        check_choice("agent.backbone", self.backbone, BACKBONES)
        for size in self.hidden_sizes:
            check_range("agent.hidden_sizes", size, 1, 1_000_000)

    @property
    def measures_mean_image(self) -> bool:
        """Whether the image to subtract is still to be found; a given backbone brings its own."""
        return self.center_pixels and self.backbone_init is None


def make_q_net(
    settings: QLearnerSettings,
    space: gym.Space[Any],
    make_head: Callable[[int], nn.Module],
    seed: int,
    noisy_sigma: float | None = None,
    donor: Donor | None = None,
) -> nn.Sequential:
    """Builds backbone and head; their initial weights are a function of `seed` alone.

    Args:
        settings: the keys.
        space: of the observations.
        make_head: builds the head for features of a width.
        seed: of the initial weights.
        noisy_sigma: if set, every linear layer is a noisy one.
        donor: whose backbone to begin with.

    Raises:
        ConfigError: if the backbone cannot read the observations, or is not the donor's.
    """
    with torch.random.fork_rng(devices=[]):  # initial weights come from the run's own stream
        torch.manual_seed(seed)
        s = settings
        backbone = make_backbone(s.backbone, space, s.hidden_sizes, s.center_pixels, s.bfloat16)
        q_net = nn.Sequential(backbone, make_head(backbone.out_dim))
        if noisy_sigma is not None:
            make_noisy(q_net, noisy_sigma)
        begin_backbone(backbone, s.backbone, donor, s.backbone_freeze)
        return q_net


class QLearner:
    """A Q-network with its delayed copy and its Adam; counts environment steps, gradient steps and synchronisations."""

    def __init__(self, settings: QLearnerSettings, q_net: nn.Sequential, device: torch.device) -> None:
        """Moves the network to the device and copies it.

        Args:
            settings: the keys.
            q_net: backbone and head.
            device: where it learns.
        """
        self._settings = settings
        self.device = device
        self.q_net = q_net.to(device)
        self.target_q_net = copy.deepcopy(q_net).requires_grad_(False)
        self.optimizer = torch.optim.Adam(
            q_net.parameters(), settings.learning_rate, eps=settings.adam_epsilon, fused=device.type != "meta"
        )
        self.env_steps = 0
        self.updates = 0
        self._syncs = 0

    def center_pixels(self, image: Tensor) -> None:
        """Sets the mean image (C, H, W) that both networks subtract from what they see."""
        for net in (self.q_net, self.target_q_net):
            backbone = net[0]
            assert isinstance(backbone, CNN)
            backbone.center(image.to(self.device))

    def step(self, loss: Tensor, learning_rate: float) -> dict[str, Tensor | float]:
        """One gradient step.

        Args:
            loss: () of the network's outputs.
            learning_rate: of this step.

        Returns:
            Its metrics.

        Raises:
            NonFiniteError: if the loss or a gradient is not finite; the weights are as before then.
        """
        grad_norm = clipped_gradient(self.q_net, loss, self._settings.max_grad_norm, f"update {self.updates + 1}")
        self.optimizer.param_groups[0]["lr"] = learning_rate
        self.optimizer.step()
        self.updates += 1
        return {
            "train/loss": loss.detach(),
            "train/grad_norm": grad_norm,
            "train/learning_rate": learning_rate,
            "train/n_updates": float(self.updates),
        }

    def sync_target(self) -> None:
        """Copies the network into its delayed copy, if that is due."""
        due = self.env_steps // self._settings.target_sync_every_env_steps
        if due > self._syncs:
            self.target_q_net.load_state_dict(self.q_net.state_dict())
            self._syncs = due

    def state_dict(self) -> dict[str, Any]:
        """All but the network, which is the policy's."""
        return {
            "target_q_net": self.target_q_net.state_dict(),
            "optimizer": optimizer_state(self.optimizer),
            "counters": {"env_steps": self.env_steps, "updates": self.updates, "syncs": self._syncs},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.target_q_net.load_state_dict(state["target_q_net"])
        load_optimizer_state(self.optimizer, state["optimizer"])
        counters = state["counters"]
        self.env_steps, self.updates, self._syncs = counters["env_steps"], counters["updates"], counters["syncs"]
