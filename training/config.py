"""Configuration: Hydra composes it, dataclasses check it, and whatever is wrong becomes one line.

    python train.py agent=dqn env=ALE/Pong-v5 agent.learning_rate=1e-4

Defaults come from, later ones winning: `configs/config.yaml`, `configs/agent/<agent>.yaml`, `configs/env/<id>.yaml` or
else `configs/env/<family>.yaml`, the `by_family` section of the agent's file, `configs/experiment/<experiment>.yaml`,
the command line.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import gymnasium as gym
from hydra import compose, initialize_config_dir
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from faults import ConfigError, check_range, closest

CONFIG_DIR = Path(__file__).resolve().parent.parent / "configs"
GROUPS = ("agent", "env", "experiment", "sweep")
"""The keys that choose files."""
SALIENCY_METHODS = ("gradient", "grad_cam", "occlusion")
"""What `explain=` chooses from (training/saliency.py); true is the first."""
EXPORTS = ("onnx", "onnx_int8")
"""What `export=` chooses from (training/export.py)."""
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
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
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
    check_overrides(overrides, catalogue)
    register_env_groups(catalogue)
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        try:
            return plain_config(compose("config", overrides=list(overrides)))
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(hydra_line(error)) from None


def plain_config(composed: Any) -> dict[str, Any]:
    """What Hydra composed, as plain data."""
    plain = typing.cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True))
    plain["agent"].pop("by_family", None)
    return plain


def parse_overrides(overrides: Sequence[str]) -> list[Override]:
    """Reads `key=value` one by one, so that the error line names the wrong one.

    Raises:
        ConfigError: if one cannot be read.
    """
    parser, parsed = OverridesParser.create(), []
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except (HydraException, ValueError, RecursionError):
            override = None
        if override is None or not override.key_or_group:
            key, equals, value = text.partition("=")
            hint = f"put quotes around special characters: \"{key}='{value}'\"" if equals else "write key=value"
            raise ConfigError(f"cannot read '{text}'; {hint}")
        parsed.append(override)
    return parsed


def check_overrides(overrides: Sequence[str], catalogue: EnvCatalogue, sweep: bool = False) -> None:
    """Refuses what Hydra would accept in silence, or refuse in many lines.

    Raises:
        ConfigError: naming the override.
    """
    for override in parse_overrides(overrides):
        key = override.key_or_group
        check_override(override, sweep, _known_keys)
        if key == "by_family":
            raise ConfigError(f"unknown key '{override.get_key_element()}'.{closest(key, _known_keys())}")
        if key in GROUPS:
            for choice in _choices(override):
                _check_group(key, choice, catalogue)


def check_override(override: Override, sweep: bool, known_keys: Callable[[], Iterable[str]]) -> None:
    """Refuses an override that sets no key of the configuration.

    Args:
        override: one `key=value`.
        sweep: whether it may have several values, and set Hydra's own keys.
        known_keys: all keys, for the error line.

    Raises:
        ConfigError: naming the override.
    """
    key = override.key_or_group
    if override.is_delete():
        raise ConfigError(f"'~{key}' would remove a key; every run has all of them: set it instead")
    if override.is_sweep_override() and not sweep:
        raise ConfigError(f"'{override.input_line}' is a sweep: put quotes around the value, or add --multirun")
    if re.match(r"(hydra|sweep)\b", key) and not sweep:
        raise ConfigError(f"'{key}' works with --multirun only")
    if override.package is not None and not re.match(r"hydra\b", key):
        raise ConfigError(f"unknown key '{override.get_key_element()}'.{closest(key, known_keys())}")


def _choices(override: Override) -> list[Any]:
    """What an override chooses among, as far as that can be listed.

    Raises:
        ConfigError: if a pattern matches nothing: there would be no run, and no word about it.
    """
    value = override.value()
    if not override.is_sweep_override():
        return [value]
    if not isinstance(value, Glob):
        return [c.strip("'\"") for c in override.sweep_string_iterator()] if override.is_choice_sweep() else []
    key = override.key_or_group
    known = list(_files(key)) + (list(gym.registry) if key == "env" else [])
    matching = value.filter(known)
    if not matching:
        raise ConfigError(f"'{override.input_line}' matches nothing.{closest('', known)}")
    return matching


def _files(group: str) -> dict[str, Path]:
    folder = CONFIG_DIR / group
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in folder.rglob("*.yaml")}


def _check_group(group: str, choice: Any, catalogue: EnvCatalogue) -> None:
    files = _files(group)
    if group == "env":  # the files of families have no id
        if not isinstance(choice, str) or not (choice in gym.registry or "id" in _load_yaml(files.get(choice))):
            raise ConfigError(catalogue.unknown_id(str(choice)))
    elif choice not in files and not (choice is None and group in ("experiment", "sweep")):
        raise ConfigError(f"unknown {group} '{choice}'.{closest(str(choice), files)}")


def parse_keys(arguments: Sequence[str], example: str) -> dict[str, Any]:
    """What stands on the command line of an evaluation, which has no files of configuration to compose.

    Args:
        arguments: `key=value`, each.
        example: of such a line, for the error.

    Raises:
        ConfigError: naming the argument that cannot be read, or the empty key.
    """
    for argument in arguments:
        if "=" not in argument or argument.startswith(("=", "-")):
            raise ConfigError(f"cannot read '{argument}': write key=value, e.g. {example}")
    try:
        plain: Any = OmegaConf.to_container(OmegaConf.from_dotlist(list(arguments)))
    except (OmegaConfBaseException, ValueError) as error:
        raise ConfigError(str(error).splitlines()[0]) from None
    for key in ("run", "checkpoint"):
        if key in plain:
            if plain[key] is None:
                raise ConfigError(f"{key}= is empty")
            plain[key] = str(plain[key])
    if isinstance(plain.get("explain"), bool):
        plain["explain"] = SALIENCY_METHODS[0] if plain["explain"] else None
    return {str(key): value for key, value in plain.items()}


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
    for key in sorted(OmegaConf.missing_keys(OmegaConf.create(plain))):
        raise ConfigError(f"{where}{key} has no value")
    hints = typing.get_type_hints(cls)
    for f in fields(cls):  # type: ignore[arg-type]
        if f.name not in plain and _required(f):
            raise ConfigError(f"{where}{f.name} is missing")
        holds_keys = is_dataclass(hints[f.name]) or typing.get_origin(hints[f.name]) is dict
        if holds_keys and not isinstance(plain.get(f.name, {}), dict):
            raise ConfigError(f"{where}{f.name} holds keys of its own; write {where}{f.name}.<key>=<value>")
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
        raise ConfigError(f"{where}{error.full_key}: {_first_line(error)}") from None


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


def hydra_line(error: Exception, known_keys: Callable[[], Iterable[str]] | None = None) -> str:
    """Hydra's and OmegaConf's many-line errors, in one.

    Args:
        error: theirs.
        known_keys: what there is besides an unknown key; by default the keys of `train.py`.
    """
    if re.search(r"hydra/(sweeper|launcher)", str(error)):
        return f"{_first_line(error)}; sweepers and launchers come with: pip install -r requirements-sweeps.txt"
    unknown = re.match(r"Could not override '(.+)'", str(error))
    if unknown:
        key = unknown.group(1)
        if re.search(r"(^|\.)kwargs(\.|$)", key):  # free-form: the constructor knows its arguments
            free = f"+{key.split('kwargs')[0]}kwargs.<name>=<value>"
            return f"'{key}' has no such argument yet; add it with '+', as in {free}"
        return f"unknown key '{key}'.{closest(key, (known_keys or _known_keys)())}"
    return _first_line(error)


def _first_line(error: Exception) -> str:
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return f"{line[0].lower()}{line[1:]}"


def _known_keys() -> Iterable[str]:
    keys = set()
    for path in [CONFIG_DIR / "config.yaml", *CONFIG_DIR.glob("agent/*.yaml"), *CONFIG_DIR.glob("env/*.yaml")]:
        group = "" if path.parent == CONFIG_DIR else f"{path.parent.name}."
        for key, value in _load_yaml(path).items():
            if key in ("defaults", "by_family"):
                continue
            keys.add(f"{group}{key}")
            if isinstance(value, dict):
                keys.update(f"{group}{key}.{inner}" for inner in value)
    return keys


def _load_yaml(path: Path | None) -> dict[str, Any]:
    if path is None or not path.exists():
        return {}
    return typing.cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(path)))


def _env_defaults(config_path: str, catalogue: EnvCatalogue) -> tuple[dict[str, Any], str]:
    """What `env/<id>` or `by_family/<agent>/<id>` means, and the part of the configuration that it belongs to."""
    group, _, name = config_path.partition("/")
    if group == "env":
        return _load_yaml(CONFIG_DIR / "env" / f"{catalogue.family(name)}.yaml") | {"id": name}, "env"
    agent, _, env_id = name.partition("/")
    sections = _load_yaml(CONFIG_DIR / "agent" / f"{agent}.yaml").get("by_family", {})
    return sections.get(env_id, sections.get(catalogue.family(env_id), {})), "_global_"


def register_env_groups(catalogue: EnvCatalogue) -> None:
    """Teaches Hydra that every registered Gymnasium id is an option of the group `env`.

    A small ConfigSource answers for `env/<id>` with the defaults of the id's family, and for `by_family/<agent>/<id>`
    with the section of the agent's file that is meant for that family. Files in `configs/` win.
    """

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
            content, package = _env_defaults(config_path.removesuffix(".yaml"), catalogue)
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
