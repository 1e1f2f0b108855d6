"""Classifiers as ONNX files.

classifier.onnx        `images` (batch, C, H, W) uint8 -> one output for each head, as `Classifier` gives it
classifier.json        the heads, and how the file was checked
classifier_int8.onnx   the same with weights of eight bits
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from training.export import Agreement, compare, in_float32, write_checked, write_onnx
from vision.data import Amounts, ImageData
from vision.learner import Classifier, Outputs


class InOrder(nn.Module):
    """The outputs of a classifier one by one: ONNX knows no dicts."""

    def __init__(self, classifier: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.classifier, self.names = classifier, names

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs = self.classifier(images)
        return tuple(outputs[name] for name in self.names)


def export_classifier(
    classifier: Classifier, outputs: Outputs, data: ImageData, folder: Path
) -> tuple[Path, dict[str, Agreement]]:
    """Writes `classifier.onnx` and checks it.

    Args:
        classifier: in evaluation mode, on the CPU.
        outputs: what it says of the images.
        data: the images.
        folder: where to.

    Returns:
        The file, and for each head how far it is from torch; a row is one label, be it of an image or of a cell.

    Raises:
        Fault: if the file does not say what torch says; it is removed then.
    """
    path, names = folder / "classifier.onnx", list(classifier.outputs)
    found: dict[str, Agreement] = {}

    def check(session: Any) -> Agreement:
        said = run(session, data.images, names)
        for name in names:
            rows = [answer[name].reshape(-1, answer[name].shape[-1]).numpy() for answer in (outputs, said)]
            found[name] = compare([(rows[0], rows[1])])
        return max(found.values(), key=lambda head: (head.other_choice, head.largest_difference / head.tolerance))

    example = {"images": data.images[:2].numpy()}
    write_checked(path, lambda: write_onnx(InOrder(in_float32(classifier), names), example, names, path), check)
    return path, found


def run(session: Any, images: Tensor, names: list[str], batch_size: int = 256) -> Outputs:
    """What a file says of images (M, C, H, W), by head."""
    batches = [session.run(None, {"images": part.numpy()}) for part in torch.split(images, batch_size)]
    return {name: torch.from_numpy(np.concatenate(parts)) for name, *parts in zip(names, *batches, strict=True)}


def description(classifier: Classifier) -> dict[str, Any]:
    """What whoever runs the file must know, as JSON."""
    heads = {
        name: {"kind": "amounts" if isinstance(head, Amounts) else "classes", **asdict(head)}
        for name, head in classifier.outputs.items()
    }
    return {"images": {"shape": list(classifier.image_shape), "dtype": "uint8"}, "heads": heads}
