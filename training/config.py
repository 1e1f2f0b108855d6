"""Configuration: Hydra composes it, dataclasses check it, and whatever is wrong becomes one line.

    python train.py agent=dqn env=ALE/Pong-v5 agent.learning_rate=1e-4

Defaults come from, later ones winning: `configs/config.yaml`, `configs/agent/<agent>.yaml`, `configs/env/<id>.yaml` or
else `configs/env/<family>.yaml`, the `by_family` section of the agent's file, `configs/experiment/<experiment>.yaml`,
the command line.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import gymnasium as gym
from hydra import compose, initialize_config_dir
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from faults import ConfigError, check_range, closest

CONFIG_DIR = Path(__file__).resolve().parent.parent / "configs"
S = TypeVar("S")


@dataclass(frozen=True)
class EvalConfig:
    """`eval.*`: evaluation during training, on environments and random streams of its own."""

    every_env_steps: int = 10_000
    """0 never evaluates."""
    episodes: int = 10
    mode: str = "greedy"
    """greedy, sample, epsilon=<x> or temperature=<x>."""
    num_envs: int = 4
    max_episode_steps: int = 27_000
    """An episode that the environment has not ended by then is cut, counted and reported as cut."""

    def __post_init__(self) -> None:
        check_range("eval.every_env_steps", self.every_env_steps, 0, None)
        check_range("eval.episodes", self.episodes, 1, 1_000_000)
        check_range("eval.num_envs", self.num_envs, 1, 4096)
        check_range("eval.max_episode_steps", self.max_episode_steps, 1, None)


@dataclass(frozen=True)
class CheckpointConfig:
    """`checkpoint.*`."""

    every_env_steps: int = 10_000
    """0 saves at the end only."""
    keep: int = 2
    """How many of the newest checkpoints stay on disk (the best one by evaluation stays as well)."""

    def __post_init__(self) -> None:
        check_range("checkpoint.every_env_steps", self.every_env_steps, 0, None)
        check_range("checkpoint.keep", self.keep, 1, 10_000)


@dataclass(frozen=True)
class LogConfig:
    """`log.*`."""

    every_env_steps: int = 1_000
    tensorboard: bool = True
    progress: bool = True
    """A live line, on a terminal only."""

    def __post_init__(self) -> None:
        check_range("log.every_env_steps", self.every_env_steps, 1, None)


@dataclass(frozen=True)
class TrainConfig:
    """The top-level keys. `agent` and `env` are checked by the dataclass that the agent or the environment brings."""

    agent: dict[str, Any]
    env: dict[str, Any]
    seed: int = 0
    device: str = "auto"
    """auto, cpu, cuda, cuda:<index>."""
    torch_threads: int = 1
    """Threads of one tensor operation; 0 means one per core. Small networks are fastest with 1."""
    total_env_steps: int = 100_000
    """Length of the run, summed over environments."""
    num_envs: int = 8
    run_dir: str = "runs"
    """Parent of the run's own folder."""
    resume: str | None = None
    """A run folder, or latest."""
    debug: bool = False
    """Show tracebacks."""
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        check_range("seed", self.seed, 0, 2**31 - 1)
        check_range("torch_threads", self.torch_threads, 0, 1024)
        check_range("total_env_steps", self.total_env_steps, 1, None)
        check_range("num_envs", self.num_envs, 1, 1_000_000)
        if not re.fullmatch(r"auto|cpu|meta|cuda(:\d+)?", self.device):
            raise ConfigError(f"device must be auto, cpu, cuda or cuda:<index>, got '{self.device}'")
        if not self.run_dir.strip() or "\0" in self.run_dir or "\n" in self.run_dir:
            raise ConfigError("run_dir must name a folder")


class EnvCatalogue(Protocol):
    """What composing needs to know about environments; `envs.settings` provides it."""

    def family(self, env_id: str) -> str:
        """The group of environments whose defaults apply to a registered id."""
        ...

    def unknown_id(self, env_id: str) -> str:
        """The error line for an id that is not registered."""
        ...


def compose_config(overrides: Sequence[str], catalogue: EnvCatalogue) -> dict[str, Any]:
    """Composes the plain configuration of one run.

    Args:
        overrides: what stands on the command line, e.g. `["agent=dqn", "seed=1"]`.
        catalogue: knows the environment ids.

    Raises:
        ConfigError: one line, with the closest known name where something is unknown.
    """
    register_env_groups(catalogue)
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        try:
            composed = compose("config", overrides=list(overrides))
            plain = OmegaConf.to_container(composed, resolve=True)
        except MissingConfigException as error:
            group, _, name = str(error.missing_cfg_file).removesuffix(".yaml").partition("/")
            if group == "env":
                raise ConfigError(catalogue.unknown_id(name)) from None
            raise ConfigError(f"unknown {group} '{name}'.{closest(name, error.options or [])}") from None
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(_hydra_line(error, overrides)) from None
    assert isinstance(plain, dict)
    plain["agent"].pop("by_family", None)
    return typing.cast(dict[str, Any], plain)


