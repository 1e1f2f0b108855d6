"""Which parts of an input a network's answer hangs on. Maps are of a `score`: a function of inputs, one number each.

    gradient    how fast the score changes with each pixel
    grad_cam    where the last feature map speaks for the score; as coarse as that map
    occlusion   what the score loses when a patch is covered

A map shows what this network reacts to, not what it ought to: with other weights it must look different (Adebayo et al.
2018, arXiv:1810.03292), and a test holds that.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Score = Callable[[Tensor], Tensor]
"""(N, *shape) -> (N,)."""


def gradient(score: Score, inputs: Tensor) -> Tensor:
    """Size of the score's gradient; of a pixel, that of its largest channel.

    Equation:
        max_c |d score / d x_c|

    Source:
        Simonyan, Vedaldi and Zisserman 2013, arXiv:1312.6034, section 3.1.

    Args:
        score: differentiable.
        inputs: (N, C, H, W) or (N, D), of any number type.

    Returns:
        (N, H, W) or (N, D) float32.
    """
    x = inputs.detach().to(torch.float32, copy=True).requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(score(x).sum(), x)
    return slope.abs().amax(1) if x.dim() == 4 else slope.abs()


def grad_cam(cnn: nn.Module, score: Score, images: Tensor) -> Tensor:
    """Where the last feature map speaks for the score.

    Equation:
        relu(sum_k w_k A_k),  w_k = mean over places of d score / d A_k,  enlarged to the image

    Source:
        Selvaraju et al. 2017, arXiv:1610.02391, equations 1 and 2.

    Args:
        cnn: a backbone for images: has `feature_map`, images -> (N, K, h, w), and `read`, that map -> features.
        score: calls `cnn` on the images that it is given, once.
        images: (N, C, H, W).

    Returns:
        (N, H, W) float32, not negative.
    """
    maps: list[Tensor] = []

    def look(module: nn.Module, inputs: tuple[Tensor], features: Tensor) -> Tensor:
        maps.append(module.feature_map(*inputs).detach().requires_grad_())  # type: ignore[operator]
        read: Tensor = module.read(maps[0])  # type: ignore[operator]
        return read

    hook = cnn.register_forward_hook(look)
    try:
        with torch.enable_grad():
            total = score(images).sum()
            (slope,) = torch.autograd.grad(total, maps[0])
    finally:
        hook.remove()
    heat = F.relu((slope.mean((2, 3), keepdim=True) * maps[0]).sum(1, keepdim=True)).detach()
    return F.interpolate(heat, images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]


@torch.no_grad()
def occlusion(score: Score, images: Tensor, cover: Tensor, patch: int, stride: int) -> Tensor:
    """What the score loses where a patch is covered; of a pixel, the mean over the patches that cover it.

    Source:
        Zeiler and Fergus 2014, arXiv:1311.2901, section 4.2, whose cover is grey.

    Args:
        score: need not be differentiable.
        images: (N, C, H, W).
        cover: (C, H, W), or broadcast to it: what the patches show. A colour that never occurs there is news itself;
            the mean of many images is none.
        patch: height and width of the patch, in pixels, at most the image's.
        stride: pixels from one patch to the next; the last row and column of patches end at the border.

    Returns:
        (N, H, W) float32; positive where the pixels speak for the score.
    """
    height, width = images.shape[-2:]
    tops, lefts = ([*range(0, size - patch, stride), size - patch] for size in (height, width))
    covered = torch.zeros(len(tops) * len(lefts), height, width, dtype=torch.bool, device=images.device)
    for row, top in enumerate(tops):
        for column, left in enumerate(lefts):
            covered[row * len(lefts) + column, top : top + patch, left : left + patch] = True
    maps = []
    for image in images.float():
        hidden = torch.where(covered[:, None], cover, image)  # (K, C, H, W)
        loss = score(image[None]) - score(hidden)  # (K,)
        maps.append((loss[:, None, None] * covered).sum(0) / covered.sum(0))
    return torch.stack(maps)
