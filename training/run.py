"""The folder of a run: where everything that a run writes lies, and how a run is found again.

runs/<env-slug>/<agent>/seed<k>-<time>[-n]/
    config.yaml  command.txt  versions.json  metrics.jsonl  events.out.tfevents.*
    checkpoints/  eval/  videos/
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
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import yaml

from faults import CheckpointError, ConfigError, StorageError, closest

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

    def config(self) -> dict[str, Any]:
        """The configuration that the run was started with, as plain data: nothing in it is resolved or instantiated.

        Raises:
            CheckpointError: if the file is missing, is no YAML mapping, or asks for interpolation or an import.
        """
        path = self.path / "config.yaml"
        try:
            config = yaml.safe_load(path.read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
            raise CheckpointError(f"cannot read {path}: {str(error).splitlines()[0]}") from None
        if not isinstance(config, dict) or not all(isinstance(config.get(key), dict) for key in ("agent", "env")):
            raise CheckpointError(f"{path} is not the configuration of a run")
        if "${" in path.read_text():
            raise CheckpointError(f"{path} holds an interpolation (${{...}}); saved configurations are plain data")
        if ":" in str(config["env"].get("id", "")):
            raise CheckpointError(f"{path} names an environment that would import a module: {config['env']['id']!r}")
        return config

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


def create_run(parent: str, config: dict[str, Any], agent_name: str) -> Run:
    """Makes a new run folder and records the configuration, the command and the versions in it.

    Raises:
        StorageError: if the folder cannot be written.
    """
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", config["env"]["id"]).strip("-")
    stem = f"seed{config['seed']}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = Path(parent).absolute() / slug / agent_name
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
        (path / "checkpoints").mkdir()
        (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        (path / "command.txt").write_text(shlex.join(["python", *sys.argv]) + "\n")
        (path / "versions.json").write_text(json.dumps(versions(), indent=1) + "\n")
    except OSError as error:
        raise StorageError(f"cannot create a run folder in {folder}: {error.strerror}; set run_dir=<folder>") from None
    return Run(path)


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


def find_run(which: str, parent: str = "runs") -> Run:
    """The run folder that `which` names: a path, or `latest` under `parent`.

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
            raise CheckpointError(f"there is no run in '{parent}' yet; train one with python train.py")
        return Run(max(found)[2].absolute())
    path = Path(which)
    if not (path / "config.yaml").is_file():
        siblings = [str(p.parent) for p in path.parent.glob("*/config.yaml")]
        hint = closest(which, siblings) if siblings else ""
        raise CheckpointError(f"there is no run at '{which}' (no config.yaml).{hint}")
    return Run(path.absolute())
