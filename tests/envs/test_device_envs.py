"""Device environments behind the contract, device CartPole against Gymnasium's, kernels for GPUs that are not here."""

from __future__ import annotations

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
import warp as wp

import envs.driving
from agents import planner
from contract import Mode, Streams, Task
from envs.camera import make_camera
from envs.device import cartpole
from envs.device.cartpole import CartPoleBatch
from envs.device.slices import Slices
from envs.driving import camera, foresight, rules, senses
from envs.driving.batch import DrivingBatch
from envs.driving.config import make_config
from envs.make import make_env
from envs.settings import DrivingSettings, GymnasiumSettings
from faults import ConfigError, EnvError
from training.evaluation import evaluate

envs.driving.register()
SMALL = {"num_cities": 2, "size": 12, "time_limit": 8}


def driving(env_id="Driving/Events-v0", num_envs=6, **parameters):
    return make_env(DrivingSettings(env_id, **(SMALL | parameters)), num_envs, Streams(3), "train")


def parts(obs):
    return list(obs.values()) if isinstance(obs, dict) else [obs]


def random_actions(n, steps, seed=0):
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.choice([0, 0, 0, 3, 4, 1], n)) for _ in range(steps)]


@pytest.mark.parametrize("obs", ["features", "window", "camera", "fusion"])
def test_next_obs_is_the_true_one_also_where_the_episode_ends(obs):
    """A second batch that never resets by itself sees what the first one reports."""
    env = driving(obs=obs)
    shadow = DrivingBatch(env.batch.config, 6)
    first = env.reset()
    assert env.spec.observation_space.contains(
        {k: v[0].numpy() for k, v in first.items()} if isinstance(first, dict) else first[0].numpy()
    )
    ends = 0
    for action in random_actions(6, 60):
        shadow.load_state_dict(env.batch.state_dict())
        before = [p.clone() for p in parts(env.batch.obs)]
        step = env.step(action)
        shadow.action_tensor.copy_(action)
        shadow.step()
        for mine, true in zip(parts(env.batch.next_obs), parts(shadow.next_obs), strict=True):
            assert torch.equal(mine, true)
        for a, b in zip(parts(step.transition.obs), before, strict=True):
            assert torch.equal(a if a.dim() < 4 else a.permute(0, 2, 3, 1), b)
        ended = step.transition.episode_end
        for now, true in zip(parts(step.obs), parts(step.transition.next_obs), strict=True):
            assert torch.equal(now[~ended], true[~ended])
        assert [e.env_index for e in step.episodes] == ended.nonzero().flatten().tolist()
        ends += len(step.episodes)
        assert bool((step.transition.terminal <= ended).all())
        assert bool(step.transition.valid.all())
    assert ends > 5


def test_episodes_are_counted_as_they_were_played():
    env, returns, lengths, found = driving(), np.zeros(6), np.zeros(6, int), []
    env.reset()
    for action in random_actions(6, 80):
        step = env.step(action)
        returns += step.transition.reward.numpy()
        lengths += 1
        for episode in step.episodes:
            i = episode.env_index
            assert episode.length_env_steps == lengths[i] <= 8
            assert episode.episode_return == pytest.approx(returns[i], abs=1e-5)
            assert episode.success == bool(step.transition.terminal[i] and episode.extras["collision"] == 0)
            returns[i], lengths[i] = 0, 0
            found.append(episode)
    assert any(e.length_env_steps == 8 for e in found)


def test_an_episodes_seed_plays_it_again_in_a_single_environment():
    env = driving(num_envs=2)
    first = env.reset().clone()
    single = gym.make("Driving/Events-v0", **SMALL, city_seed=env.batch.config.city_seed)
    keys = env.batch.state_dict()["key"]
    for i in range(2):
        assert np.array_equal(single.reset(seed=int(keys[i]))[0], first[i].numpy())


@pytest.mark.parametrize("make", [driving, lambda: make_env(CARTPOLE, 6, Streams(3), "train")])
def test_restoring_the_state_continues_exactly(make):
    env = make()
    env.reset()
    num_actions = int(env.spec.action_space.n)
    actions = [a % num_actions for a in random_actions(6, 60)]
    for action in actions[:30]:
        env.step(action)
    state = env.state_dict()
    expected = env.step(actions[30])
    expected = [p.clone() for p in (*parts(expected.obs), expected.transition.reward, expected.transition.terminal)]
    tail = [[e for e in env.step(action).episodes] for action in actions[31:]]

    other = make()
    other.load_state_dict(state)
    got = other.step(actions[30])
    for a, b in zip(expected, (*parts(got.obs), got.transition.reward, got.transition.terminal), strict=True):
        assert torch.equal(a, b)
    assert [[e for e in other.step(action).episodes] for action in actions[31:]] == tail