def typed(cls: type[S], plain: dict[str, Any], prefix: str = "") -> S:
    """Builds the dataclass `cls` from plain data, refusing unknown keys and values of the wrong type.

    Args:
        cls: a dataclass whose `__post_init__` checks ranges.
        plain: nested dicts, lists and scalars.
        prefix: where `plain` stands in the configuration, e.g. `agent`, for the error line.

    Raises:
        ConfigError: one line naming the full key.
    """
    where = f"{prefix}." if prefix else ""
    missing = [f.name for f in fields(cls) if f.name not in plain and _required(f)]  # type: ignore[arg-type]
    if missing:
        raise ConfigError(f"{where}{missing[0]} is missing")
    try:
        schema = OmegaConf.structured(cls)
        for f in fields(cls):  # type: ignore[arg-type]
            if is_dataclass(schema._get_node(f.name)._metadata.object_type):  # frozen dataclasses come read-only
                OmegaConf.set_readonly(schema[f.name], False)
        return typing.cast(S, OmegaConf.to_object(OmegaConf.merge(schema, _integral(cls, plain))))
    except ConfigKeyError as error:
        key = str(error.full_key)
        owner, _, name = key.rpartition(".")
        known = _field_names(cls, owner)
        raise ConfigError(f"unknown key '{where}{key}'.{closest(name, known)}") from None
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{where}{error.full_key}: {reason[0].lower()}{reason[1:]}") from None


def _required(f: Any) -> bool:
    return f.default is MISSING and f.default_factory is MISSING


def _field_names(cls: Any, owner: str) -> list[str]:
    for part in filter(None, owner.split(".")):
        cls = typing.get_type_hints(cls)[part]
    return [f.name for f in fields(cls)]


def _integral(cls: Any, plain: dict[str, Any]) -> dict[str, Any]:
    """Lets whole floats (`1e6`) stand where an int is wanted; OmegaConf refuses them."""
    hints = typing.get_type_hints(cls)
    result = dict(plain)
    for name, value in plain.items():
        hint = hints.get(name)
        if is_dataclass(hint) and isinstance(value, dict):
            result[name] = _integral(hint, value)
        elif isinstance(value, float) and value.is_integer() and hint in (int, int | None):
            result[name] = int(value)
    return result


def _hydra_line(error: Exception, overrides: Sequence[str]) -> str:
    """Hydra's and OmegaConf's many-line errors, in one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    unknown = re.match(r"Could not override '(.+)'", lines[0])
    if unknown:
        key = unknown.group(1)
        return f"unknown key '{key}'.{closest(key, _known_keys())}"
    if "Ambiguous value" in lines[0]:
        return f"{lines[0][0].lower()}{lines[0][1:]}: quote it, or add --multirun to sweep over the values"
    if "Error parsing override" in lines[0] or "input" in lines[0]:
        return f"cannot read {' '.join(overrides)!r}: {lines[-2] if len(lines) > 2 else lines[0]} (write key=value)"
    return " ".join(lines[:2])


def _known_keys() -> Iterable[str]:
    keys = set()
    for path in [CONFIG_DIR / "config.yaml", *CONFIG_DIR.glob("agent/*.yaml"), *CONFIG_DIR.glob("env/*.yaml")]:
        group = "" if path.parent == CONFIG_DIR else f"{path.parent.name}."
        for key, value in OmegaConf.to_container(OmegaConf.load(path)).items():  # type: ignore[union-attr]
            if key in ("defaults", "by_family"):
                continue
            keys.add(f"{group}{key}")
            if isinstance(value, dict):
                keys.update(f"{group}{key}.{inner}" for inner in value)
    return keys


def register_env_groups(catalogue: EnvCatalogue) -> None:
    """Teaches Hydra that every registered Gymnasium id is an option of the group `env`.

    A small ConfigSource answers for `env/<id>` with the defaults of the id's family, and for `by_family/<agent>/<id>`
    with the section of the agent's file that is meant for that family. Files in `configs/` win.
    """

    def load_yaml(path: Path) -> dict[str, Any]:
        return typing.cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(path)) if path.exists() else {})

    class GymSource(ConfigSource):  # parameter names must equal the base class's: Hydra calls by keyword
        @staticmethod
        def scheme() -> str:
            return "gym"

        def available(self) -> bool:
            return True

        def is_group(self, config_path: str) -> bool:
            return config_path in ("", "env", "by_family")

        def is_config(self, config_path: str) -> bool:
            group, _, name = config_path.removesuffix(".yaml").partition("/")
            return (group == "env" and name in gym.registry) or group == "by_family"

        def load_config(self, config_path: str) -> ConfigResult:
            group, _, name = config_path.removesuffix(".yaml").partition("/")
            if group == "env":
                content = load_yaml(CONFIG_DIR / "env" / f"{catalogue.family(name)}.yaml") | {"id": name}
                package = "env"
            else:
                agent, _, env_id = name.partition("/")
                sections = load_yaml(CONFIG_DIR / "agent" / f"{agent}.yaml").get("by_family", {})
                content = sections.get(env_id, sections.get(catalogue.family(env_id), {}))
                package = "_global_"
            config = OmegaConf.create(content)
            return ConfigResult(
                provider=self.provider, path=f"gym://{config_path}", config=config, header={"package": package}
            )

        def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
            if results_filter == ObjectType.GROUP:
                return ["env", "by_family"] if config_path == "" else []
            return sorted(gym.registry) if config_path == "env" else []

    class GymSearchPath(SearchPathPlugin):
        def manipulate_search_path(self, search_path: Any) -> None:
            search_path.append("gym", "gym://registry")

    for plugin in (GymSource, GymSearchPath):
        Plugins.instance().register(plugin)
