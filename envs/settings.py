"""The `env.*` keys: one dataclass per family of environments. Imports neither torch nor an emulator, so that a wrong
value is refused within a second."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec as GymSpec

from envs import driving
from envs.driving.config import DrivingConfig, make_config
from faults import ConfigError, EnvError, check_choice, check_range, closest

FRAMES_PER_GAME_CAP = 108_000
"""30 minutes of play at 60 frames per second: the usual cap of an Atari game (Machado et al. 2018, section 5)."""


@dataclass(frozen=True)
class GymnasiumSettings:
    """Any registered Gymnasium environment."""

    id: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Passed to the environment's constructor."""
    max_episode_steps: int | None = None
    """Time limit in environment steps; null keeps the id's own."""
    vectorization: str = "sync"
    """sync: in this process; async: one process per environment, for slow environments; device: CartPole-v1 as a kernel
    (`envs/device/cartpole.py`), for thousands of environments."""
    device: str = "cpu"
    """Where environments with `vectorization: device` live: cpu, cuda, cuda:<index>."""
    success_return: float | None = None
    """An episode with at least this return counts as completed, for environments that do not report success."""
    discretize: str | None = None
    """So that tables can learn (envs/discretize.py). bins: cut numbers into bins; tiles: into several shifted grids of
    bins, whose values add up (tile coding); null: leave them as they are."""
    bins: list[int] = field(default_factory=lambda: [8])
    """Bins, or tiles, of each number, or one entry for all."""
    tilings: int = 8
    """Grids of tiles: a power of two, at least four times the numbers of an observation, serves best."""
    low: list[float] | None = None
    """Where the bins begin, for each number; null: the environment's own bounds."""
    high: list[float] | None = None
    """Where the bins end."""
    timeout_s: float = 60.0
    """The run ends with one line if a step takes longer than this many seconds."""

    def __post_init__(self) -> None:
        if self.discretize is not None:
            check_choice("env.discretize", self.discretize, ("bins", "tiles"))
        for count in self.bins:
            check_range("env.bins", count, 1, 1_000_000)
        check_range("env.tilings", self.tilings, 1, 1024)
        check_choice("env.vectorization", self.vectorization, ("sync", "async", "device"))
        plain = not self.kwargs and self.max_episode_steps is None and self.success_return is None
        if self.vectorization == "device" and not (self.id == "CartPole-v1" and plain and self.discretize is None):
            raise ConfigError(
                "env.vectorization=device exists for CartPole-v1 with its own settings; use sync or async"
            )
        check_device(self.device)
        if self.device != "cpu" and self.vectorization != "device":
            raise ConfigError(f"env.device={self.device} needs env.vectorization=device")
        check_range("env.timeout_s", self.timeout_s, 0, None, open_low=True)
        if self.max_episode_steps is not None:
            check_range("env.max_episode_steps", self.max_episode_steps, 1, None)


@dataclass(frozen=True)
class AtariSettings:
    """An Atari 2600 game on ALE's native vector environment. Every key is part of the protocol of a score."""

    id: str
    repeat_action_probability: float | None = None
    """Sticky actions: the chance, per emulator frame, that the last action is repeated. null keeps the id's own value
    (0.25 for `ALE/*-v5`)."""
    full_action_space: bool | None = None
    """All 18 actions instead of the game's minimal set. null keeps the id's own."""
    frame_skip: int = 4
    """Emulator frames per environment step."""
    frame_stack: int = 4
    """Frames in an observation."""
    max_pool: bool = True
    """Pixel-wise maximum over the last two frames, against flicker."""
    image_size: int = 84
    """Height and width of the grey observation, in pixels."""
    noop_max: int = 30
    """Up to this many random no-ops (exclusive) begin a game."""
    fire_reset: bool = True
    """Press FIRE once at the start, in games that have it."""
    life_loss_is_terminal: bool = False
    """Let the learner see a lost life as the end of all reward. The game goes on, and returns count whole games."""
    max_frames_per_episode: int = FRAMES_PER_GAME_CAP
    """Time limit of a game, in emulator frames."""
    num_threads: int = 0
    """Emulator threads; 0 means one per core, at most one per environment."""
    timeout_s: float = 60.0
    """The run ends with one line if a step takes longer than this many seconds."""

    def __post_init__(self) -> None:
        if self.repeat_action_probability is not None:
            check_range("env.repeat_action_probability", self.repeat_action_probability, 0, 1)
        check_range("env.frame_skip", self.frame_skip, 1, 60)
        check_range("env.frame_stack", self.frame_stack, 1, 32)
        check_range("env.image_size", self.image_size, 16, 210)
        check_range("env.noop_max", self.noop_max, 0, 1000)
        check_range("env.max_frames_per_episode", self.max_frames_per_episode, self.frame_skip, None)
        check_range("env.num_threads", self.num_threads, 0, 1024)
        check_range("env.timeout_s", self.timeout_s, 0, None, open_low=True)

    @property
    def emulator_threads(self) -> int:
        """Threads to give to the emulator."""
        return self.num_threads or len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class DrivingSettings:
    """A driving environment. null keeps the id's own value; `envs/driving/config.py` says what each key means."""

    id: str
    city: str | None = None
    size: int | None = None
    num_cities: int | None = None
    city_seed: int | None = None
    """null: drawn from the run's seed, other cities for training than for evaluation."""
    num_goals: int | None = None
    min_route: int | None = None
    cars: int | None = None
    pedestrians: int | None = None
    lights: bool | None = None
    green_steps: int | None = None
    clear_steps: int | None = None
    walk_chance: float | None = None
    event_chance: float | None = None
    drift_chance: float | None = None
    top_speed: int | None = None
    time_limit: int | None = None
    obs: str | None = None
    view_range: int | None = None
    guidance: str | None = None
    reward_time: float | None = None
    reward_goal: float | None = None
    reward_collision: float | None = None
    reward_red_light: float | None = None
    reward_wrong_way: float | None = None
    reward_off_lane: float | None = None
    shaping: float | None = None
    shaping_gamma: float | None = None
    device: str = "cpu"
    """Where the environments live: cpu, cuda, cuda:<index>."""

    def __post_init__(self) -> None:
        driving_config(self)
        check_device(self.device)

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters that differ from the id's own."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("id", "device")}
        return {name: value for name, value in given.items() if value is not None}


