"""Any Gymnasium id behind the contract, and one line for each that cannot be built."""

import sys
import types

import gymnasium as gym
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete

from contract import Streams
from envs.make import make_env
from envs.settings import AtariSettings, GymnasiumSettings, family, register_environments, settings_class, with_step_cap
from faults import ConfigError, EnvError

IDS = {
    "CartPole-v1": ("classic_control", 500, False),
    "Acrobot-v1": ("classic_control", 500, False),
    "MountainCar-v0": ("classic_control", 200, False),
    "MountainCarContinuous-v0": ("classic_control", 999, False),
    "Pendulum-v1": ("classic_control", 200, False),
    "FrozenLake-v1": ("toy_text", 100, True),
    "FrozenLake8x8-v1": ("toy_text", 200, True),
    "CliffWalking-v1": ("toy_text", None, True),
    "CliffWalkingSlippery-v1": ("toy_text", None, True),
    "Taxi-v4": ("toy_text", 200, True),
    "Blackjack-v1": ("toy_text", None, False),
}


@pytest.mark.parametrize(("env_id", "expected"), IDS.items(), ids=IDS.keys())
def test_ids_build_and_step(env_id: str, expected: tuple[str, int | None, bool]) -> None:
    env = make_env(GymnasiumSettings(id=env_id), 2, Streams(0), "train")
    spec = env.spec
    assert (spec.family, spec.max_episode_steps, spec.model is not None) == expected
    assert spec.num_envs == 2
    assert spec.protocol["env_id"] == env_id
    assert isinstance(spec.observation_space, Box | Discrete | MultiDiscrete)
    obs = env.reset()
    continuous = isinstance(spec.action_space, Box)
    action = torch.zeros(2, *spec.action_space.shape) if continuous else torch.zeros(2, dtype=torch.int64)
    for _ in range(30):
        assert obs.shape == (2, *(spec.observation_space.shape or ()))
        assert all(spec.observation_space.contains(o.numpy() if o.ndim else int(o)) for o in obs)
        obs = env.step(action).obs
    env.close()


def test_every_toy_text_id_is_covered() -> None:
    register_environments()
    assert {i for i in gym.registry if family(i) == "toy_text"} == {i for i, row in IDS.items() if row[0] == "toy_text"}
    assert family("ALE/Pong-v5") == family("PongNoFrameskip-v4") == "atari"
    assert settings_class("ALE/Pong-v5") is AtariSettings
    assert settings_class("CartPole-v1") is GymnasiumSettings


def test_training_and_evaluation_have_episodes_of_their_own() -> None:
    settings = GymnasiumSettings(id="CartPole-v1")
    envs = [
        make_env(settings, 4, Streams(s), name) for s, name in ((0, "train"), (0, "train"), (0, "eval"), (1, "train"))
    ]
    same, again, *others = (env.reset() for env in envs)
    assert torch.equal(same, again)
    first = torch.cat([same, *others])
    assert len(first.unique(dim=0)) == 12
    for env in envs:
        env.close()


def test_settings_reach_the_environment() -> None:
    settings = GymnasiumSettings(
        id="FrozenLake-v1", kwargs={"is_slippery": False, "map_name": "8x8"}, max_episode_steps=7, success_return=0.0
    )
    env = make_env(settings, 1, Streams(0), "train")
    env.reset()
    steps = [env.step(torch.tensor([0])) for _ in range(7)]
    assert int(env.spec.observation_space.n) == 64
    assert env.spec.model.next_state.shape == (64, 4, 1)  # not slippery: one outcome each
    assert env.spec.model.max_episode_steps == 7
    assert [bool(s.transition.episode_end) for s in steps] == [False] * 6 + [True]
    assert not any(bool(s.transition.terminal) for s in steps)
    assert steps[-1].episodes[0].success is True
    assert env.spec.protocol["max_episode_steps"] == 7
    assert env.spec.protocol["is_slippery"] is False
    env.close()


def test_async_environments_play_the_same_episodes() -> None:
    trajectories = []
    for vectorization in ("sync", "async"):
        env = make_env(GymnasiumSettings(id="FrozenLake-v1", vectorization=vectorization), 2, Streams(0), "train")
        env.reset()
        trajectories.append(torch.stack([env.step(torch.tensor([1, 2])).obs for _ in range(30)]))
        env.close()
    assert torch.equal(*trajectories)


