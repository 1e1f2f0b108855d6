"""Configuration: what composes, what wins, and typed schemas."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

from agents import load_algorithm
from envs import settings
from faults import ConfigError, check_range, closest
from training.config import CONFIG_DIR, TrainConfig, compose_config, parse_overrides, typed
from training.loop import check_memory
from training.process import report

settings.register_environments()
AGENTS = sorted(path.stem for path in (CONFIG_DIR / "agent").glob("*.yaml"))
EXPERIMENTS = sorted(path.stem for path in (CONFIG_DIR / "experiment").glob("*.yaml"))
ENVS = ("CartPole-v1", "FrozenLake-v1", "ALE/Pong-v5", "Acrobot-v1")


def checked(*overrides: str) -> tuple[TrainConfig, Any, Any]:
    plain = compose_config(overrides, settings)
    config = typed(TrainConfig, plain)
    algorithm = load_algorithm(config.agent["algorithm"])
    env = typed(settings.settings_class(config.env["id"]), config.env, "env")
    return config, typed(algorithm.Settings, config.agent, "agent"), env


@pytest.mark.parametrize("env_id", ENVS)
@pytest.mark.parametrize("agent", AGENTS)
def test_every_agent_composes_with_every_family(agent: str, env_id: str) -> None:
    config, _, env = checked(f"agent={agent}", f"env={env_id}")
    assert env.id == env_id
    assert "by_family" not in config.agent


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes(experiment: str) -> None:
    checked(f"experiment={experiment}")


def test_later_settings_win() -> None:
    assert checked()[0].num_envs == 8
    family, atari, _ = checked("env=ALE/Pong-v5")
    assert (family.total_env_steps, atari.backbone) == (10_000_000, "nature_cnn")
    assert checked("env=ALE/Pong-v5", "agent.backbone=small_cnn")[1].backbone == "small_cnn"


def test_whole_floats_stand_for_integers() -> None:
    config, agent, _ = checked("total_env_steps=1e6", "agent.replay_capacity=2e3")
    assert (config.total_env_steps, agent.replay_capacity) == (1_000_000, 2_000)
    assert isinstance(config.total_env_steps, int)


def test_arguments_of_a_constructor_are_added_with_a_plus() -> None:
    assert checked("env=FrozenLake-v1", "+env.kwargs.is_slippery=false")[2].kwargs == {"is_slippery": False}


def keys_of(node: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in node.items():
        if key in ("kwargs", "by_family"):
            continue
        found += keys_of(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]
    return found


def test_every_key_with_one_letter_missing_is_refused_with_a_suggestion() -> None:
    plain = compose_config([], settings)
    keys = [key for key in keys_of(plain) if len(key.rpartition(".")[2]) > 3]
    assert len(keys) > 35
    schemas = {"agent": load_algorithm("dqn").Settings, "env": settings.GymnasiumSettings}
    for key in keys:
        owner, _, name = key.rpartition(".")
        typo = name[:-2] + name[-1]
        schema = schemas.get(owner)
        if schema is not None:
            broken, where = dict(plain[owner]), owner
            broken[typo] = broken.pop(name)
        else:
            schema, where = TrainConfig, ""
            broken = dict(plain) if not owner else plain | {owner: dict(plain[owner])}
            inner = broken[owner] if owner else broken
            inner[typo] = inner.pop(name)
        with pytest.raises(
            ConfigError, match=f"unknown key '{owner + '.' if owner else ''}{typo}'.*'{name}'|is missing"
        ):
            typed(schema, broken, where)


@dataclass(frozen=True)
class Inner:
    x: int = 1


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner = field(default_factory=Inner)
    free: dict[str, Any] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=list)
    limit: int | None = None


@pytest.mark.parametrize(
    ("plain", "words"),
    [
        ({}, "p.name is missing"),
        ({"name": "a", "x": 1}, "unknown key 'p.x'"),
        ({"name": "a", "inner": {"y": 1}}, "unknown key 'p.inner.y'"),
        ({"name": "a", "inner": 3}, "p.inner holds keys of its own"),
        ({"name": "a", "inner": None}, "p.inner holds keys of its own"),
        ({"name": "a", "free": [1]}, "p.free holds keys of its own"),
        ({"name": "a", "sizes": ["b"]}, "p.sizes"),
        ({"name": "a", "limit": 1.5}, "p.limit"),
        ({"name": "???"}, "p.name has no value"),
        ({"name": None}, "p.name"),
    ],
)
def test_plain_data_that_does_not_fit_a_schema_is_refused(plain: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        typed(Outer, plain, "p")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_plain_data_that_fits_is_built() -> None:
    built = typed(Outer, {"name": "a", "inner": {"x": 2.0}, "free": {"k": [1]}, "sizes": [1, 2], "limit": None})
    assert built == Outer("a", Inner(2), {"k": [1]}, [1, 2], None)


def test_every_environment_id_is_an_option() -> None:
    plain = [compose_config([f"env='{env_id}'"], settings)["env"]["id"] for env_id in ENVS]
    assert plain == list(ENVS)
    assert all(env_id in gym.registry for env_id in ENVS)


def test_an_override_that_cannot_be_read_is_named() -> None:
    with pytest.raises(ConfigError, match="cannot read 'b'"):
        parse_overrides(["a=1", "b", "c=1"])


@pytest.mark.parametrize(
    ("value", "low", "high", "open_low", "words"),
    [
        (float("nan"), 0, None, False, "at least 0, got nan"),
        (float("inf"), 0, None, False, "at least 0, got inf"),
        (0, 0, None, True, "above 0, got 0"),
        (2, 0, 1, False, "in [0, 1], got 2"),
        (0, 0, 1, True, "in (0, 1], got 0"),
    ],
)
def test_ranges(value: float, low: float, high: float | None, open_low: bool, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_range("key", value, low, high, open_low=open_low)
    assert words in str(caught.value)


def test_the_closest_name_ignores_case() -> None:
    assert closest("cartpole-V1", ["CartPole-v1", "Pong"]) == " Did you mean 'CartPole-v1'?"
    assert closest("zzz", ["a", "b"]) == " Known: a, b."


def test_memory_is_not_checked_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(path: Path) -> str:
        raise FileNotFoundError(str(path))

    monkeypatch.setattr(Path, "read_text", missing)
    check_memory(10**18, "the replay")


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (MemoryError(), 7, "out of memory"),
        (
            RuntimeError("CUDA out of memory. Tried to allocate\nmany"),
            7,
            "CUDA out of memory. Tried to allocate; lower",
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 7, "lower agent.replay_capacity"),
        (PermissionError(13, "Permission denied", "/x"), 5, "Permission denied: /x"),
        (ConfigError("two\nlines"), 2, "two lines"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_foreseen_failures_are_one_line(
    error: BaseException, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> int:
        raise error

    assert report(command, debug=False) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert words in line


def test_what_is_not_foreseen_is_not_hidden() -> None:
    def command() -> int:
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        report(command, debug=False)
