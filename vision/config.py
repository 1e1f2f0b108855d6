"""The keys of `vision.train` and `vision.pretrain`, and how they compose.

Defaults come from, later ones winning: `configs/vision/train.yaml`, `configs/vision/data/<data>.yaml`, the command
line; for pretraining from `configs/vision/data/<data>.yaml`, `configs/vision/pretrain.yaml`, the command line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from faults import ConfigError, check_choice, check_range, closest
from networks.backbones import BACKBONES
from networks.cnns import CNNS
from training.config import CONFIG_DIR, check_override, hydra_line, parse_overrides

VISION_DIR = CONFIG_DIR / "vision"
OPTIMIZERS = ("sgd", "adam", "adamw")
FILMS = ("atari_ram",)
"""Sets whose groups are films: their images follow each other."""
ATTACKS = ("none", "fgsm", "pgd")


@dataclass(frozen=True)
class CheckpointConfig:
    """`checkpoint.*`."""

    every_updates: int = 1_000
    """0 saves at the end only."""
    keep: int = 2
    """How many of the newest checkpoints stay on disk (the best one by validation stays as well)."""

    def __post_init__(self) -> None:
        check_range("checkpoint.every_updates", self.every_updates, 0, None)
        check_range("checkpoint.keep", self.keep, 1, 10_000)


@dataclass(frozen=True)
class LogConfig:
    """`log.*`."""

    every_updates: int = 50
    tensorboard: bool = True
    progress: bool = True
    """A live line, on a terminal only."""

    def __post_init__(self) -> None:
        check_range("log.every_updates", self.every_updates, 1, None)


@dataclass(frozen=True)
class AugmentConfig:
    """`augment.*`: random changes of every image each time that it is learned from (`vision.augment`)."""

    crop: int = 0
    """Black pixels around an image, of which one as large as before is cut out."""
    shift: int = 0
    """Pixels that an image is moved by in both directions, repeating its edge."""
    flip: bool = False
    """Mirrored, left to right, every other time."""
    colour: float = 0.0
    """Brightness, contrast and saturation times a factor from 1 - colour to 1 + colour."""

    def __post_init__(self) -> None:
        check_range("augment.crop", self.crop, 0, 1024)
        check_range("augment.shift", self.shift, 0, 1024)
        check_range("augment.colour", self.colour, 0, 1)

    @property
    def moves(self) -> bool:
        """Whether things are elsewhere afterwards."""
        return bool(self.crop or self.shift or self.flip)


@dataclass(frozen=True)
class LearnConfig:
    """What both ways to train a backbone have in common."""

    data: dict[str, Any]
    """`source`, a name in `vision.data.SOURCES`, and the options of its dataclass."""
    data_seed: int = 0
    """Of generated images and of the split. Runs with different `seed` see the same images."""
    split: list[float] = field(default_factory=lambda: [0.8, 0.1, 0.1])
    """What part of the groups (episodes, cities, images) is for training, validation and test."""
    backbone: str = "resnet"
    """One of `networks.backbones.BACKBONES`."""
    backbone_init: str | None = None
    """A run folder, or latest: begin with the weights of its backbone, be it a classifier's or an agent's."""
    center_pixels: bool = False
    """Subtract the mean image of the training set (or that of `backbone_init`) from every image."""
    hidden_sizes: list[int] = field(default_factory=lambda: [256, 256])
    """Layer widths of an mlp."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    epochs: int = 20
    batch_size: int = 128
    optimizer: str = "adam"
    """sgd (with Nesterov momentum), adam, adamw (decoupled weight decay)."""
    learning_rate: float = 1e-3
    """At its highest: it rises linearly over `warmup_epochs`, then falls along a half cosine to 0."""
    warmup_epochs: float = 0.0
    momentum: float = 0.9
    """Of sgd."""
    weight_decay: float = 0.0
    bfloat16: bool = False
    """Mixed precision: compute in bfloat16, keep weights, losses and optimiser in float32. For GPUs."""
    seed: int = 0
    device: str = "auto"
    """auto, cpu, cuda, cuda:<index>."""
    torch_threads: int = 0
    """Threads of one tensor operation; 0 means one per core."""
    run_dir: str = "runs/vision"
    """Parent of the run's own folder."""
    resume: str | None = None
    """A run folder, or latest."""
    debug: bool = False
    """Show tracebacks."""
    validate_every_epochs: int = 1
    """0 never validates."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        check_range("data_seed", self.data_seed, 0, 2**31 - 1)
        if len(self.split) != 3:
            raise ConfigError("split has three parts: training, validation and test, e.g. split=[0.8,0.1,0.1]")
        check_fractions(self.split)
        check_choice("backbone", self.backbone, BACKBONES)
        if self.center_pixels and self.backbone not in (*CNNS, "auto"):
            raise ConfigError(
                f"center_pixels is known to {', '.join(CNNS)}, not to {self.backbone}: set center_pixels=false"
            )
        for size in self.hidden_sizes:
            check_range("hidden_sizes", size, 1, 1_000_000)
        check_range("epochs", self.epochs, 1, 1_000_000)
        check_range("batch_size", self.batch_size, 1, 1_000_000)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_range("learning_rate", self.learning_rate, 0, None, open_low=True)
        check_range("warmup_epochs", self.warmup_epochs, 0, self.epochs)
        check_range("momentum", self.momentum, 0, 1)
        check_range("weight_decay", self.weight_decay, 0, None)
        check_range("seed", self.seed, 0, 2**31 - 1)
        check_range("torch_threads", self.torch_threads, 0, 1024)
        check_range("validate_every_epochs", self.validate_every_epochs, 0, None)
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ConfigError(f"device must be auto, cpu, cuda or cuda:<index>, got '{self.device}'")
        if not self.run_dir.strip() or "\0" in self.run_dir or "\n" in self.run_dir:
            raise ConfigError("run_dir must name a folder")
        if not isinstance(self.data.get("source"), str):
            raise ConfigError("data.source must name a set of images")


@dataclass(frozen=True)
class TrainConfig(LearnConfig):
    """The keys of `vision.train`."""

    backbone_freeze: bool = False
    """Never change the backbone: only the linear heads learn, which makes them a linear probe of it."""
    label_smoothing: float = 0.0
    """Part of each label that is spread over all classes (Szegedy et al. 2016, arXiv:1512.00567, section 7)."""
    huber_delta: float | None = 0.05
    """Errors of amounts beyond this, in units of the head's scale, count linearly; null: all count squared."""
    adversary: str = "none"
    """none, fgsm, pgd: learn from images that an attack has changed (Madry et al. 2018, arXiv:1706.06083)."""
    adversary_epsilon: float = 8.0
    """How far each pixel may be changed, of 255."""
    adversary_steps: int = 7
    """Of pgd."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("label_smoothing", self.label_smoothing, 0, 1)
        if self.huber_delta is not None:
            check_range("huber_delta", self.huber_delta, 0, None, open_low=True)
        check_choice("adversary", self.adversary, ATTACKS)
        check_range("adversary_epsilon", self.adversary_epsilon, 0, 255)
        check_range("adversary_steps", self.adversary_steps, 1, 10_000)


@dataclass(frozen=True)
class PretrainConfig(LearnConfig):
    """The keys of `vision.pretrain`."""

    distance: int = 1
    """The partner of an image comes so many images later. 0: it is the image itself, augmented anew."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("distance", self.distance, 0, 1_000_000)
        if self.distance and self.data["source"] not in FILMS:
            raise ConfigError(
                f"the images of {self.data['source']} are no film: set distance=0, or data={' or '.join(FILMS)}"
            )
        if not self.distance and not (self.augment.moves or self.augment.colour):
            raise ConfigError("with distance=0 an image and its partner are the same: set some augment.<key>")


