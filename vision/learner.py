"""A classifier: a backbone, and one linear head for everything that a set of images is labelled with.

    classifier = load_classifier("runs/vision/cifar10/resnet/seed0-...")
    classifier(images)["label"]     (B, K) logits

In a run's checkpoint the group `policy` is the classifier: the tensors `backbone.*` and `heads.*`, and as JSON what
they are for: `image_shape` and `outputs`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium.spaces import Box
from torch import Tensor, nn

from contract import Donor, State
from faults import CheckpointError, ConfigError
from networks.backbones import CNN, Backbone, ImageBackbone, make_backbone
from networks.transfer import begin_backbone
from training import checkpoint
from training.config import typed
from training.process import warn
from training.run import Run
from vision.config import LearnConfig, TrainConfig
from vision.data import MISSING, Amounts, Classes, Head

Outputs = dict[str, Tensor]
"""For each head: (B, *shape, K) logits of `Classes`, (B, A) amounts in their unit."""


class Classifier(nn.Module):
    """Images (B, C, H, W), uint8 or float32 of the same range, -> the output of each head.

    A head with one label, or with amounts, is linear in the backbone's features. A head with a label for each cell of a
    grid over the image is linear in what the backbone's feature map shows in that cell, with the same weights for all
    cells. A feature vector may have lost the places (a ResNet's is a mean over them), and weights from every feature to
    every cell would outnumber the backbone's.
    """

    def __init__(self, backbone: Backbone, image_shape: Sequence[int], outputs: Mapping[str, Head]) -> None:
        """Adds a head for each of `outputs`.

        Args:
            backbone: images -> features.
            image_shape: channels, height and width of the images.
            outputs: what the heads say, by name.

        Raises:
            ConfigError: if cells have labels and the backbone has no feature map, or a coarser one.
        """
        super().__init__()
        self.backbone = backbone
        self.image_shape, self.outputs = tuple(image_shape), dict(outputs)
        self._reads_map = any(isinstance(head, Classes) and head.shape for head in self.outputs.values())
        self.heads = nn.ModuleDict()
        for name, head in self.outputs.items():
            if isinstance(head, Classes) and head.shape:
                self.heads[name] = CellHead(map_shape(backbone, self.image_shape), head)
            else:
                self.heads[name] = nn.Linear(backbone.out_dim, head.num_outputs)

    def forward(self, images: Tensor) -> Outputs:
        features, feature_map = see(self.backbone, images) if self._reads_map else (self.backbone(images), None)
        answers = {}
        for name, head in self.outputs.items():
            layer = self.heads[name]
            answer = layer(feature_map if isinstance(layer, CellHead) else features).float()
            answers[name] = answer * head.scale if isinstance(head, Amounts) else answer
        return answers


class CellHead(nn.Module):
    """A class for each cell: feature map (B, C, h, w) -> logits (B, rows, columns, K)."""

    down: Tensor
    across: Tensor

    def __init__(self, map_shape: Sequence[int], head: Classes) -> None:
        super().__init__()
        channels, height, width = map_shape
        rows, columns = head.shape
        if height < rows or width < columns:
            raise ConfigError(
                f"the backbone's feature map of {height}x{width} places is coarser than the {rows}x{columns} cells "
                "that have labels; use another backbone, or larger images"
            )
        self.register_buffer("down", cell_means(height, rows), persistent=False)
        self.register_buffer("across", cell_means(width, columns), persistent=False)
        self.linear = nn.Linear(channels, len(head.names))

    def forward(self, feature_map: Tensor) -> Tensor:
        cells = torch.einsum("rh,bchw,sw->brsc", self.down, feature_map, self.across)
        logits: Tensor = self.linear(cells)
        return logits


def cell_means(size: int, cells: int) -> Tensor:
    """Weights (cells, size) with which `cells` equal parts of a line of `size` points average over what they cover."""
    edges = torch.linspace(0, size, cells + 1, dtype=torch.float64)
    point = torch.arange(size, dtype=torch.float64)
    covered = (torch.minimum(edges[1:, None], point + 1) - torch.maximum(edges[:-1, None], point)).clamp(min=0)
    return (covered * cells / size).float()


def see(backbone: Backbone, images: Tensor) -> tuple[Tensor, Tensor]:
    """Features (B, out_dim) and feature map (B, channels, height, width) of images."""
    assert isinstance(backbone, ImageBackbone)
    feature_map = backbone.feature_map(images)
    return backbone.read(feature_map), feature_map


def map_shape(backbone: Backbone, image_shape: Sequence[int]) -> tuple[int, ...]:
    """Channels, height and width of a backbone's feature map.

    Raises:
        ConfigError: if it has none.
    """
    if not isinstance(backbone, ImageBackbone):
        raise ConfigError("an mlp has no feature map, in which places could be told apart; set backbone to a CNN")
    with torch.no_grad():
        shape = backbone.feature_map(torch.zeros(1, *image_shape, dtype=torch.uint8)).shape
    return tuple(shape[1:])


def make_image_backbone(config: LearnConfig, image_shape: Sequence[int], seed: int) -> Backbone:
    """The backbone that a configuration describes; its weights are a function of `seed` alone.

    Raises:
        ConfigError: if the backbone cannot read images of this shape.
    """
    space = Box(0, 255, tuple(image_shape), np.uint8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make_backbone(config.backbone, space, config.hidden_sizes, config.center_pixels)


def begin(backbone: Backbone, config: LearnConfig, images: Tensor, donor: Donor | None, freeze: bool) -> None:
    """Gives a backbone what it begins with: a donor's weights, or the mean image if it is to subtract one.

    Args:
        backbone: freshly built.
        config: the keys.
        images: (M, C, H, W) uint8 to learn from.
        donor: whose backbone to begin with, if any.
        freeze: whether the weights are to stay as they are.

    Raises:
        ConfigError: if the donor's backbone does not fit.
    """
    begin_backbone(backbone, config.backbone, donor, freeze, "backbone_init")
    if config.center_pixels and donor is None:
        assert isinstance(backbone, CNN)
        backbone.center(mean_image(images))


def mean_image(images: Tensor) -> Tensor:
    """(M, C, H, W) uint8 -> (C, H, W) float32."""
    total = torch.stack([part.sum(dim=0, dtype=torch.int64) for part in torch.split(images, 1024)]).sum(dim=0)
    return total.float() / len(images)


def make_classifier(
    config: LearnConfig, image_shape: Sequence[int], outputs: Mapping[str, Head], seed: int
) -> Classifier:
    """Builds backbone and heads; their first weights are a function of `seed` alone.

    Args:
        config: the keys.
        image_shape: channels, height and width of the images.
        outputs: what the heads say, by name.
        seed: of the weights.

    Raises:
        ConfigError: if the backbone cannot read images of this shape.
    """
    backbone = make_image_backbone(config, image_shape, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        return Classifier(backbone, image_shape, outputs)


def classifier_state(classifier: Classifier) -> State:
    """The group `policy` of a checkpoint."""
    outputs = {name: asdict(head) for name, head in classifier.outputs.items()}
    return {**classifier.state_dict(), "image_shape": list(classifier.image_shape), "outputs": outputs}


def load_classifier(
    run: str | Path, which: str = "latest", device: torch.device | str = "cpu"
) -> tuple[Classifier, int]:
    """Builds the classifier of a run, in evaluation mode. A pretrained one has no heads.

    Args:
        run: the run folder.
        which: latest, best, or a number of updates.
        device: where to.

    Returns:
        The classifier, and the updates that it has learned from.

    Raises:
        CheckpointError: if the run is none of `vision`, or has no such checkpoint that is whole.
    """
    folder = Run(Path(run))
    config = load_config(folder)
    state, path = load_policy(folder, which)
    try:
        image_shape = [int(size) for size in state.pop("image_shape")]
        outputs = {str(name): _head(about) for name, about in state.pop("outputs").items()}
        classifier = make_classifier(config, image_shape, outputs, seed=0)
        classifier.load_state_dict(state)
    except (AttributeError, ConfigError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} does not fit {folder.path}'s configuration: {reason}") from None
    return classifier.to(device).eval(), checkpoint.env_steps_of(path)


def load_config(run: Run) -> LearnConfig:
    """The configuration of a run of `vision.train` or `vision.pretrain`.

    Raises:
        CheckpointError: if it is none of these.
    """
    plain = run.plain()
    try:
        if not isinstance(plain.get("data"), dict):
            raise ConfigError("it trains an agent, not a classifier (python evaluate.py evaluates it)")
        known = {key: value for key, value in plain.items() if key in TrainConfig.__dataclass_fields__}
        return typed(TrainConfig, known)
    except ConfigError as error:
        raise CheckpointError(f"{run.path / 'config.yaml'}: {error}") from None


def load_policy(run: Run, which: str) -> tuple[State, Path]:
    """The group `policy` of the chosen checkpoint, and its path. Damaged ones among several are passed over with a
    warning."""
    root = run.checkpoints
    steps, best = checkpoint.checkpoints(root), checkpoint.checkpoints(root, "best")
    if which in ("latest", "best"):
        paths = best if which == "best" else steps or best
    else:
        paths = [path for path in (*steps, *best) if checkpoint.env_steps_of(path) == int(which)][:1]
    for path in paths:
        try:
            state, _ = checkpoint.load(path, groups=("policy",))
            return state["policy"], path
        except CheckpointError as error:
            if path is paths[-1]:
                raise
            warn(f"warning: {error}; trying the one before")
    raise CheckpointError(f"{run.path} has no checkpoint '{which}' yet")


def _head(about: dict[str, Any]) -> Head:
    """What `dataclasses.asdict` wrote, as JSON keeps it."""
    names = tuple(str(name) for name in about["names"])
    if "scale" in about:
        return Amounts(names, str(about["unit"]), float(about["scale"]))
    return Classes(names, tuple(int(size) for size in about["shape"]))


# --- losses -------------------------------------------------------------------------------------------------------


def class_loss(logits: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy over all labels that are there; 0 if none is.

    Equation:
        -sum_k q_k log softmax(logits)_k,  q_k = (1 - smoothing) [k = target] + smoothing / K

    Args:
        logits: (B, ..., K).
        target: (B, ...) int64, `MISSING` where there is no label.
        smoothing: in [0, 1].

    Source:
        Szegedy et al. 2016, arXiv:1512.00567, section 7 (smoothing).
    """
    flat, labels = logits.flatten(0, -2), target.flatten()
    total = F.cross_entropy(flat, labels, ignore_index=MISSING, label_smoothing=smoothing, reduction="sum")
    return total / (labels != MISSING).sum().clamp(min=1)


def amount_loss(predicted: Tensor, target: Tensor, scale: float, delta: float | None = None) -> Tensor:
    """Mean error of all amounts that have a label; 0 if none has.

    Equation:
        e = (predicted - target) / scale
        e^2 / 2, or with delta Huber's, divided by delta: e^2 / (2 delta) where |e| < delta, else |e| - delta / 2

    Args:
        predicted: (B, A) in the head's unit.
        target: (B, A), NaN where there is no label.
        scale: a typical size, in the same unit.
        delta: where errors begin to count linearly, None for never.

    Source:
        Huber 1964, Annals of Mathematical Statistics 35(1).
    """
    labelled = ~target.isnan()
    error = torch.where(labelled, predicted - target.nan_to_num(), 0.0) / scale
    each = (
        error.square() / 2
        if delta is None
        else F.smooth_l1_loss(error, torch.zeros_like(error), reduction="none", beta=delta)
    )
    return each.sum() / labelled.sum().clamp(min=1)


def losses(
    outputs: Outputs,
    targets: Mapping[str, Tensor],
    heads: Mapping[str, Head],
    smoothing: float = 0.0,
    delta: float | None = None,
) -> dict[str, Tensor]:
    """The loss of each head, (); what is minimised is their sum. See `class_loss` and `amount_loss`."""
    return {
        name: class_loss(outputs[name], targets[name], smoothing)
        if isinstance(head, Classes)
        else amount_loss(outputs[name], targets[name], head.scale, delta)
        for name, head in heads.items()
    }


# --- predicting ---------------------------------------------------------------------------------------------------


def predict(classifier: Classifier, images: Tensor, batch_size: int = 256) -> Outputs:
    """The outputs of every image, on the CPU.

    Args:
        classifier: wherever it is.
        images: (M, C, H, W), wherever they are.
        batch_size: how many at a time.
    """
    device = next(classifier.parameters()).device
    with torch.inference_mode():
        parts = [classifier(batch.to(device)) for batch in torch.split(images, batch_size)]
    return {name: torch.cat([part[name].cpu() for part in parts]) for name in classifier.outputs}
