"""The driving environments as Gymnasium's and Stable-Baselines3's users meet them."""

from __future__ import annotations

import itertools
import pickle
import re
import warnings
from dataclasses import fields

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as check_env_sb3

import envs.driving
from envs.driving.batch import SENSES_OF
from envs.driving.config import PRESETS, DrivingConfig, make_config
from envs.driving.env import DrivingEnv
from faults import ConfigError

envs.driving.register()
FEW = {"num_cities": 2, "size": 12}
CASES = [(env_id, obs) for env_id in PRESETS for obs in SENSES_OF if obs != "state"] + [("Driving/Tabular-v0", "state")]


def make(env_id, **parameters):
    return gym.make(env_id, **((FEW if "city" not in PRESETS[env_id] else {}) | parameters))


def same(a, b):
    return all(np.array_equal(a[k], b[k]) for k in a) if isinstance(a, dict) else np.array_equal(a, b)


@pytest.mark.parametrize(("env_id", "obs"), CASES)
def test_check_env_of_gymnasium_and_stable_baselines3(env_id, obs):
    once = obs in ("window", "state")  # what is drawn for people does not depend on what the car senses
    env = make(env_id, obs=obs, render_mode="rgb_array" if once else None).unwrapped
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # SB3 advises to flatten the window
        check_env(env, skip_render_check=not once)
        check_env_sb3(env)


def test_stable_baselines3_trains_through_plain_gym_make():
    model = PPO("MlpPolicy", gym.make("Driving/Route-v0", **FEW), n_steps=32, batch_size=32, n_epochs=1, seed=0)
    before = [p.detach().clone() for p in model.policy.parameters()]
    model.learn(64)
    assert any(not torch.equal(a, b) for a, b in zip(before, model.policy.parameters(), strict=True))


@pytest.mark.parametrize(("env_id", "obs"), [("Driving/Events-v0", "fusion"), ("Driving/LaneKeep-v0", "window")])
def test_two_copies_with_one_seed_are_equal(env_id, obs):
    first, second = make(env_id, obs=obs), make(env_id, obs=obs)
    rng = np.random.default_rng(0)
    for seed in range(5):
        (a, _), (b, _) = first.reset(seed=seed), second.reset(seed=seed)
        assert same(a, b)
        for _ in range(30):
            action = int(rng.choice([0, 0, 3, 4]))
            a, b = first.step(action), second.step(action)
            assert same(a[0], b[0])
            assert a[1:] == b[1:]
            if a[2] or a[3]:
                break


def test_the_vector_environment_plays_the_single_environments_episodes():
    vector = gym.make_vec("Driving/Events-v0", 3, vectorization_mode="vector_entry_point", **FEW)
    singles = [make("Driving/Events-v0") for _ in range(3)]
    obs, _ = vector.reset(seed=7)
    for i, env in enumerate(singles):
        assert np.array_equal(env.reset(seed=7 + i)[0], obs[i])
    rng, running = np.random.default_rng(0), [True] * 3
    for _ in range(40):
        actions = rng.choice([0, 0, 3, 4], 3)
        obs, reward, terminated, truncated, info = vector.step(actions)
        for i, env in enumerate(singles):
            if running[i]:
                single = env.step(int(actions[i]))
                running[i] = not (single[2] or single[3])
                last = obs[i] if running[i] else info["final_obs"][i]
                assert np.array_equal(single[0], last)
                assert (reward[i], terminated[i], truncated[i]) == single[1:4]
    assert not all(running)


def test_the_vector_environment_takes_seeds_in_every_form_that_gymnasium_has():
    vector = gym.make_vec("Driving/Traffic-v0", 3, vectorization_mode="vector_entry_point", **FEW)
    first = vector.reset(seed=7)[0]
    assert np.array_equal(vector.reset(seed=np.int64(7))[0], first)
    assert np.array_equal(vector.reset(seed=[7, 8, 9])[0], first)
    some = vector.reset(seed=[None, 8, 9])[0]
    assert np.array_equal(some[1:], first[1:])
    with pytest.raises(ConfigError, match="reset takes 3 seeds, one for each environment, got 2"):
        vector.reset(seed=[1, 2])


def test_the_time_limit_truncates():
    env = make("Driving/Route-v0", time_limit=3)
    env.reset(seed=0)
    assert [env.step(0)[2:4] for _ in range(3)] == [(False, False), (False, False), (False, True)]


def test_pickling_keeps_the_parameters():
    env = pickle.loads(pickle.dumps(make("Driving/Route-v0", cars=3).unwrapped))
    assert env.batch.config.cars == 3


def test_documented_info_keys_are_the_returned_ones():
    section = DrivingEnv.__doc__.split("## Information")[1].split("## Arguments")[0].split("`reset` and `step`")[1]
    documented = {word for word in re.findall(r"`(\w+)`", section)}
    env = make("Driving/Route-v0")
    _, info = env.reset(seed=0)
    assert set(info) == documented
    assert set(env.step(0)[4]) == documented


def test_the_docstring_has_gymnasiums_sections():
    sections = re.findall(r"## (.+)", DrivingEnv.__doc__)
    assert sections == [
        "Description", "Action Space", "Observation Space", "Rewards", "Starting State", "Episode End", "Information",
        "Arguments", "Version History",
    ]  # fmt: skip