def test_slices_on_threads_change_nothing(monkeypatch):
    batches = []
    for cores in (1, 2):
        monkeypatch.setattr("envs.device.slices.os.sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        batches.append(DrivingBatch(make_config("Driving/Traffic-v0", SMALL), 600))
    alone, threaded = batches
    assert [len(batch._slices.helpers) for batch in batches] == [0, 1]
    for batch in batches:
        batch.reset(np.arange(600, dtype=np.uint32), np.zeros(600, np.int32))
    for action in random_actions(600, 20):
        for batch in batches:
            batch.action_tensor.copy_(action)
            batch.step_and_reset()
        assert torch.equal(alone.obs["features"], threaded.obs["features"])
        assert torch.equal(alone.next_obs["features"], threaded.next_obs["features"])
    assert all(np.array_equal(v, threaded.state_dict()[k]) for k, v in alone.state_dict().items())
    threaded.close()


def test_what_a_slice_raises_reaches_the_caller_and_the_next_run_is_whole(monkeypatch):
    monkeypatch.setattr("envs.device.slices.os.sched_getaffinity", lambda _: {0, 1, 2})
    slices, ran = Slices(9, 3, "cpu"), []
    assert slices.parts == [(0, 3), (3, 3), (6, 3)]

    def fail():
        raise ValueError("of a slice")

    for broken in range(3):
        launches = [[partial(ran.append, k)] for k in range(3)]
        launches[broken] = [fail]
        with pytest.raises(ValueError, match="of a slice"):
            slices.run(launches)
    ran.clear()
    slices.run([[partial(ran.append, 2 * k), partial(ran.append, 2 * k + 1)] for k in range(3)])
    assert sorted(ran) == list(range(6))
    slices.close()


def test_unknown_devices_are_refused_in_one_line():
    with pytest.raises(ConfigError, match=r"env\.device must be cpu, cuda or cuda:<index>, got 'tpu'"):
        driving(device="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"env\.device=cuda: no CUDA device was found"):
            driving(device="cuda")
        with pytest.raises(ConfigError, match=r"env\.device=cuda: no CUDA device was found"):
            make_env(GymnasiumSettings("CartPole-v1", vectorization="device", device="cuda"), 1, Streams(0), "train")
    with pytest.raises(ConfigError, match=r"env\.device=cuda needs env\.vectorization=device"):
        GymnasiumSettings("CartPole-v1", device="cuda")


def test_a_gpu_beyond_the_last_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr("envs.device.vec.wp.is_cuda_available", lambda: True)
    monkeypatch.setattr("envs.device.vec.wp.get_cuda_device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"env\.device=cuda:7 is not on this machine; it has cpu, cuda:0"):
        driving(device="cuda:7")


def test_evaluation_cities_are_not_training_cities():
    settings = DrivingSettings("Driving/Route-v0", **SMALL)
    train, evaluation = (make_env(settings, 1, Streams(0), name) for name in ("train", "eval"))
    assert not any(
        np.array_equal(a.kind, b.kind) for a in train.batch.tables.cities for b in evaluation.batch.tables.cities
    )


@pytest.mark.parametrize("action", [torch.tensor([0, 5, 0, 0, 0, 0]), torch.tensor([0])])
def test_bad_actions_are_refused(action):
    env = driving()
    with pytest.raises(EnvError, match="reset must come before step"):
        env.step(action)
    env.reset()
    with pytest.raises(EnvError, match="actions"):
        env.step(action)


@pytest.mark.parametrize(
    ("env_id", "parameters", "success", "spl"),
    [
        ("Driving/Tabular-v0", {}, 1.0, 0.9),
        ("Driving/Route-v0", {"num_cities": 4}, 1.0, 0.99),
        ("Driving/Traffic-v0", {"num_cities": 4}, 0.97, 0.95),
        ("Driving/Events-v0", {"num_cities": 4}, 0.95, 0.9),
    ],
)
def test_the_planner_arrives(env_id, parameters, success, spl):
    streams = Streams(0)
    env = make_env(DrivingSettings(env_id, **parameters), 64, streams, "train")
    agent = planner.make_agent(planner.Settings(), Task(env.spec, 1, torch.device("cpu"), streams))
    policy = agent.policy(Mode("greedy"), 64, torch.Generator())
    obs, start, episodes = env.reset(), torch.ones(64, dtype=torch.bool), []
    for _ in range(250):
        step = env.step(policy.act(obs, start).action)
        obs, episodes = step.obs, episodes + step.episodes
    assert np.mean([e.success for e in episodes]) >= success
    assert np.mean([e.extras["spl"] for e in episodes]) >= spl
    assert sum(e.extras["red_light"] + e.extras["wrong_way"] for e in episodes) == 0


def test_the_planner_refuses_environments_without_a_model():
    env = make_env(CARTPOLE, 1, Streams(0), "train")
    with pytest.raises(ConfigError, match="agent=planner needs an environment with a model"):
        planner.make_agent(planner.Settings(), Task(env.spec, 1, torch.device("cpu"), Streams(0)))


# Device CartPole.

CARTPOLE = GymnasiumSettings("CartPole-v1", vectorization="device")
HOST_CARTPOLE = GymnasiumSettings("CartPole-v1")


def test_cartpole_steps_are_gymnasiums_along_gymnasiums_trajectories():
    reference, batch, rng = gym.make("CartPole-v1"), CartPoleBatch(1), np.random.default_rng(0)
    batch.reset(np.zeros(1, np.uint32), np.zeros(1, np.int32))
    longest = 0
    for episode in range(40):
        reference.reset(seed=episode)
        balance = rng.random() < 0.3  # some episodes last: push towards the side to which the pole falls
        for time in range(500):
            x, x_dot, theta, theta_dot = (float(number) for number in reference.unwrapped.state)
            physics = {"x": x, "x_dot": x_dot, "theta": theta, "theta_dot": theta_dot, "time": time}
            batch.load_state_dict(batch.state_dict() | {name: np.array([v]) for name, v in physics.items()})
            action = int(theta + 0.4 * theta_dot > 0) if balance else int(rng.integers(2))
            obs, reward, terminated, truncated, _ = reference.step(action)
            batch.action_tensor[0] = action
            batch.step_and_reset()
            np.testing.assert_allclose(batch.next_obs["obs"][0].numpy(), obs, rtol=0, atol=1e-6)
            assert float(batch.reward[0]) == reward
            assert (bool(batch.terminal[0]), bool(batch.episode_end[0])) == (terminated, terminated or truncated)
            if terminated or truncated:
                break
        longest = max(longest, time + 1)
    assert longest == 500


def test_cartpole_starts_are_uniform_and_follow_from_the_seed():
    batch = CartPoleBatch(4099)  # no multiple of the carts a thread steps
    batch.reset(np.arange(4099, dtype=np.uint32), np.zeros(4099, np.int32))
    first = batch.obs["obs"].clone()
    assert first.abs().max() <= 0.05
    assert first.mean(dim=0).abs().max() < 0.003
    np.testing.assert_allclose(first.std(dim=0), 0.1 / 12**0.5, atol=0.001)
    batch.reset()
    assert torch.equal(batch.obs["obs"], first)


def test_device_vectorization_is_for_plain_cartpole_only():
    with pytest.raises(ConfigError, match=r"env\.vectorization=device exists for CartPole-v1"):
        GymnasiumSettings("Acrobot-v1", vectorization="device")


# GPUs.


@pytest.mark.parametrize("module", [rules, senses, camera, foresight, cartpole], ids=lambda m: m.__name__)
def test_kernels_compile_for_gpus_that_are_not_here(module, tmp_path):
    wp.compile_aot_module(module, arch=[80, 90], module_dir=tmp_path, use_ptx=False)
    for arch in ("sm80", "sm90"):
        (cubin,) = tmp_path.glob(f"*.{arch}.cubin")
        assert cubin.stat().st_size > 1000


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("obs", ["features", "window", "camera"])
def test_cpu_and_cuda_episodes_are_equal_bit_for_bit(obs):
    config = make_config("Driving/Events-v0", SMALL | {"obs": obs, "shaping": 0.1})
    batches = [DrivingBatch(config, 64, device) for device in ("cpu", "cuda")]
    for batch in batches:
        batch.reset(np.arange(64, dtype=np.uint32), np.zeros(64, np.int32))
    for action in random_actions(64, 100):
        for batch in batches:
            batch.action_tensor.copy_(action)
            batch.step_and_reset()
        assert torch.equal(batches[0].obs[obs], batches[1].obs[obs].cpu())
        assert torch.equal(batches[0].reward, batches[1].reward.cpu())


def test_the_planner_plans_with_the_environments_it_acts_on():
    """The agent is built for the training environments, and evaluated on others, with other cities."""
    streams, settings = Streams(0), DrivingSettings("Driving/Route-v0", num_cities=2)
    train, other = make_env(settings, 2, streams, "train"), make_env(settings, 8, streams, "eval")
    agent = planner.make_agent(planner.Settings(), Task(train.spec, 1, torch.device("cpu"), streams))
    episodes = evaluate(agent.policy(Mode("greedy"), 8, torch.Generator()), other, 16)
    assert [e.success for e in episodes] == [True] * 16


@pytest.mark.parametrize("make", [lambda: DrivingSettings("Driving/Events-v0", **SMALL), lambda: HOST_CARTPOLE])
def test_the_camera_follows_the_played_episodes(make):
    settings, streams = make(), Streams(5)
    env, lens = make_env(settings, 1, streams, "film"), make_camera(settings, streams, "film")
    env.reset()
    for _ in range(2):
        frames, episode = [lens.reset(env.seed_of(0))], None
        while episode is None:
            step = env.step(torch.tensor([1]))
            frames.append(lens.step(1))
            episode = step.episodes[0] if step.episodes else None
        assert all(frame.shape == frames[0].shape and frame.dtype == np.uint8 for frame in frames)
        if hasattr(lens, "_return"):
            assert lens._return == pytest.approx(episode.episode_return, abs=1e-5)
            assert lens._env._info()["time"] == episode.length_env_steps
    lens.close()
    env.close()
