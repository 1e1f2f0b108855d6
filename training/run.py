"""The folder of a run: where everything that a run writes lies, and how a run is found again.

runs/<env-slug>/<agent>/seed<k>-<time>[-n]/
    config.yaml  command.txt  versions.json  metrics.jsonl  events.out.tfevents.*
    checkpoints/  eval/  videos/
    learners/<rank>/    what further learners (torchrun) keep of their own: checkpoints, metrics.jsonl
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import yaml

from faults import CheckpointError, ConfigError, StorageError, closest
from training.config import TrainConfig, typed

MAX_CONFIG_BYTES = 2**20
_RUN_NAME = re.compile(r"seed\d+-(\d{8}-\d{6})(?:-(\d+))?")
_PACKAGES = ("torch", "numpy", "gymnasium", "ale-py", "stable-baselines3", "tensorboard", "hydra-core", "safetensors")


@dataclass(frozen=True)
class Run:
    """An existing run folder."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def learners(self) -> int:
        """How many learners (torchrun) the run was begun with."""
        return 1 + len(list(self.path.glob("learners/*")))

    def of_learner(self, rank: int) -> Run:
        """Where one learner keeps its part of the run's state; number 0 has the run folder itself."""
        return Run(self.path / "learners" / str(rank)) if rank else self

    def plain(self) -> dict[str, Any]:
        """What stands in config.yaml, as plain data: nothing in it is resolved or instantiated.

        Raises:
            CheckpointError: if the file is missing, holds no keys, or asks for interpolation.
        """
        path = self.path / "config.yaml"
        try:
            with path.open("rb") as file:
                text = file.read(MAX_CONFIG_BYTES + 1)
            if len(text) > MAX_CONFIG_BYTES:
                raise ValueError("it is too large")
            config = yaml.load(text, _PlainLoader)
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise CheckpointError(f"cannot read {path}: {reason}") from None
        if not isinstance(config, dict):
            raise CheckpointError(f"{path} is not the configuration of a run")
        if any("${" in text for text in _strings(config)):
            raise CheckpointError(f"{path} holds an interpolation (${{...}}); saved configurations are plain data")
        return config

    def config(self) -> dict[str, Any]:
        """The configuration of an agent's run, checked.

        Raises:
            CheckpointError: as `plain`, and if it is not an agent's, or asks for an import.
        """
        path, config = self.path / "config.yaml", self.plain()
        if not all(isinstance(config.get(key), dict) for key in ("agent", "env")):
            raise CheckpointError(f"{path} is not the configuration of a run of an agent")
        if ":" in str(config["env"].get("id", "")):
            raise CheckpointError(f"{path} names an environment that would import a module: {config['env']['id']!r}")
        try:
            return asdict(typed(TrainConfig, config))
        except ConfigError as error:
            raise CheckpointError(f"{path}: {error}") from None

    def record_resume(self, config: dict[str, Any]) -> None:
        """Notes the command line of a resume, and what it changed in the configuration.

        Raises:
            StorageError: if the folder cannot be written.
        """
        try:
            with (self.path / "command.txt").open("a") as file:
                file.write(shlex.join(["python", *sys.argv]) + "\n")
            if config != self.plain():
                _write_config(self.path, config)
        except OSError as error:
            raise StorageError(f"cannot write into {self.path}: {error.strerror}") from None

    def lock(self) -> IO[str]:
        """Takes the run for this process; the lock ends with it.

        Raises:
            ConfigError: if another process trains in this folder.
        """
        try:
            file = (self.path / "lock").open("a+")
        except OSError as error:
            raise StorageError(f"cannot write into {self.path}: {error.strerror}") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise ConfigError(f"{self.path} is in use by {file.read().strip() or 'another process'}") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        return file


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases, which make a small file expand without bounds."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has aliases; saved configurations are plain data")
        return super().compose_node(parent, index)


def _strings(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield str(key)
            yield from _strings(value)
    elif isinstance(node, list):
        for value in node:
            yield from _strings(value)
    elif isinstance(node, str):
        yield node


def create_run(parent: str, config: dict[str, Any], agent_name: str, learners: int = 1) -> Run:
    """Makes the folder of an agent's run, in which so many processes will keep state; see `create_folder`."""
    return create_folder(parent, config["env"]["id"], agent_name, config, learners)


def create_folder(parent: str, subject: str, learner: str, config: dict[str, Any], learners: int = 1) -> Run:
    """Makes a new run folder and records the configuration, the command and the versions in it.

    Args:
        parent: the folder of all runs.
        subject: what is learned on: an environment or a data set.
        learner: what learns: an agent or a backbone.
        config: plain data, with a `seed`.
        learners: how many processes will keep state in it.

    Raises:
        StorageError: if the folder cannot be written.
    """
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", subject).strip("-")
    stem = f"seed{config['seed']}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = Path(parent).absolute() / slug / learner
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path, n = folder / stem, 1
        while True:
            try:
                path.mkdir()
                break
            except FileExistsError:
                n += 1
                path = folder / f"{stem}-{n}"
        for rank in range(learners):
            Run(path).of_learner(rank).checkpoints.mkdir(parents=True)
        (path / "command.txt").write_text(shlex.join(["python", *sys.argv]) + "\n")
        (path / "versions.json").write_text(json.dumps(versions(), indent=1) + "\n")
        _write_config(path, config)  # last: a folder that has it is a run
    except OSError as error:
        raise StorageError(f"cannot create a run folder in {folder}: {error.strerror}; set run_dir=<folder>") from None
    return Run(path)


def _write_config(folder: Path, config: dict[str, Any]) -> None:
    """Replaces config.yaml in one step, so that a kill leaves the old one or the new one."""
    staging = folder / ".config.yaml.tmp"
    staging.write_text(yaml.safe_dump(config, sort_keys=False))
    staging.replace(folder / "config.yaml")


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    root = Path(__file__).resolve().parent.parent
    for key, command in {"commit": ["rev-parse", "HEAD"], "changed_files": ["status", "--porcelain", "-uno"]}.items():
        answer = subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True, check=False)
        if answer.returncode == 0:
            found[key] = answer.stdout.strip()
    return found


def find_run(which: str, parent: str = "runs", trainer: str = "python train.py") -> Run:
    """The run folder that `which` names: a path, or `latest` under `parent`.

    Args:
        which: a path, or latest.
        parent: the folder of all runs.
        trainer: the command that makes runs there, for the error line.

    Raises:
        CheckpointError: if there is none.
    """
    if which == "latest":
        found = []
        for config in Path(parent).glob("*/*/*/config.yaml"):
            match = _RUN_NAME.fullmatch(config.parent.name)
            if match:
                found.append((match[1], int(match[2] or 1), config.parent))
        if not found:
            raise CheckpointError(f"there is no run in '{parent}' yet; train one with {trainer}")
        return Run(max(found)[2].absolute())
    path = Path(which)
    try:
        found_here = (path / "config.yaml").is_file()
    except (OSError, ValueError):  # no path at all: too long, or with a NUL
        found_here, path = False, Path()
    if not found_here:
        siblings = [str(p.parent) for p in path.parent.glob("*/config.yaml")] if path.name else []
        hint = closest(which, siblings) if siblings else ""
        raise CheckpointError(f"there is no run at '{which}' (no config.yaml).{hint}")
    return Run(path.absolute())