def test_spl_is_one_on_the_shortest_route():
    env = make("Driving/Route-v0", city="memory")
    _, info = env.reset(seed=0)
    left = env.unwrapped.batch.obs["features"][0, 12] == 1  # the navigator says: left
    for action in [3, 4, 3, 4, 3, 4, 3, 4, 3, 1 if left else 2] + [0] * 20:
        *_, terminated, _, info = env.step(action)
        if terminated:
            break
    assert (info["success"], info["spl"]) == (1, 1.0)
    assert info["path_length"] == info["shortest_length"] == 16


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"size": -3}, r"size must be in \[8, 256\], got -3"),
        ({"cars": -1}, r"cars must be in \[0, 1024\], got -1"),
        ({"obs": "lidar"}, "obs must be one of state, features, window, camera, fusion, got 'lidar'"),
        ({"obs": "state"}, "obs=state needs one drawn city"),
        ({"carz": 3}, "has no parameter 'carz'. Did you mean 'cars'"),
        ({"size": "big"}, "size must be of type int, got 'big'"),
        ({"city": "atlantis"}, "unknown city 'atlantis'"),
        ({"city": "nowhere/map.txt"}, "cannot read the map 'nowhere/map.txt'"),
        ({"event_chance": float("nan")}, "event_chance must be in"),
        ({"render_mode": "human"}, "render_mode must be rgb_array or ansi"),
    ],
)
def test_bad_parameters_are_refused_in_one_line(parameters, message):
    with pytest.raises(ConfigError, match=message) as error:
        DrivingEnv("Driving/Route-v0", **parameters)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("action", [-1, 5])
def test_an_unknown_action_is_refused(action):
    env = make("Driving/Route-v0")
    env.reset(seed=0)
    with pytest.raises(gym.error.InvalidAction):
        env.step(action)


def test_settings_and_parameters_have_the_same_names():
    from envs.settings import DrivingSettings

    assert [f.name for f in fields(DrivingSettings)][1:-1] == [f.name for f in fields(DrivingConfig)]


def test_rendering_shows_the_ego_where_it_is():
    env = make("Driving/Traffic-v0", render_mode="rgb_array")
    env.reset(seed=1)
    before = env.render()
    assert before.dtype == np.uint8
    assert before.shape == (768, 768, 3)
    env.step(3)
    assert (env.render() != before).any()
    text = make("Driving/Traffic-v0", render_mode="ansi")
    text.reset(seed=1)
    assert "speed 0" in text.render()


class TestMemory:
    """`city=memory guidance=signs`: a signpost at the start says on which arm of a T junction the goal lies."""

    PARAMETERS = {"city": "memory", "guidance": "signs", "cars": 0, "top_speed": 1}  # noqa: RUF012
    TO_THE_JUNCTION = [3, 4, 3, 4, 3, 4, 3, 4, 3]  # noqa: RUF012 - one cell, then stop, and so on
    SIGNPOST_ROW = 5

    def drive(self, goal, actions, obs):
        """The observations of an episode with the given goal."""
        env = gym.make("Driving/Route-v0", obs=obs, **self.PARAMETERS)
        seed = next(s for s in range(100) if env.reset(seed=s) and env.unwrapped.batch.state.goal.numpy()[0] == goal)
        seen = [env.reset(seed=seed)[0]]
        for action in actions:
            o, _, terminated, truncated, info = env.step(action)
            seen.append(o)
            if terminated or truncated:
                break
        return seen, bool(info["success"])

    @pytest.mark.parametrize("obs", ["features", "window", "camera"])
    def test_without_memory_at_most_half_of_the_goals_are_found(self, obs):
        """From the signpost on, both tasks look alike until the arm is chosen, and the arms are one-way: whatever a
        memoryless policy does at the junction, it does in both tasks, so p + (1 - p) = 1 of 2 succeed."""
        west, _ = self.drive(0, self.TO_THE_JUNCTION, obs)
        east, _ = self.drive(1, self.TO_THE_JUNCTION, obs)
        differs = [not np.array_equal(a, b) for a, b in zip(west, east, strict=True)]
        assert any(differs)  # at the signpost
        assert not any(differs[3:])  # and nowhere between it and the junction

    @pytest.mark.parametrize(("top_speed", "ways"), [(1, 1), (2, 2)])
    def test_nothing_of_the_signpost_can_be_carried_in_the_speed(self, top_speed, ways):
        """However it drives, an ego of top speed 1 is seen in one way when it first stands behind the signpost; one of
        top speed 2 may bring the bit along in speed and place."""
        env = gym.make("Driving/Route-v0", obs="features", **self.PARAMETERS | {"top_speed": top_speed})
        seen = set()
        for actions in itertools.product([0, 3, 4], repeat=5):
            env.reset(seed=0)
            for action in actions:
                obs, *_ = env.step(action)
                batch = env.unwrapped.batch
                if batch.tables.position(int(batch.state.pose.numpy()[0]) >> 2)[0] < self.SIGNPOST_ROW:
                    seen.add(obs.tobytes())
                    break
        assert len(seen) == ways

    @pytest.mark.parametrize(("goal", "turn"), [(0, 1), (1, 2)])
    def test_with_one_remembered_bit_every_goal_is_found(self, goal, turn):
        _, success = self.drive(goal, [*self.TO_THE_JUNCTION, turn, *[0] * 12], "features")
        assert success
        _, success = self.drive(goal, [*self.TO_THE_JUNCTION, 3 - turn, *[0] * 12], "features")
        assert not success


@pytest.mark.parametrize(
    ("env_id", "cars", "events"), [("Driving/Traffic-v0", 10, False), ("Driving/Events-v0", 6, True)]
)
def test_presets_are_what_the_ids_promise(env_id, cars, events):
    config = make_config(env_id, {})
    assert config.cars == cars
    assert (config.event_chance > 0) == events
