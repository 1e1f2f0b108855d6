"""What may happen to an image between the world and the network: noise, blur, light, and attacks on the network.

Images are (B, C, H, W) in [0, 255], uint8 or float32; what comes back is float32 in [0, 255].
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor

PGD_STEPS = 10
"""Of the attack that classifiers are evaluated with."""
Loss = Callable[[Tensor], Tensor]
"""Images (B, C, H, W) float32 -> a loss (), a sum or mean over the images."""


def add_noise(images: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    """Adds independent Gaussian noise to every value of every pixel.

    Args:
        images: see the module.
        deviation: standard deviation of the noise, of 255.
        generator: on the device of the images.
    """
    noise = torch.empty(images.shape, device=images.device).normal_(generator=generator)
    return (images.float() + deviation * noise).clamp(0, 255)


def blur(images: Tensor, radius: float) -> Tensor:
    """Convolves every channel with a Gaussian that ends at three standard deviations; edges are repeated outwards.

    Args:
        images: see the module.
        radius: standard deviation of the Gaussian, in pixels.
    """
    if radius == 0:
        return images.float()
    reach = ceil(3 * radius)
    place = torch.arange(-reach, reach + 1, device=images.device, dtype=torch.float32)
    weight = (-0.5 * (place / radius).square()).softmax(dim=0)
    channels = images.shape[1]
    across = weight.repeat(channels, 1, 1, 1)  # (C, 1, 1, 2 reach + 1): one filter for each channel
    padded = F.pad(images.float(), (reach, reach, reach, reach), mode="replicate")
    blurred = F.conv2d(F.conv2d(padded, across, groups=channels), across.transpose(2, 3), groups=channels)
    return blurred.clamp(0, 255)


def brighten(images: Tensor, amount: float) -> Tensor:
    """Adds `amount`, of 255, to every pixel; a negative one darkens."""
    return (images.float() + amount).clamp(0, 255)


def fgsm(loss: Loss, images: Tensor, epsilon: float) -> Tensor:
    """The fast gradient sign method: one step uphill as far as every pixel may go.

    Equation:
        x' = clip(x + epsilon sign(grad_x loss(x)), 0, 255)

    Args:
        loss: of the right answers; the attack makes it large.
        images: see the module.
        epsilon: the largest change of a pixel, of 255.

    Source:
        Goodfellow, Shlens and Szegedy 2015, arXiv:1412.6572, section 4.
    """
    x = images.float()
    return (x + epsilon * uphill(loss, x).sign()).clamp(0, 255)


def pgd(
    loss: Loss, images: Tensor, epsilon: float, steps: int, generator: torch.Generator, step_size: float | None = None
) -> Tensor:
    """Projected gradient descent (ascent, here): many small steps from a random place near the image.

    Equation:
        x_0 = clip(x + u),  u uniform in [-epsilon, epsilon]
        x_k+1 = clip(x_k + step_size sign(grad loss(x_k))),  clip: to [x - epsilon, x + epsilon] and to [0, 255]

    Args:
        loss: of the right answers; the attack makes it large.
        images: see the module.
        epsilon: the largest change of a pixel, of 255.
        steps: at least 1.
        generator: of u, on the device of the images.
        step_size: of 255; by default 2.5 epsilon / steps, which reaches the edge from anywhere.

    Source:
        Madry et al. 2018, arXiv:1706.06083, section 2.1 and appendix.
    """
    step_size = 2.5 * epsilon / steps if step_size is None else step_size
    x = images.float()
    low, high = (x - epsilon).clamp(min=0), (x + epsilon).clamp(max=255)
    there = x + epsilon * torch.empty_like(x).uniform_(-1, 1, generator=generator)
    for _ in range(steps):
        there = there.clamp(low, high)
        there = there + step_size * uphill(loss, there).sign()
    return there.clamp(low, high)


def uphill(loss: Loss, images: Tensor) -> Tensor:
    """The gradient of the loss with respect to the images (B, C, H, W) float32. Weights get none."""
    x = images.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(loss(x), x)
    return gradient


CHANGES: dict[str, Callable[[Tensor, float, Loss, torch.Generator], Tensor]] = {
    "noise": lambda images, deviation, loss, generator: add_noise(images, deviation, generator),
    "blur": lambda images, radius, loss, generator: blur(images, radius),
    "brightness": lambda images, amount, loss, generator: brighten(images, amount),
    "fgsm": lambda images, epsilon, loss, generator: fgsm(loss, images, epsilon),
    "pgd": lambda images, epsilon, loss, generator: pgd(loss, images, epsilon, PGD_STEPS, generator),
}
"""All of them as functions of images, strength, the attacked loss and a generator."""
