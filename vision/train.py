"""Trains a classifier, or perception heads, on labelled images.

    python -m vision.train backbone=resnet data=cifar10
    python -m vision.train data=atari_ram backbone=nips_cnn backbone_init=pretrained/pong backbone_freeze=true
    python -m vision.train resume=latest

Every key is explained in configs/vision/. Exit codes are listed in faults.py.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from training.process import report
from vision.command import Command, run_command
from vision.config import TrainConfig

if TYPE_CHECKING:
    import torch

    from contract import Donor
    from vision.data import ImageData
    from vision.supervised import Supervised


def main(arguments: Sequence[str]) -> int:
    then = "see how good it is with: python -m vision.evaluate run="
    return run_command(Command("train", TrainConfig, build, then), arguments)


def build(config: TrainConfig, parts: list[ImageData], device: torch.device, donor: Donor | None) -> Supervised:
    """What learns: a classifier with a head for everything that the images are labelled with."""
    from contract import Streams
    from vision.learner import begin, make_classifier
    from vision.supervised import Supervised

    train, validation, _ = parts
    seed = Streams(config.seed).seed("network")
    classifier = make_classifier(config, train.images.shape[1:], train.heads, seed)
    begin(classifier.backbone, config, train.images, donor, config.backbone_freeze)
    return Supervised(classifier, train, validation, config, device)


if __name__ == "__main__":
    sys.exit(report(lambda: main(sys.argv[1:]), debug="debug=true" in sys.argv[1:]))