class Broken(gym.Env):
    observation_space = Discrete(2)
    action_space = Discrete(2)

    def __init__(self) -> None:
        raise RuntimeError("no map\nwas found")


class NeedsPackage(Broken):
    def __init__(self) -> None:
        import a_package_that_is_not_installed  # noqa: F401


class Odd(Broken):
    observation_space = gym.spaces.Dict({"a": Discrete(2)})

    def __init__(self) -> None:
        pass


class Fine(Odd):
    observation_space = Discrete(2)

    def reset(self, **kwargs: object) -> tuple[int, dict[str, object]]:
        return 0, {}


@pytest.mark.parametrize(
    ("cls", "fault", "line"),
    [
        (Broken, EnvError, "Test/Made-v0: RuntimeError: no map was found"),
        (
            NeedsPackage,
            EnvError,
            "Test/Made-v0: needs the package 'a_package_that_is_not_installed': pip install a_pac",
        ),
        (Odd, ConfigError, "Test/Made-v0 has observations of type Dict"),
    ],
)
def test_what_cannot_be_built_is_one_line(cls: type, fault: type, line: str) -> None:
    gym.register("Test/Made-v0", entry_point=cls)
    try:
        with pytest.raises(fault, match=line) as caught:
            make_env(GymnasiumSettings(id="Test/Made-v0"), 2, Streams(0), "train")
        assert "\n" not in str(caught.value)
    finally:
        del gym.registry["Test/Made-v0"]


def test_a_missing_package_of_gymnasium_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [m for m in sys.modules if m.split(".")[0] == "Box2D" or m.startswith("gymnasium.envs.box2d")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "Box2D", None)
    with pytest.raises(EnvError, match=r"LunarLander-v3: a package is missing: .*gymnasium\[box2d\]") as caught:
        make_env(GymnasiumSettings(id="LunarLander-v3"), 1, Streams(0), "train")
    assert "\n" not in str(caught.value)


def test_an_id_may_name_the_module_that_registers_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "a_module_of_mine", types.ModuleType("a_module_of_mine"))
    gym.register("Mine-v0", entry_point=Fine, max_episode_steps=5)
    try:
        env = make_env(GymnasiumSettings(id="a_module_of_mine:Mine-v0"), 1, Streams(0), "train")
        assert env.spec.max_episode_steps == 5
        env.close()
    finally:
        del gym.registry["Mine-v0"]
    with pytest.raises(EnvError, match="cannot import 'no_such_module_of_mine'"):
        make_env(GymnasiumSettings(id="no_such_module_of_mine:Mine-v0"), 1, Streams(0), "train")


def test_unknown_ids_name_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown environment 'CartPol-v1'\. Did you mean 'CartPole-v1'"):
        make_env(GymnasiumSettings(id="CartPol-v1"), 1, Streams(0), "train")
    with pytest.raises(ConfigError, match=r"unknown environment 'FrozenLake-v9'\. Did you mean 'FrozenLake-v1'"):
        make_env(GymnasiumSettings(id="FrozenLake-v9"), 1, Streams(0), "train")


def test_a_step_cap_is_imposed_only_where_it_is_shorter() -> None:
    cliff, cart = GymnasiumSettings(id="CliffWalking-v1"), GymnasiumSettings(id="CartPole-v1")
    assert with_step_cap(cart, 500, 500) == (cart, None)
    capped, cap = with_step_cap(cart, 400, 500)
    assert (capped.max_episode_steps, cap) == (400, 400)
    capped, cap = with_step_cap(cliff, 30, None)
    assert cap == 30
    env = make_env(capped, 1, Streams(0), "eval")
    env.reset()
    ends = [env.step(torch.tensor([0])).transition for _ in range(30)]
    assert [bool(t.episode_end) for t in ends] == [False] * 29 + [True]
    assert not ends[-1].terminal
    env.close()
    atari, cap = with_step_cap(AtariSettings(id="ALE/Pong-v5", frame_skip=3), 100, 36_000)
    assert (atari.max_frames_per_episode, cap) == (300, 100)


@pytest.mark.parametrize(
    ("key", "value"),
    [("vectorization", "fork"), ("timeout_s", 0.0), ("max_episode_steps", 0), ("timeout_s", float("nan"))],
)
def test_settings_out_of_range_are_refused(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"env.{key}"):
        GymnasiumSettings(id="CartPole-v1", **{key: value})
