"""What a backbone knows of Pong: linear readouts of its features predict where ball and paddles are.

    python -m benchmarks.probe                   # about ten minutes on one core

A readout is a ridge regression, solved exactly on the training games, its penalty chosen on the validation games; so a
figure speaks of the features, not of how long a head was trained. All is scored on games that no fit has seen. The
backbones, one network of nips_cnn's size on the same four frames:

    dqn          of the shipped policy, which learned from rewards alone
    supervised   trained on these labels, on the same training games
    contrastive  pretrained on the same training games without labels
    random       five draws of the first weights
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.record import write_result
from training.config import typed
from training.run import find_run
from training.transfer import find_donor
from vision.command import load_parts, make_source
from vision.config import TrainConfig, compose_config
from vision.data import ImageData
from vision.learner import begin, make_image_backbone
from vision.measures import mean_absolute_error, share_all_within

ROOT = Path(__file__).resolve().parent.parent
GAMES = [
    "data=atari_ram", "data.num_images=8000", "split=[0.5,0.1,0.4]", "backbone=nips_cnn", "center_pixels=true",
]  # fmt: skip
LEARN = ["epochs=20", "device=cpu", "torch_threads=1", "log.tensorboard=false", "checkpoint.every_updates=0"]
PENALTIES = [10.0**k for k in range(-5, 3)]
"""Of standardised features, in units of their number of cases."""
WITHIN_PIXELS = 2.0


def ridge(x: Tensor, y: Tensor, penalty: float) -> Tensor:
    """Weights (D, A) that minimise mean (y - x w)^2 + penalty * |w|^2, each column of `y` (M, A) over its known
    rows."""
    columns = []
    for column in y.T:
        known = ~column.isnan()
        rows = x[known]
        gram = rows.T @ rows / len(rows) + penalty * torch.eye(x.shape[1], dtype=x.dtype)
        columns.append(torch.linalg.solve(gram, rows.T @ column[known] / len(rows)))
    return torch.stack(columns, dim=1)


def probe(backbone: torch.nn.Module, train: ImageData, validation: ImageData, test: ImageData) -> dict[str, Any]:
    """Fits readouts of the positions and scores them."""

    @torch.no_grad()
    def features(data: ImageData) -> Tensor:
        return torch.cat([backbone(images) for images in torch.split(data.images, 256)]).double()

    def position(data: ImageData) -> Tensor:
        return data.targets["position"].double()

    fit = features(train)
    mean, std = fit.mean(0), fit.std(0).clamp(min=1e-9)
    centre = position(train).nanmean(0)

    def standard(x: Tensor) -> Tensor:
        return (x - mean) / std

    fits = [ridge(standard(fit), position(train) - centre, penalty) for penalty in PENALTIES]
    seen = standard(features(validation))
    errors = [mean_absolute_error(seen @ weights + centre, position(validation)) for weights in fits]
    best = errors.index(min(errors))
    predicted = standard(features(test)) @ fits[best] + centre
    within = share_all_within(predicted, position(test), WITHIN_PIXELS, test.group)
    return {
        "mean_error_pixels": mean_absolute_error(predicted, position(test)),
        "within_2_pixels": {"value": within.value, "ci95": [within.low, within.high], "cases": within.cases},
        "penalty": PENALTIES[best],
    }


def learned(module: str, folder: str) -> str:
    """The run folder of a training command."""
    command = [sys.executable, "-m", module, *GAMES, *LEARN, f"run_dir={folder}"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return str(find_run("latest", folder).path)


def main() -> None:
    torch.set_num_threads(1)
    config = typed(TrainConfig, compose_config("train", GAMES))
    train, validation, test = load_parts(config, make_source(config))

    def measure(name: str, seed: int, donor: str | None) -> dict[str, Any]:
        backbone = make_image_backbone(config, train.images.shape[1:], seed)
        begin(backbone, config, train.images, None if donor is None else find_donor(donor, "", None), freeze=True)
        found = probe(backbone.eval(), train, validation, test)
        print(f"{name}: {json.dumps(found)}", flush=True)
        return found

    with tempfile.TemporaryDirectory() as folder:
        probes = {"dqn": [measure("dqn", 0, str(ROOT / "pretrained/pong"))]}
        probes["random"] = [measure("random", seed, None) for seed in range(5)]
        for name, module in (("supervised", "vision.train"), ("contrastive", "vision.pretrain")):
            probes[name] = [measure(name, 0, learned(module, f"{folder}/{name}"))]
    centre = train.targets["position"].nanmedian(0).values
    constant = mean_absolute_error(centre.expand(len(test), -1), test.targets["position"])
    games = [len(torch.unique(part.group)) for part in (train, validation, test)]
    write_result("probe", {"games": games, "constant_error_pixels": constant, "probes": probes})


if __name__ == "__main__":
    main()
