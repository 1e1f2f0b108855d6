"""Backbones: observation in, features out. Every backbone has `out_dim`.

Images enter as uint8 (N, C, H, W), in any memory layout; they are converted once, to float32 in channels_last layout,
which is what the convolutions compute fastest in. The division by 255 is folded into the first layer's weights (a few
thousand numbers instead of a few million).
"""

from __future__ import annotations

from collections.abc import Sequence

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from torch import Tensor, nn

from faults import ConfigError

BACKBONES = ("auto", "mlp", "nature_cnn", "nips_cnn", "small_cnn")


def make_backbone(name: str, space: gym.Space, hidden_sizes: Sequence[int]) -> nn.Module:
    """Builds a backbone for the observations of `space`.

    Args:
        name: one of `BACKBONES`; `auto` is `nature_cnn` for images and `mlp` for everything else.
        space: Box, Discrete or MultiDiscrete, as in `contract.EnvSpec.observation_space`.
        hidden_sizes: layer widths of an `mlp`; the last is the feature size. CNNs have their papers' sizes.

    Raises:
        ConfigError: if the backbone cannot read the space.
    """
    image = isinstance(space, Box) and len(space.shape) == 3
    if name == "auto":
        name = "nature_cnn" if image else "mlp"
    if name == "mlp":
        return MLP(make_input(space), hidden_sizes)
    if not image:
        raise ConfigError(f"agent.backbone={name} reads images (channels, height, width), not {space}; use mlp")
    channels, height, width = space.shape
    return {"nature_cnn": nature_cnn, "nips_cnn": nips_cnn, "small_cnn": small_cnn}[name](channels, height, width)


def make_input(space: gym.Space) -> nn.Module:
    """The first layer of an `mlp`: one-hot for discrete observations, else flattened floats (bytes scaled to [0, 1])."""
    if isinstance(space, Discrete):
        return OneHot([int(space.n)])
    if isinstance(space, MultiDiscrete):
        return OneHot([int(n) for n in space.nvec])
    assert isinstance(space, Box)
    return Flatten(int(np.prod(space.shape)), scale=1 / 255 if space.dtype == np.uint8 else 1.0)


class OneHot(nn.Module):
    """Integers (N,) or (N, K) -> concatenated one-hot vectors (N, sum of sizes) float32."""

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.out_dim = sum(sizes)
        self.register_buffer("offset", torch.tensor([0, *np.cumsum(sizes)[:-1].tolist()]), persistent=False)

    def forward(self, obs: Tensor) -> Tensor:
        index = obs.reshape(len(obs), -1) + self.offset
        return torch.zeros(len(obs), self.out_dim, device=obs.device).scatter_(1, index, 1.0)


class Flatten(nn.Module):
    """(N, ...) of any number type -> (N, out_dim) float32, multiplied by `scale`."""

    def __init__(self, out_dim: int, scale: float) -> None:
        super().__init__()
        self.out_dim = out_dim
        self.scale = scale

    def forward(self, obs: Tensor) -> Tensor:
        flat = obs.reshape(len(obs), self.out_dim).float()
        return flat if self.scale == 1.0 else flat * self.scale


class MLP(nn.Module):
    """Fully connected layers with ReLU: (N, ...) -> (N, out_dim)."""

    def __init__(self, input_layer: nn.Module, hidden_sizes: Sequence[int]) -> None:
        super().__init__()
        self.input_layer = input_layer
        width = int(input_layer.out_dim)
        self.layers = nn.ModuleList()
        for size in hidden_sizes:
            self.layers.append(nn.Linear(width, size))
            width = size
        self.out_dim = width

    def forward(self, obs: Tensor) -> Tensor:
        x = self.input_layer(obs)
        for layer in self.layers:
            x = F.relu(layer(x))
        return x


class CNN(nn.Module):
    """Convolutions without padding, then one fully connected layer, ReLU after each: (N, C, H, W) -> (N, out_dim)."""

    def __init__(
        self, channels: int, height: int, width: int, convolutions: Sequence[tuple[int, int, int]], out_dim: int
    ) -> None:
        """Builds the layers.

        Args:
            channels: of the image.
            height: in pixels.
            width: in pixels.
            convolutions: (filters, kernel size, stride) of each.
            out_dim: width of the fully connected layer.
        """
        super().__init__()
        self.convolutions = nn.ModuleList()
        size, planes = [height, width], channels
        for filters, kernel, stride in convolutions:
            if min(size) < kernel:
                raise ConfigError(f"an image of {height}x{width} pixels is too small for this backbone; use mlp")
            self.convolutions.append(nn.Conv2d(planes, filters, kernel, stride))
            size, planes = [(s - kernel) // stride + 1 for s in size], filters
        self.linear = nn.Linear(planes * size[0] * size[1], out_dim)
        self.out_dim = out_dim
        self.to(memory_format=torch.channels_last)

    def forward(self, image: Tensor) -> Tensor:
        first = self.convolutions[0]
        scale = 1 / 255 if image.dtype == torch.uint8 else 1.0
        x = image.to(torch.float32, memory_format=torch.channels_last)
        x = F.conv2d(x, first.weight * scale, first.bias, first.stride)
        x = F.relu_(x)
        for layer in self.convolutions[1:]:
            x = F.relu_(layer(x))
        return F.relu_(self.linear(x.flatten(1)))


def nature_cnn(channels: int, height: int, width: int) -> CNN:
    """The network of Mnih et al. 2015 (Nature 518, "Methods"): 1.69 million parameters with its head on 84x84x4."""
    return CNN(channels, height, width, [(32, 8, 4), (64, 4, 2), (64, 3, 1)], 512)


def nips_cnn(channels: int, height: int, width: int) -> CNN:
    """The network of Mnih et al. 2013 (arXiv:1312.5602, section 4.1): a third of the Nature network's work."""
    return CNN(channels, height, width, [(16, 8, 4), (32, 4, 2)], 256)


def small_cnn(channels: int, height: int, width: int) -> CNN:
    """Two strided 4x4 convolutions for images of about 42x42 pixels."""
    return CNN(channels, height, width, [(16, 4, 2), (32, 4, 2)], 256)
