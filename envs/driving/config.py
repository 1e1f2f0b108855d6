"""The parameters of the driving environments, and what each registered id sets them to."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from faults import ConfigError, check_choice, check_range, closest

OBSERVATIONS = ("state", "features", "window", "camera", "fusion")
GUIDANCE = ("route", "signs", "none")
MIN_SIZE, MAX_SIZE = 8, 256


@dataclass(frozen=True)
class DrivingConfig:
    """Every parameter of a driving environment. Chances are per environment step."""

    city: str = "generated"
    """`generated`, the name of a shipped map (a file of `envs/driving/cities/`), or the path of an ASCII map."""
    size: int = 24
    """Height and width of generated cities, in cells, 8 to 256."""
    num_cities: int = 32
    """How many generated cities the environments share; each episode draws one of them."""
    city_seed: int = 0
    """Generated cities follow from this seed alone."""
    num_goals: int = 4
    """Goals per generated city; each episode draws one. A drawn map with `G` cells has exactly these as goals."""
    min_route: int = 8
    """The shortest route of an episode is at least this long, in cells, where the map allows it."""
    cars: int = 0
    """Other cars."""
    pedestrians: int = 0
    """Pedestrians, shared out over the crosswalks."""
    lights: bool = False
    """Whether junctions that are built for traffic lights have them switched on."""
    green_steps: int = 12
    """Length of a green phase, in environment steps."""
    clear_steps: int = 3
    """All-red time between two green phases, in environment steps."""
    walk_chance: float = 0.05
    """Chance that a waiting pedestrian begins to cross."""
    event_chance: float = 0.0
    """Chance that something unannounced happens ahead: a stopped car, a closed lane, a child running out."""
    drift_chance: float = 0.0
    """Chance that the moving ego is pushed one cell sideways."""
    top_speed: int = 2
    """Highest speed of the ego, 1 or 2. At 1 whoever enters a cell has the same speed, and can carry no message to
    itself in it."""
    time_limit: int = 200
    """The episode is truncated after this many environment steps."""
    obs: str = "features"
    """state, features, window, camera or fusion."""
    view_range: int = 6
    """How far the senses reach, in cells, 1 to 16."""
    guidance: str = "route"
    """What is known of the route: `route` always, `signs` only while standing on a signpost, `none` nothing."""
    reward_time: float = -0.01
    """Each environment step."""
    reward_goal: float = 1.0
    """Reaching the goal, which ends the episode."""
    reward_collision: float = -1.0
    """Running into anything, which ends the episode."""
    reward_red_light: float = -0.5
    """Each entry into a junction against a red light."""
    reward_wrong_way: float = -0.2
    """Each cell entered against the direction of its lane."""
    reward_off_lane: float = -0.2
    """Each cell entered beside the lanes, or across one."""
    shaping: float = 0.0
    """Weight of the potential-based progress term `shaping * (gamma * Phi(s') - Phi(s))`. Phi(s) falls linearly with
    the length of the shortest route from s, from 1 at the goal to 0 at 2 * (height + width); after the end it is 0."""
    shaping_gamma: float = 0.99
    """The gamma of the progress term. The optimum stays what it is if it equals the learner's."""

    def __post_init__(self) -> None:
        check_range("size", self.size, MIN_SIZE, MAX_SIZE)
        check_range("num_cities", self.num_cities, 1, 4096)
        check_range("city_seed", self.city_seed, 0, 2**31 - 1)
        check_range("num_goals", self.num_goals, 1, 64)
        check_range("min_route", self.min_route, 1, 4096)
        check_range("cars", self.cars, 0, 1024)
        check_range("pedestrians", self.pedestrians, 0, 1024)
        check_range("green_steps", self.green_steps, 1, 1000)
        check_range("clear_steps", self.clear_steps, 0, 1000)
        for chance in ("walk_chance", "event_chance", "drift_chance"):
            check_range(chance, getattr(self, chance), 0, 1)
        check_range("top_speed", self.top_speed, 1, 2)
        check_range("time_limit", self.time_limit, 1, 1_000_000)
        check_choice("obs", self.obs, OBSERVATIONS)
        check_range("view_range", self.view_range, 1, 16)
        check_choice("guidance", self.guidance, GUIDANCE)
        for f in fields(self):
            if f.name.startswith("reward_"):
                check_range(f.name, abs(getattr(self, f.name)), 0, 1e6)
        check_range("shaping", self.shaping, 0, 1e6)
        check_range("shaping_gamma", self.shaping_gamma, 0, 1)
        if self.obs == "state" and (self.city == "generated" or self.cars or self.pedestrians or self.lights):
            raise ConfigError("obs=state needs one drawn city without cars, pedestrians or lights: use another obs")
        if self.obs == "state" and (self.event_chance or self.drift_chance):
            raise ConfigError("obs=state needs event_chance=0 and drift_chance=0: the state would not say it all")


PRESETS: dict[str, dict[str, Any]] = {
    "Driving/Tabular-v0": {"city": "village", "obs": "state", "min_route": 1, "time_limit": 100},
    "Driving/Route-v0": {},
    "Driving/Traffic-v0": {"cars": 10, "pedestrians": 6, "lights": True},
    "Driving/LaneKeep-v0": {"city": "highway", "drift_chance": 0.1, "min_route": 30, "reward_off_lane": -0.05},
    "Driving/Events-v0": {"cars": 6, "pedestrians": 4, "lights": True, "event_chance": 0.05},
}
"""What each id changes of the defaults above."""


def make_config(env_id: str, parameters: dict[str, Any]) -> DrivingConfig:
    """The parameters of a registered id, with `parameters` in place of its own.

    Raises:
        ConfigError: one line for an unknown parameter, or a value of the wrong type or out of range.
    """
    defaults = {f.name: f.default for f in fields(DrivingConfig)}
    for name, value in parameters.items():
        if name not in defaults:
            raise ConfigError(f"{env_id} has no parameter '{name}'.{closest(name, defaults)}")
        kind = type(defaults[name])
        fits = isinstance(value, (int, float) if kind is float else kind) and isinstance(value, bool) == (kind is bool)
        if not fits:
            raise ConfigError(f"{env_id}: {name} must be of type {kind.__name__}, got {value!r}")
    return DrivingConfig(**(PRESETS[env_id] | parameters))
