"""The kernels against the plain-Python model of the same rules, field by field, and what the rules promise."""

from __future__ import annotations

import numpy as np
import pytest

from envs.driving.batch import DrivingBatch, window_shape
from envs.driving.config import make_config
from envs.driving.rules import TALLIES
from tests.envs.plain_driving import PlainDriving

SETTINGS = [
    ("Driving/Route-v0", {"num_cities": 4, "shaping": 0.1, "time_limit": 40}),
    ("Driving/Traffic-v0", {"num_cities": 4, "cars": 14, "pedestrians": 12, "walk_chance": 0.3, "size": 16}),
    ("Driving/Events-v0", {"num_cities": 3, "event_chance": 0.4, "cars": 8, "green_steps": 4}),
    ("Driving/LaneKeep-v0", {"drift_chance": 0.3, "top_speed": 1}),
    ("Driving/Events-v0", {"city": "downtown", "event_chance": 0.2, "drift_chance": 0.05, "cars": 30}),
]
CAREFUL = [0, 0, 0, 3, 3, 4, 4, 0, 0, 3, 0, 1, 2]
"""Actions to draw from, so that episodes last."""


def compare(batch, models, i):
    """Asserts that environment i of the batch and its model agree in every field of the state."""
    model, tables = models[i], batch.tables
    state = {name: array[i] for name, array in batch.state_dict().items()}
    assert (state["key"], state["city"], state["goal"]) == (model.key, model.city_index, model.goal_index)
    assert (tables.position(int(state["pose"]) // 4), state["pose"] % 4) == (model.at, model.heading)
    assert state["speed"] == model.speed
    assert dict(zip(TALLIES, state["tally"].tolist(), strict=True)) == model.count
    for pose, car in zip(state["car"], model.cars, strict=True):
        assert (pose < 0) == (car is None)
        assert car is None or [tables.position(int(pose) // 4), pose % 4] == car
    walkers = [w for w in state["walker"].tolist() if w[0] >= 0]
    assert walkers == model.walkers
    kind, pose, passes = state["event"].tolist()
    assert (kind > 0) == (model.event is not None)
    assert not kind or (kind, tables.position(pose // 4), pose % 4, passes) == model.event
    bits = np.unpackbits(state["taken"].view(np.uint8), bitorder="little")
    assert {tables.position(int(cell)) for cell in np.flatnonzero(bits)} == model.taken()


def compare_senses(batch, models):
    """Asserts that what the environments perceive is what their models say."""
    size = window_shape(batch.config.view_range)
    for i, model in enumerate(models):
        np.testing.assert_array_equal(batch.obs["map"][i].numpy().reshape(size), model.window())
        np.testing.assert_allclose(batch.obs["radar"][i].numpy(), model.features(), atol=1e-6)


def play(env_id, parameters, num_envs, episodes, seed):
    """Plays until so many episodes have ended, comparing after every step; returns how they ended."""
    config = make_config(env_id, parameters)
    batch, rng = DrivingBatch(config, num_envs), np.random.default_rng(seed)
    seeds = rng.integers(2**31, size=num_envs).astype(np.uint32)
    batch.reset(seeds, np.zeros(num_envs, np.int32))
    models = [PlainDriving(config, batch.tables, int(s)) for s in seeds]
    number, endings = [0] * num_envs, []
    while len(endings) < episodes:
        action = rng.choice(CAREFUL, num_envs) if rng.random() < 0.9 else rng.integers(5, size=num_envs)
        batch.action.numpy()[:] = action
        batch.step()
        for i, model in enumerate(models):
            answer = model.step(int(action[i]))
            compare(batch, models, i)
            terminal, end = bool(batch.terminal[i]), bool(batch.episode_end[i])
            assert (np.float32(batch.reward[i]), terminal, end and not terminal) == answer
            if end:
                endings.append("goal" if model.count["success"] else "collision" if terminal else "time")
                number[i] += 1
                models[i] = PlainDriving(config, batch.tables, int(seeds[i]), number[i])
        batch.reset_ended()
        for i in np.flatnonzero(batch.episode_end):
            compare(batch, models, i)
    return endings


@pytest.mark.parametrize(("env_id", "parameters"), SETTINGS)
def test_random_episodes_equal_the_plain_model_in_every_field(env_id, parameters):
    endings = play(env_id, parameters, num_envs=4, episodes=40, seed=0)
    assert "collision" in endings


@pytest.mark.parametrize(
    ("env_id", "parameters", "changes"),
    [
        (*SETTINGS[0], {"view_range": 1}),
        (*SETTINGS[1], {"view_range": 6}),
        (*SETTINGS[2], {"view_range": 13, "guidance": "none"}),
        (*SETTINGS[3], {"view_range": 2}),
        (*SETTINGS[4], {"view_range": 16, "lights": False}),
        ("Driving/Route-v0", {"city": "memory"}, {"view_range": 3, "guidance": "signs"}),
    ],
)
def test_window_and_features_show_what_the_plain_model_sees(env_id, parameters, changes):
    num_envs, rng = 12, np.random.default_rng(0)
    config = make_config(env_id, parameters | changes | {"obs": "fusion"})
    batch = DrivingBatch(config, num_envs)
    seeds = rng.integers(2**31, size=num_envs).astype(np.uint32)
    batch.reset(seeds, np.zeros(num_envs, np.int32))
    models, number = [PlainDriving(config, batch.tables, int(s)) for s in seeds], [0] * num_envs
    for _ in range(60):
        compare_senses(batch, models)
        action = rng.choice(CAREFUL, num_envs)
        batch.action.numpy()[:] = action
        batch.step_and_reset()
        for i, model in enumerate(models):
            model.step(int(action[i]))
            if batch.episode_end[i]:
                number[i] += 1
                models[i] = PlainDriving(config, batch.tables, int(seeds[i]), number[i])


@pytest.mark.slow
@pytest.mark.parametrize(("env_id", "parameters"), SETTINGS)
def test_ten_thousand_random_episodes_equal_the_plain_model(env_id, parameters):
    play(env_id, parameters, num_envs=8, episodes=2_000, seed=1)  # times five settings
