"""Residual backbones: ResNets (He et al. 2016) and the deep network of IMPALA (Espeholt et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.cnns import ImageBackbone, WideLinear, first_conv, he_, too_small

CHANNELS_PER_GROUP = 8
COARSE = 8
"""A feature map of at most so many pixels on its shorter side is not halved any more."""
LARGE = 32
"""Images larger than this are shrunk by the first convolution."""


class BasicBlock(nn.Module):
    """relu(x + norm(conv(relu(norm(conv(x)))))), of 3 x 3 filters; where the shape changes, x passes a 1 x 1 one."""

    def __init__(self, planes: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(planes, width, 3, stride, padding=1, bias=False)
        self.norm1 = group_norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = group_norm(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or planes != width:
            self.shortcut = nn.Sequential(nn.Conv2d(planes, width, 1, stride, bias=False), group_norm(width))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu_(self.norm1(self.conv1(x)))
        return F.relu_(self.norm2(self.conv2(y)) + self.shortcut(x))


def group_norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(max(1, width // CHANNELS_PER_GROUP), width)


class ResNet(ImageBackbone):
    """A first convolution, stages of basic blocks, and the mean over what is left of the image.

    Source:
        He et al. 2016, "Deep Residual Learning for Image Recognition", arXiv:1512.03385: section 4.2 for `resnet`
        (filters double where the map is halved, 16 to begin with), table 1 for `resnet18`. Initial weights as section
        3.4 says: He et al. 2015, normal with variance 2 / fan-in.

    Deviations:
        Group normalisation (Wu and He 2018, arXiv:1803.08494), in groups of 8 channels, stands where the paper has
        batch normalisation. That would make what a network answers depend on the rest of its batch in training, and on
        running means elsewhere, which target networks, acting in other processes and checkpoints would have to carry,
        and which the changing data of reinforcement learning spoil.
        Shortcuts across a change of shape are 1 x 1 convolutions in both (the paper's option B; its section 4.2 has A).
        `resnet`: images above 32 pixels are shrunk by the first convolution, of stride s = ceil(size / 32) and
        2s + 1 pixels wide (3 for s = 1, as in the paper), and a map of at most 8 pixels is not halved: 84 pixels
        become 28, 14, 7 and 7.
    """

    def __init__(
        self, image_shape: tuple[int, ...], blocks: Sequence[int], imagenet: bool = False, bfloat16: bool = False
    ) -> None:
        """Builds the layers.

        Args:
            image_shape: channels, height, width.
            blocks: how many each stage has.
            imagenet: as the paper builds it for large images: a first convolution of 7 x 7 and stride 2, a maximum over
                3 x 3 of stride 2, stages from 64 filters on that all halve the map.
            bfloat16: see `CNN`.
        """
        super().__init__()
        planes, *size = image_shape
        if min(size) < 8:
            raise too_small(image_shape)
        self.computes_bfloat16, self.pools = bfloat16, imagenet
        shrink = 2 if imagenet else -(-max(size) // LARGE)
        kernel = 7 if imagenet else 2 * shrink + 1
        width = 64 if imagenet else 16
        self.first = nn.Conv2d(planes, width, kernel, shrink, padding=kernel // 2, bias=False)
        self.norm = group_norm(width)
        size = [(s - 1) // (2 * shrink if imagenet else shrink) + 1 for s in size]
        stages: list[nn.Module] = []
        planes = width
        for k, count in enumerate(blocks):
            halved = k > 0 and (imagenet or min(size) > COARSE)
            if halved:
                size, width = [(s + 1) // 2 for s in size], 2 * width
            for j in range(count):
                stages.append(BasicBlock(planes, width, 2 if halved and j == 0 else 1))
                planes = width
        self.blocks = nn.Sequential(*stages)
        self.out_dim = width
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                he_(module)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def feature_map(self, image: Tensor) -> Tensor:
        with self._precision(image.device):
            x = F.relu_(self.norm(first_conv(self.first, image)))
            if self.pools:
                x = F.max_pool2d(x, 3, 2, padding=1)
            found: Tensor = self.blocks(x)
        return found

    def read(self, feature_map: Tensor) -> Tensor:
        return feature_map.mean(dim=(2, 3)).float()


class ResidualUnit(nn.Module):
    """x + conv(relu(conv(relu(x)))), of 3 x 3 filters."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv2(F.relu_(self.conv1(F.relu(x))))
        return x + y


class ImpalaCNN(ImageBackbone):
    """Three stages of 16, 32 and 32 filters, each a convolution, a maximum over 3 x 3 of stride 2, and two residual
    units; then 256 units.

    Source:
        Espeholt et al. 2018, "IMPALA", arXiv:1802.01561, figure 3 (right), without its LSTM. Initial weights are those
        of Sonnet, which the authors used: normal, cut at two standard deviations of 1 / sqrt(fan-in); biases zero.
    """

    def __init__(self, image_shape: tuple[int, ...], bfloat16: bool = False) -> None:
        super().__init__()
        planes, *size = image_shape
        self.computes_bfloat16 = bfloat16
        self.convolutions, self.units = nn.ModuleList(), nn.ModuleList()
        for width in (16, 32, 32):
            self.convolutions.append(nn.Conv2d(planes, width, 3, padding=1))
            self.units.append(nn.Sequential(ResidualUnit(width), ResidualUnit(width)))
            size, planes = [(s + 1) // 2 for s in size], width
        self.linear = WideLinear(planes * size[0] * size[1], 256)
        self.out_dim = 256
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                std = module.weight[0].numel() ** -0.5
                nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def feature_map(self, image: Tensor) -> Tensor:
        with self._precision(image.device):
            x = image
            for k, (layer, units) in enumerate(zip(self.convolutions, self.units, strict=True)):
                x = first_conv(layer, image) if k == 0 else layer(x)  # type: ignore[arg-type]
                x = units(F.max_pool2d(x, 3, 2, padding=1))
        return F.relu_(x)

    def read(self, feature_map: Tensor) -> Tensor:
        with self._precision(feature_map.device):
            features: Tensor = F.relu(self.linear(feature_map.permute(0, 2, 3, 1).flatten(1)))
        return features.float()
