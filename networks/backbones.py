"""Backbones: observation in, features out. Every backbone has `out_dim`.

Images enter as uint8 (N, C, H, W), in any memory layout; they are converted once, to float32 in channels_last layout,
which is what the convolutions compute fastest in. Bytes of which a space allows only the first few values are class
codes: names, not amounts. They enter one-hot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from torch import Tensor, nn

from faults import ConfigError

BACKBONES = ("auto", "mlp", "nature_cnn", "nips_cnn", "small_cnn")
MAX_CODES = 64
"""A space of bytes with fewer values than this holds class codes; brightness has 256."""
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "tanh": torch.tanh}


class Backbone(nn.Module):
    """Observation (N, *obs_shape) -> features (N, out_dim)."""

    out_dim: int


def make_backbone(
    name: str,
    space: gym.Space[Any],
    hidden_sizes: Sequence[int],
    center_pixels: bool = False,
    bfloat16: bool = False,
    activation: str = "relu",
    layer_norm: bool = False,
) -> Backbone:
    """Builds a backbone for the observations of `space`.

    Args:
        name: one of `BACKBONES`; `auto` is `nature_cnn` for images and `mlp` for everything else.
        space: Box, Discrete or MultiDiscrete, as in `contract.EnvSpec.observation_space`, or a Dict of them: each part
            then has a backbone of its own, where `name` is that of the images and everything else has an `mlp`.
        hidden_sizes: layer widths of an `mlp`; the last is the feature size. CNNs have their papers' sizes.
        center_pixels: whether a CNN subtracts a mean image, which is to be given to `CNN.center`.
        bfloat16: whether a CNN computes in bfloat16; its weights and features stay float32.
        activation: of an `mlp`, one of `ACTIVATIONS`.
        layer_norm: whether every layer is normalised before its nonlinearity.

    Raises:
        ConfigError: if the backbone cannot read the space.
    """
    if isinstance(space, gym.spaces.Dict):
        if center_pixels:
            raise ConfigError("agent.center_pixels needs observations that are one image, not several senses")
        names = {part: name if is_image(sense) else "mlp" for part, sense in space.items()}
        return Fusion(
            {
                part: make_backbone(names[part], sense, hidden_sizes, False, bfloat16, activation, layer_norm)
                for part, sense in space.items()
            }
        )
    image = is_image(space)
    if name == "auto":
        name = "nature_cnn" if image else "mlp"
    if center_pixels and (not image or name == "mlp"):
        raise ConfigError(f"agent.center_pixels needs a CNN on images, not {name} on {space}")
    if name == "mlp":
        return MLP(make_input(space), hidden_sizes, activation, layer_norm)
    if not image:
        raise ConfigError(f"agent.backbone={name} reads images (channels, height, width), not {space}; use mlp")
    assert space.shape is not None
    convolutions, out_dim = CNNS[name]
    return CNN(space.shape, convolutions, out_dim, center_pixels, bfloat16, layer_norm)


def is_image(space: gym.Space[Any]) -> bool:
    """Whether observations are (channels, height, width)."""
    return isinstance(space, Box) and len(space.shape) == 3


def num_codes(space: Box) -> int | None:
    """How many class codes a space of bytes has, None if its values are amounts."""
    few = space.dtype == np.uint8 and int(space.high.max()) < MAX_CODES - 1
    return int(space.high.max()) + 1 if few else None


def make_input(space: gym.Space[Any]) -> Backbone:
    """First layer of an `mlp`: one-hot for discrete observations and class codes, else flattened floats (brightness
    scaled to [0, 1])."""
    if isinstance(space, Discrete):
        return OneHot([int(space.n)])
    if isinstance(space, MultiDiscrete):
        return OneHot([int(n) for n in space.nvec])
    assert isinstance(space, Box)
    size, codes = int(np.prod(space.shape)), num_codes(space)
    if codes is not None:
        return OneHot([codes] * size)
    return Flatten(size, scale=1 / 255 if space.dtype == np.uint8 else 1.0)


class OneHot(Backbone):
    """Integers (N,) or (N, K) -> concatenated one-hot vectors (N, sum of sizes) float32."""

    offset: Tensor

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.out_dim = sum(sizes)
        self.register_buffer("offset", torch.tensor([0, *np.cumsum(sizes)[:-1].tolist()]), persistent=False)

    def index(self, obs: Tensor) -> Tensor:
        """Where the ones are: (N, K) int64."""
        return obs.reshape(obs.shape[0], -1) + self.offset

    def forward(self, obs: Tensor) -> Tensor:
        return torch.zeros(obs.shape[0], self.out_dim, device=obs.device).scatter_(1, self.index(obs), 1.0)


class OneHotLinear(nn.EmbeddingBag):
    """`OneHot`, then a linear layer: the sum of K columns of its weights. Reading those instead of multiplying with the
    zeros between them is several times as fast."""

    def __init__(self, one_hot: OneHot, out_dim: int) -> None:
        super().__init__(one_hot.out_dim, out_dim, mode="sum")
        self.one_hot = one_hot
        bound = len(one_hot.offset) ** -0.5  # as torch.nn.Linear's, for K inputs that are not zero
        nn.init.uniform_(self.weight, -bound, bound)
        self.bias = nn.Parameter(torch.empty(out_dim).uniform_(-bound, bound))

    def forward(self, obs: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(self.one_hot.index(obs)) + self.bias


class Flatten(Backbone):
    """(N, ...) of any number type -> (N, out_dim) float32, multiplied by `scale`."""

    def __init__(self, out_dim: int, scale: float) -> None:
        super().__init__()
        self.out_dim = out_dim
        self.scale = scale

    def forward(self, obs: Tensor) -> Tensor:
        flat = obs.reshape(obs.shape[0], self.out_dim).float()
        return flat if self.scale == 1.0 else flat * self.scale


class MLP(Backbone):
    """Fully connected layers, each with its activation, normalised before it if wanted: (N, ...) -> (N, out_dim)."""

    def __init__(
        self,
        input_layer: Backbone,
        hidden_sizes: Sequence[int],
        activation: str = "relu",
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.input_layer: nn.Module = input_layer
        width = input_layer.out_dim
        self.layers = nn.ModuleList()
        for size in hidden_sizes:
            self.layers.append(nn.Linear(width, size))
            width = size
        if isinstance(input_layer, OneHot) and len(input_layer.offset) > 1 and hidden_sizes:
            self.input_layer, self.layers[0] = nn.Identity(), OneHotLinear(input_layer, hidden_sizes[0])
        self.norms = nn.ModuleList(nn.LayerNorm(size) if layer_norm else nn.Identity() for size in hidden_sizes)
        self.out_dim = width

    def forward(self, obs: Tensor) -> Tensor:
        x: Tensor = self.input_layer(obs)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = self.activation(norm(layer(x)))
        return x


class Fusion(Backbone):
    """Several senses: a backbone for each, their features side by side. Dict of (N, ...) -> (N, out_dim)."""

    def __init__(self, parts: dict[str, Backbone]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)
        self.out_dim = sum(part.out_dim for part in parts.values())

    def forward(self, obs: dict[str, Tensor]) -> Tensor:
        return torch.cat([part(obs[name]) for name, part in self.parts.items()], dim=1)


class CNN(Backbone):
    """Convolutions without padding, then one fully connected layer, ReLU after each: (N, C, H, W) -> (N, out_dim).

    Pixels enter as x / 255, or, with `center_pixels`, as (x - mean image) / 64 once `center` has been called. With
    `layer_norm` the channels of each pixel are normalised before the ReLU, as Flax's LayerNorm does (some PyTorch code
    normalises all pixels of an image together, which is another network).
    """

    pixel_mean: Tensor

    def __init__(
        self,
        image_shape: tuple[int, ...],
        convolutions: Sequence[tuple[int, int, int]],
        out_dim: int,
        center_pixels: bool = False,
        bfloat16: bool = False,
        layer_norm: bool = False,
    ) -> None:
        """Builds the layers.

        Args:
            image_shape: channels, height, width.
            convolutions: (filters, kernel size, stride) of each.
            out_dim: width of the fully connected layer.
            center_pixels: see the class.
            bfloat16: compute in bfloat16. About 1.6 times as fast where the hardware has instructions for it
                (AVX512-BF16, AMX, recent GPUs), many times slower where it has not.
            layer_norm: see the class.
        """
        super().__init__()
        planes, *size = image_shape
        layers = []
        for filters, kernel, stride in convolutions:
            if min(size) < kernel:
                raise ConfigError(
                    f"an image of {image_shape[1]}x{image_shape[2]} pixels is too small for this backbone"
                )
            layers.append(nn.Conv2d(planes, filters, kernel, stride))
            size, planes = [(s - kernel) // stride + 1 for s in size], filters
        self.first, self.rest = layers[0], nn.ModuleList(layers[1:])
        self.linear = nn.Linear(planes * size[0] * size[1], out_dim)
        widths = [filters for filters, _, _ in convolutions]
        self.norms = nn.ModuleList(nn.LayerNorm(n) if layer_norm else nn.Identity() for n in [*widths, out_dim])
        self.out_dim = out_dim
        self.center_pixels, self.computes_bfloat16 = center_pixels, bfloat16
        if center_pixels:
            self.register_buffer("pixel_mean", torch.zeros(image_shape))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def center(self, pixel_mean: Tensor) -> None:
        """Sets the image (C, H, W), in pixel values, that is subtracted from every input."""
        self.pixel_mean.copy_(pixel_mean)

    def forward(self, image: Tensor) -> Tensor:
        # Scaling the kernel (a few thousand numbers) and subtracting the mean image's response is the same function as
        # scaling and subtracting on millions of pixels.
        kernel = self.first.weight * (1 / 64 if self.center_pixels else 1 / 255)
        with torch.autocast(image.device.type, torch.bfloat16) if self.computes_bfloat16 else nullcontext():
            x = image.to(torch.float32, memory_format=torch.channels_last)
            x = F.conv2d(x, kernel, self.first.bias, self.first.stride)
            if self.center_pixels:
                x = x - F.conv2d(self.pixel_mean[None], kernel, None, self.first.stride)
            # Channels last, as it lies in memory: to normalise and to flatten it takes no copy.
            x = F.relu_(self.norms[0](x.permute(0, 2, 3, 1)))
            for layer, norm in zip(self.rest, self.norms[1:], strict=False):
                x = F.relu_(norm(layer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)))
            features: Tensor = F.relu_(self.norms[-1](self.linear(x.flatten(1))))
        return features.float()


CNNS: dict[str, tuple[Sequence[tuple[int, int, int]], int]] = {
    # Mnih et al. 2015, Nature 518, "Methods": 1.69 million parameters with its head on 84x84x4.
    "nature_cnn": ([(32, 8, 4), (64, 4, 2), (64, 3, 1)], 512),
    # Mnih et al. 2013, arXiv:1312.5602, section 4.1: a third of the Nature network's work.
    "nips_cnn": ([(16, 8, 4), (32, 4, 2)], 256),
    # For images of about 42x42 pixels.
    "small_cnn": ([(16, 4, 2), (32, 4, 2)], 256),
}
"""(filters, kernel size, stride) of each convolution, and the width of the fully connected layer."""
