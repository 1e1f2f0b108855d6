"""What `vision.train` and `vision.pretrain` have in common from the command line to the exit code."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from faults import CheckpointError, ConfigError
from training.config import parse_overrides, typed
from training.process import prepare, say, warn
from training.run import Run, create_folder, find_run
from vision.config import VISION_DIR, LearnConfig, compose_config

if TYPE_CHECKING:
    import torch

    from contract import Donor
    from vision.data import ImageData, Source
    from vision.loop import Learner

C = TypeVar("C", bound=LearnConfig)

MAY_CHANGE_ON_RESUME = ("checkpoint", "log", "validate_every_epochs")


@dataclass(frozen=True)
class Command(Generic[C]):
    """What distinguishes the two."""

    name: str
    """train or pretrain."""
    config_class: type[C]
    """Of its keys."""
    build: Callable[[C, list[ImageData], torch.device, Donor | None], Learner]
    """Keys; images for training, validation and test; device; whose backbone to begin with -> what learns."""
    then: str
    """What to do with a finished run; its folder comes next."""


def run_command(command: Command[C], arguments: Sequence[str]) -> int:
    """One run, new or resumed; returns the exit code."""
    flags = [argument for argument in arguments if argument.startswith("-")]
    if flags:
        if not set(flags) & {"-h", "--help"}:
            raise ConfigError(f"cannot read '{flags[0]}': write key=value, e.g. data=cifar10 epochs=10")
        say((VISION_DIR / f"{command.name}.yaml").read_text().rstrip())
        return 0
    plain = compose_config(command.name, arguments)
    run = None
    if plain["resume"] is not None:
        run = find_run(str(plain["resume"]), str(plain["run_dir"]), f"python -m vision.{command.name}")
        plain = _resumed(command.name, run, plain, arguments)
    config = typed(command.config_class, plain)
    source = make_source(config)
    prepare(config.torch_threads)
    return _train(command, plain, config, source, run)  # from here on imports take a second or two


def make_source(config: LearnConfig) -> Source:
    """Where the images come from, its options checked.

    Raises:
        ConfigError: for an unknown set or option, or a value out of range.
    """
    from vision.data import source_class

    options = {key: value for key, value in config.data.items() if key != "source"}
    return typed(source_class(config.data["source"]), options, "data")


def load_parts(config: LearnConfig, source: Source) -> list[ImageData]:
    """The images for training, validation and test."""
    from vision.data import split

    return split(source.load(config.data_seed), config.split, config.data_seed)


def _resumed(name: str, run: Run, plain: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The configuration that `run` was started with, and what a resume may change in it."""
    from omegaconf import OmegaConf

    if run.plain().keys() != plain.keys():
        raise CheckpointError(f"{short(run.path)} is no run of python -m vision.{name}")
    saved: Any = OmegaConf.create(run.plain())
    for override in parse_overrides(overrides):
        key = override.key_or_group
        if key.partition(".")[0] in MAY_CHANGE_ON_RESUME:
            OmegaConf.update(saved, key, override.value(), merge=True, force_add=True)
        elif key not in ("resume", "run_dir", "debug"):
            raise ConfigError(
                f"'{key}' is fixed once a run has begun; on a resume only {', '.join(MAY_CHANGE_ON_RESUME)} may change"
            )
    resumed: Any = OmegaConf.to_container(saved)
    assert isinstance(resumed, dict)
    return resumed | {"resume": str(run.path), "debug": plain["debug"]}


def _train(command: Command[C], plain: dict[str, Any], config: C, source: Source, run: Run | None) -> int:
    import torch

    from networks.backbones import cost
    from training.loop import StopSignal, finished_env_steps
    from training.process import choose_device
    from training.transfer import find_donor, keep_donor
    from vision.loop import count_updates, fit

    device = choose_device(config.device)
    config = replace(config, device=str(device))
    init, name = config.backbone_init, config.data["source"]
    donor = None if init is None else find_donor(init, config.run_dir, run, "backbone_init")
    say(f"images: {name}")
    parts = load_parts(config, source)
    learner = command.build(config, parts, device, donor)
    _, total = count_updates(learner.num_images, config)
    if run is not None and (updates := finished_env_steps(run, total)):
        say(f"{short(run.path)} is finished: {updates:,} of {total:,} updates are done")
        return 0
    plain = plain | {"resume": None, "torch_threads": torch.get_num_threads(), "device": str(device)}
    verb, resume = ("training" if run is None else "resuming"), run is not None
    if run is None:
        run = create_folder(config.run_dir, name, config.backbone, plain)
    with StopSignal() as stop, run.lock():  # before, while images are made, a signal ends the process at once
        if resume:
            run.record_resume(plain)
        say(
            f"{verb} {config.backbone} on {' / '.join(f'{len(part):,}' for part in parts)} images "
            f"(training / validation / test), {total:,} updates, seed {config.seed}, {device}"
        )
        size = cost(learner.backbone, parts[0].images.shape[1:])
        say(
            f"{config.backbone}: {size.parameters:,} parameters, {size.multiply_adds / 1e6:,.1f} million multiply-adds "
            "for an image"
        )
        say(f"run folder: {short(run.path)}")
        if donor is not None:
            keep_donor(run, donor)
            say(f"backbone of {donor.origin}")
        updates = fit(learner, config, device, run, stop, resume)
    if stop:
        kept = "saved; continue" if updates else "nothing is saved; begin"
        warn(f"stopped at {updates:,} updates, {kept} with: python -m vision.{command.name} resume={short(run.path)}")
        return stop.exit_code
    say(f"done: {updates:,} updates; {command.then}{short(run.path)}")
    return 0


def short(path: Path) -> str:
    """A path as one would type it."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
