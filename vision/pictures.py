"""Pictures of what a classifier gets right and wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from vision.data import Classes, ImageData

NUMBERED_CLASSES = 20
"""Matrices of up to so many classes have their numbers written into them, and the names beside."""
COLUMNS = 6
RIGHT, WRONG = "#1a7f37", "#cf222e"


def confusion_figure(confusion: Tensor | Sequence[Sequence[int]], names: Sequence[str]) -> Figure:
    """The share of each true class (row) that is called by each name (column); counts are written into the cells.

    Args:
        confusion: (K, K) counts.
        names: K.
    """
    counts = np.asarray(confusion)
    of_class = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = 2.5 + 0.42 * min(len(names), NUMBERED_CLASSES)
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(of_class, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true")
    if len(names) <= NUMBERED_CLASSES:
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        for row, column in zip(*np.nonzero(counts), strict=True):
            ink = "white" if of_class[row, column] > 0.5 else "black"
            axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", fontsize=6, color=ink)
    return figure


def examples_figure(data: ImageData, outputs: Mapping[str, Tensor]) -> Figure:
    """Images with what was predicted of them, in green where every label is right and in red where one is wrong.

    Args:
        data: the images (M, C, H, W) and their labels.
        outputs: of a classifier, for at least these M images.
    """
    rows = -(-len(data) // COLUMNS)
    figure = Figure(figsize=(1.9 * COLUMNS, 2.3 * rows), layout="constrained")
    for k, axes in enumerate(figure.subplots(rows, COLUMNS, squeeze=False).ravel()):
        axes.set_axis_off()
        if k < len(data):
            image = data.images[k]
            shown = image.permute(1, 2, 0) if len(image) == 3 else image[-1]  # of stacked frames the newest
            axes.imshow(shown.numpy(), cmap="gray", vmin=0, vmax=255)
            text, right = _caption(data, outputs, k)
            axes.set_title(text, fontsize=7, color=RIGHT if right else WRONG)
    return figure


def _caption(data: ImageData, outputs: Mapping[str, Tensor], k: int) -> tuple[str, bool]:
    lines, right = [], True
    for name, head in data.heads.items():
        target, output = data.targets[name][k], outputs[name][k]
        if not isinstance(head, Classes):
            lines.append(" ".join(f"{value:.3g}" for value in output.tolist()))
        elif not head.shape:
            said = int(output.argmax())
            wrong = bool(target >= 0) and said != int(target)
            lines.append(f"{head.names[said]} ({head.names[int(target)]})" if wrong else head.names[said])
            right &= not wrong
        else:
            missed = int(((output.argmax(dim=-1) != target) & (target >= 0)).sum())
            lines.append(f"{name}: {missed} wrong")
            right &= not missed
    return "\n".join(lines), right


def confusion_picture(confusion: Tensor, names: Sequence[str]) -> NDArray[np.uint8]:
    """`confusion_figure` as (height, width, 3) pixels."""
    return _pixels(confusion_figure(confusion, names))


def examples_picture(data: ImageData, outputs: Mapping[str, Tensor]) -> NDArray[np.uint8]:
    """`examples_figure` as (height, width, 3) pixels."""
    return _pixels(examples_figure(data, outputs))


def draw_confusion(confusion: Tensor | Sequence[Sequence[int]], names: Sequence[str], path: Path) -> None:
    """Writes `confusion_figure` as a file; the suffix names the format."""
    confusion_figure(confusion, names).savefig(path, dpi=120)


def _pixels(figure: Figure) -> NDArray[np.uint8]:
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