def check_fractions(fractions: Sequence[float]) -> None:
    """Refuses what is no division of a whole.

    Raises:
        ConfigError: if a part is not in (0, 1], or the parts do not add up to 1.
    """
    for fraction in fractions:
        check_range("data split", fraction, 0, 1, open_low=True)
    if abs(sum(fractions) - 1) > 1e-6:
        raise ConfigError(f"the parts of a data split must add up to 1, not {sum(fractions):g}")


def compose_config(command: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Composes the plain configuration of one run.

    Args:
        command: train or pretrain.
        overrides: what stands on the command line, e.g. `["data=cifar10", "backbone=resnet"]`.

    Raises:
        ConfigError: one line, with the closest known name where something is unknown.
    """
    known = {path.stem: path for path in (VISION_DIR / "data").glob("*.yaml")}

    def known_keys() -> Iterable[str]:
        keys = set()
        for path in (VISION_DIR / f"{command}.yaml", *known.values()):
            for key, value in _load(path).items():
                keys |= {key} | ({f"{key}.{inner}" for inner in value} if isinstance(value, dict) else set())
        return keys - {"defaults"}

    for override in parse_overrides(overrides):
        check_override(override, False, known_keys)
        choice = override.value()
        if override.key_or_group == "data" and not (isinstance(choice, str) and choice in known):
            raise ConfigError(f"unknown data '{choice}'.{closest(str(choice), known)}")
    with initialize_config_dir(str(VISION_DIR), version_base="1.3"):
        try:
            plain = OmegaConf.to_container(compose(command, overrides=list(overrides)), resolve=True)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(hydra_line(error, known_keys)) from None
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _load(path: Any) -> dict[str, Any]:
    found = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}
