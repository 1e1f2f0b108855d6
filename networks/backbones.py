"""Backbones: observation in, features out. Every backbone has `out_dim`.

Images enter as uint8 (N, C, H, W), in any memory layout; they are converted once, to float32 in channels_last layout,
which is what the convolutions compute fastest in. Bytes of which a space allows only the first few values are class
codes: names, not amounts. They enter one-hot.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from torch import Tensor, nn

from faults import ConfigError
from networks.cnns import CNN, CNNS, Backbone, ConvNet, ImageBackbone, LeNet
from networks.resnet import ImpalaCNN, ResNet

__all__ = ["ACTIVATIONS", "BACKBONES", "CNN", "MLP", "Backbone", "Fusion", "ImageBackbone", "cost", "make_backbone"]

IMAGE_BACKBONES: dict[str, Callable[..., ImageBackbone]] = {
    "lenet": LeNet,
    "convnet": ConvNet,
    **{name: partial(CNN, convolutions=layers, out_dim=width) for name, (layers, width) in CNNS.items()},
    "impala_cnn": ImpalaCNN,
    "resnet": partial(ResNet, blocks=(3, 3, 3, 3)),
    "resnet18": partial(ResNet, blocks=(2, 2, 2, 2), imagenet=True),
}
BACKBONES = ("auto", "mlp", *IMAGE_BACKBONES)
MAX_CODES = 64
"""A space of bytes with fewer values than this holds class codes; brightness has 256."""
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "tanh": torch.tanh}


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
            raise ConfigError("center_pixels needs observations that are one image, not several senses")
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
        raise ConfigError(f"center_pixels needs a CNN on images, not {name} on {space}")
    if name == "mlp":
        return MLP(make_input(space), hidden_sizes, activation, layer_norm)
    if not image:
        raise ConfigError(f"backbone={name} reads images (channels, height, width), not {space}; use mlp")
    assert space.shape is not None
    if center_pixels and name not in CNNS:
        raise ConfigError(f"center_pixels is known to {', '.join(CNNS)}, not to {name}")
    if layer_norm and name == "impala_cnn":
        raise ConfigError("impala_cnn has no normalisation; set layer_norm=false or use another backbone")
    options = {"center_pixels": center_pixels} if name in CNNS else {}
    if not name.startswith(("resnet", "impala")):  # a ResNet is normalised in its own way, always
        options["layer_norm"] = layer_norm
    return IMAGE_BACKBONES[name](space.shape, bfloat16=bfloat16, **options)


class Cost(NamedTuple):
    """How large a network is."""

    parameters: int
    multiply_adds: int
    """Of one input, in convolutions and matrix products."""


def cost(backbone: Backbone, obs_shape: Sequence[int]) -> Cost:
    """Counts what a backbone does with one observation of a shape, of bytes; nothing is computed."""
    from torch.utils.flop_counter import FlopCounterMode  # only here: whoever counts waits for its imports

    net = copy.deepcopy(backbone).to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, *obs_shape, dtype=torch.uint8, device="meta"))
    return Cost(sum(p.numel() for p in backbone.parameters()), counter.get_total_flops() // 2)


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
        return obs.reshape(obs.shape[0], self.offset.shape[0]) + self.offset

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
