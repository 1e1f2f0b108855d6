"""Random changes of images that leave what they show, on a whole batch at a time.

Every function takes images (B, C, H, W), uint8 or float32 of the same range, 0 to 255, and a generator on their device,
and returns as many of the same type; each image has its own draw. None fits every set: a flipped road drives on the
left, and a shift moves what positions are labelled.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Images = Tensor
LUMA = [0.299, 0.587, 0.114]
"""How bright red, green and blue look (ITU-R BT.601)."""


def random_shift(images: Images, pixels: int, generator: torch.Generator) -> Images:
    """Moves each image by up to `pixels` in both directions; what comes in at the side repeats the edge.

    Source:
        Kostrikov, Yarats and Fergus 2020, arXiv:2004.13649 (DrQ), section 3: by 4 for images of 84 x 84.
    """
    return _cut(_repeat_edge(images, pixels), images.shape[2:], generator)


def random_crop(images: Images, pad: int, generator: torch.Generator) -> Images:
    """Cuts as large an image out of one with `pad` black pixels around.

    Source:
        He et al. 2016, arXiv:1512.03385, section 4.2: 4 pixels for CIFAR.
    """
    return _cut(F.pad(images, (pad,) * 4), images.shape[2:], generator)


def random_flip(images: Images, generator: torch.Generator) -> Images:
    """Mirrors each image, left to right, with probability 1/2."""
    mirrored = torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device) < 0.5
    return torch.where(mirrored, images.flip(3), images)


def random_colour(images: Images, strength: float, generator: torch.Generator) -> Images:
    """Changes brightness, contrast and, of colour images, saturation, each by a factor from
    [1 - strength, 1 + strength].

    Equation:
        x <- b x;  x <- m + c (x - m), m the mean of the image's brightness;  x <- g + s (x - g), g each pixel's
        brightness; cut to [0, 255]

    Args:
        images: (B, C, H, W); with three channels they are red, green and blue.
        strength: at least 0, at most 1.
        generator: see the module.
    """
    factors = 1 + strength * (2 * torch.rand(3, len(images), 1, 1, 1, generator=generator, device=images.device) - 1)
    brightness, contrast, saturation = factors
    x: Tensor = images.float() * brightness
    coloured = images.shape[1] == 3
    weights = x.new_tensor(LUMA if coloured else [1 / x.shape[1]] * x.shape[1]).view(1, -1, 1, 1)
    grey: Tensor = (x * weights).sum(dim=1, keepdim=True)
    mean = grey.mean(dim=(2, 3), keepdim=True)
    x = mean + contrast * (x - mean)
    if coloured:
        grey = mean + contrast * (grey - mean)
        x = grey + saturation * (x - grey)
    x = x.clamp(0, 255)
    return x.round().to(torch.uint8) if images.dtype == torch.uint8 else x


def _cut(large: Images, size: torch.Size, generator: torch.Generator) -> Images:
    """Cuts an image of `size` out of each, each place as likely as the others."""
    batch, channels, tall, wide = large.shape
    height, width = size

    def start(room: int) -> Tensor:
        return torch.randint(room + 1, (batch, 1), generator=generator, device=large.device)

    rows = start(tall - height) + torch.arange(height, device=large.device)  # (B, H)
    columns = start(wide - width) + torch.arange(width, device=large.device)  # (B, W)
    flat = rows[:, None, :, None] * wide + columns[:, None, None, :]  # (B, 1, H, W)
    index = flat.expand(batch, channels, height, width).flatten(2)
    return large.flatten(2).gather(2, index).view(batch, channels, height, width)


def _repeat_edge(images: Images, pixels: int) -> Images:
    rows, columns = (
        torch.arange(-pixels, size + pixels, device=images.device).clamp(0, size - 1) for size in images.shape[2:]
    )
    return images[:, :, rows][..., columns]