def check_device(device: str) -> None:
    """Refuses what cannot name a device.

    Raises:
        ConfigError: in one line.
    """
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise ConfigError(f"env.device must be cpu, cuda or cuda:<index>, got '{device}'")


def driving_config(settings: DrivingSettings, **more: Any) -> DrivingConfig:
    """Every parameter of the environment; `more` are parameters that the settings leave open.

    Raises:
        ConfigError: one line naming the parameter.
    """
    return make_config(settings.id, more | settings.parameters)


EnvSettings = GymnasiumSettings | AtariSettings | DrivingSettings


def register_environments() -> None:
    """Makes the ids of ALE and of our own environments known to Gymnasium."""
    import ale_py

    from envs import textbook

    gym.register_envs(ale_py)
    textbook.register()
    driving.register()


def import_modules(arguments: Sequence[str]) -> list[str]:
    """Imports what `import=<module>` on a command line names, so that its environments are registered.

    Only a command line can ask for an import, never a file that is read.

    Returns:
        The other arguments.

    Raises:
        EnvError: if a module cannot be imported.
    """
    for argument in arguments:
        key, _, module = argument.partition("=")
        if key != "import":
            continue
        try:
            importlib.import_module(module)
        except (ImportError, ValueError) as error:
            raise EnvError(f"import={module}: {error}") from None
    return [a for a in arguments if not a.startswith("import=")]


def family(env_id: str) -> str:
    """The group of environments whose defaults apply to this id, by where its code lives.

    `ALE/*` is `atari`, `Driving/*` is `driving`, `Textbook/*` is `textbook`, `gymnasium.envs.toy_text` is `toy_text`;
    anything else is `gymnasium`.
    """
    spec = gym.registry.get(env_id)
    module = spec.entry_point.split(":")[0] if spec and isinstance(spec.entry_point, str) else ""
    if module.startswith("ale_py."):
        return "atari"
    for own in ("textbook", "driving"):
        if module.startswith(f"envs.{own}."):
            return own
    parts = module.split(".")
    return parts[2] if parts[:2] == ["gymnasium", "envs"] and len(parts) > 3 else "gymnasium"


def settings_class(env_id: str) -> type[EnvSettings]:
    """Which dataclass holds the settings of this id."""
    return {"atari": AtariSettings, "driving": DrivingSettings}.get(family(env_id), GymnasiumSettings)


def known_spec(env_id: str) -> GymSpec:
    """The registered specification of `env_id`.

    Raises:
        ConfigError: in one line that names the nearest known ids.
    """
    module, _, name = env_id.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise EnvError(f"env '{env_id}': cannot import '{module}' ({error})") from None
    if name not in gym.registry:
        raise ConfigError(unknown_id(name))
    return gym.registry[name]


def unknown_id(env_id: str) -> str:
    """The error line for an id that is not registered."""
    stem = env_id.rpartition("/")[2].rpartition("-v")[0] or env_id.rpartition("/")[2]
    for candidate in (f"ALE/{stem}-v5", *sorted((i for i in gym.registry if i.startswith(f"{stem}-v")), reverse=True)):
        if candidate in gym.registry:
            return f"unknown environment '{env_id}'. Did you mean '{candidate}'?"
    return f"unknown environment '{env_id}'.{closest(env_id, gym.registry)} One of your own needs import=<its module>."


def with_step_cap(settings: EnvSettings, cap: int, own_limit: int | None) -> tuple[EnvSettings, int | None]:
    """Settings under which no episode outlasts `cap` environment steps, and the limit that had to be imposed, if any.

    Some ids (CliffWalking, Blackjack) have no time limit of their own: a bad greedy policy would play for ever.
    """
    if own_limit is not None and own_limit <= cap:
        return settings, None
    if isinstance(settings, AtariSettings):
        return replace(settings, max_frames_per_episode=cap * settings.frame_skip), cap
    if isinstance(settings, DrivingSettings):
        return replace(settings, time_limit=cap), cap
    return replace(settings, max_episode_steps=cap), cap
