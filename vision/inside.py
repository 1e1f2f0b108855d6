"""What a classifier looks at: for some images and every head, a saliency map over the picture.

The score of a head that names a class is the logarithm of the probability of the class it names; that of a head that
states amounts is their sum. Heads with a class for every cell of a grid say themselves where they look.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from training.explain import overlay
from training.saliency import grad_cam, gradient, occlusion
from vision.data import MISSING, Amounts, Classes, ImageData
from vision.learner import Classifier
from vision.pictures import RIGHT, WRONG

PATCHES = 16
"""Patches of an occlusion side by side, each as wide as two strides."""


def explained_heads(classifier: Classifier) -> list[str]:
    """The heads that are explained: all but those with a class for every cell."""
    return [name for name, head in classifier.outputs.items() if isinstance(head, Amounts) or not head.shape]


def saliency(classifier: Classifier, name: str, images: Tensor, method: str, cover: Tensor) -> Tensor:
    """Saliency of one head.

    Args:
        classifier: in evaluation mode.
        name: of the head, one of `explained_heads`.
        images: (M, C, H, W) uint8.
        method: gradient, grad_cam or occlusion.
        cover: (C, H, W): what an occlusion covers with.

    Returns:
        (M, H, W) float32, not negative.
    """
    head, layer = classifier.outputs[name], classifier.heads[name]
    stride = max(1, min(images.shape[-2:]) // PATCHES)
    maps = []
    for image in images.unsqueeze(1):  # each as a batch of its own
        with torch.no_grad():
            said = int(layer(classifier.backbone(image)).argmax())

        def score(x: Tensor, said: int = said) -> Tensor:
            found: Tensor = layer(classifier.backbone(x))
            return found.sum(1) if isinstance(head, Amounts) else found.log_softmax(1)[:, said]

        if method == "gradient":
            maps.append(gradient(score, image))
        elif method == "grad_cam":
            maps.append(grad_cam(classifier.backbone, score, image))
        else:
            maps.append(occlusion(score, image, cover, 2 * stride, stride).abs())
    return torch.cat(maps)


def draw_saliency(classifier: Classifier, data: ImageData, method: str, count: int, path: Path) -> None:
    """Draws a picture: a row for each image; first the image, then each head's map over it and what the head says.

    The images are spread evenly over the set. Each map is scaled by itself.

    Args:
        classifier: in evaluation mode, on the CPU.
        data: the set.
        method: gradient, grad_cam or occlusion.
        count: how many images.
        path: of the PNG file.
    """
    some = data.take(data.evenly(count))
    cover = data.images.float().mean(0)
    names = explained_heads(classifier)
    maps = {name: saliency(classifier, name, some.images, method, cover).numpy() for name in names}
    with torch.no_grad():
        outputs = classifier(some.images)
    figure = Figure(figsize=(2.2 * (1 + len(names)), 2.35 * len(some)), layout="constrained")
    for k, row in enumerate(figure.subplots(len(some), 1 + len(names), squeeze=False)):
        picture = as_picture(some.images[k])
        row[0].imshow(picture)
        for axes, name in zip(row[1:], names, strict=True):
            heat = maps[name][k]
            axes.imshow(overlay(picture, np.clip(heat / (np.quantile(heat, 0.998) or 1.0), 0, 1)))
            text, colour = said_of(classifier.outputs[name], outputs[name][k], some.targets[name][k])
            axes.set_title(f"{name}: {text}", fontsize=8, color=colour)
        for axes in row:
            axes.set_axis_off()
    FigureCanvasAgg(figure).print_figure(str(path), dpi=110)


def as_picture(image: Tensor) -> NDArray[np.uint8]:
    """(C, H, W) uint8 -> (H, W, 3): the colours, or of stacked frames the newest."""
    return (image if len(image) == 3 else image[-1:].expand(3, -1, -1)).permute(1, 2, 0).numpy()


def said_of(head: Classes | Amounts, output: Tensor, target: Tensor) -> tuple[str, str]:
    """What a head says of one image, what is true if that is something else, and the colour to write it in."""
    if isinstance(head, Amounts):
        return " ".join(f"{value:.1f}" for value in output.tolist()), "black"
    said, true = int(output.argmax()), int(target)
    if said == true or true == MISSING:
        return head.names[said], RIGHT
    return f"{head.names[said]} ({head.names[true]})", WRONG
