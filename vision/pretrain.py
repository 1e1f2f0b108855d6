"""Trains a backbone on the images of a film, without their labels.

    python -m vision.pretrain data=atari_ram
    python -m vision.train data=atari_ram backbone_init=<its run> backbone_freeze=true        # what it sees
    python train.py env=ALE/Pong-v5 agent.backbone_init=<its run>                             # what that is good for

How it learns stands in vision/contrastive.py, every key in configs/vision/pretrain.yaml. Exit codes are listed in
faults.py.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from training.process import report
from vision.command import Command, run_command
from vision.config import PretrainConfig

if TYPE_CHECKING:
    import torch

    from contract import Donor
    from vision.contrastive import Contrastive
    from vision.data import ImageData


def main(arguments: Sequence[str]) -> int:
    then = "see what it sees with: python -m vision.train backbone_freeze=true backbone_init="
    return run_command(Command("pretrain", PretrainConfig, build, then), arguments)


def build(config: PretrainConfig, parts: list[ImageData], device: torch.device, donor: Donor | None) -> Contrastive:
    """What learns: a backbone, and what tells whether two images are partners."""
    import torch

    from contract import Streams
    from vision.contrastive import Contrastive, SpatioTemporal
    from vision.learner import begin, make_image_backbone

    train, validation, _ = parts
    shape, seed = tuple(train.images.shape[1:]), Streams(config.seed).seed("network")
    backbone = make_image_backbone(config, shape, seed)
    begin(backbone, config, train.images, donor, freeze=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        net = SpatioTemporal(backbone, shape)
    return Contrastive(net, train, validation, config, device)


if __name__ == "__main__":
    sys.exit(report(lambda: main(sys.argv[1:]), debug="debug=true" in sys.argv[1:]))
