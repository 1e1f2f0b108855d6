"""Atari: which settings are really on, ends and lives, exact resume, and pixels against Gymnasium's own wrapper."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers import AtariPreprocessing

from contract import Step, Streams
from envs.atari import AtariCamera, human_normalized, make_atari, protocol, resolve
from envs.host import HostVecEnv
from envs.make import make_env
from envs.settings import AtariSettings, register_environments, unknown_id
from faults import ConfigError, EnvError

register_environments()
PLAIN: dict[str, Any] = {"repeat_action_probability": 0.0, "noop_max": 0, "fire_reset": False, "num_threads": 1}


@contextmanager
def atari(game: str, num_envs: int = 1, seed: int = 0, stream: str = "train", **settings: Any) -> Iterator[HostVecEnv]:
    env = make_env(AtariSettings(id=game, **{"num_threads": 1, **settings}), num_envs, Streams(seed), stream)
    try:
        yield env
    finally:
        env.close()


def random_actions(env: HostVecEnv, steps: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(int(env.spec.action_space.n), (steps, env.spec.num_envs), generator=generator)


def equal(a: Step, b: Step) -> None:
    for part, other in zip(a.transition, b.transition, strict=True):
        assert torch.equal(part, other)
    assert torch.equal(a.obs, b.obs)
    assert a.episodes == b.episodes


# ---------------------------------------------------------------- settings


def test_every_setting_changes_the_protocol() -> None:
    usual = AtariSettings(id="ALE/Pong-v5")
    other: dict[str, Any] = {
        "id": "ALE/Breakout-v5",
        "repeat_action_probability": 0.1,
        "full_action_space": True,
        "frame_skip": 3,
        "frame_stack": 2,
        "max_pool": False,
        "image_size": 42,
        "noop_max": 7,
        "fire_reset": False,
        "life_loss_is_terminal": True,
        "max_frames_per_episode": 1000,
    }
    assert {f.name for f in fields(AtariSettings)} - set(other) == {"num_threads", "timeout_s"}
    seen = [protocol(resolve(usual))] + [protocol(resolve(replace(usual, **{k: v}))) for k, v in other.items()]
    assert all(a != b for i, a in enumerate(seen) for b in seen[:i])
    assert None not in seen[0].values()


@pytest.mark.parametrize(("game", "sticky"), [("ALE/Pong-v5", 0.25), ("PongNoFrameskip-v4", 0.0)])
def test_an_id_means_what_it_is_registered_with(game: str, sticky: float) -> None:
    with atari(game, noop_max=0, fire_reset=False) as env:
        assert env.spec.protocol["sticky_actions"] == sticky
        assert env.spec.action_space.n == 6
        assert env.spec.frames_per_env_step == env.spec.frame_stack == 4
        assert env.spec.max_episode_steps == 27_000
        env.reset()
        inner = env._env
        frames = [int(inner.step(np.array([0]))[4]["episode_frame_number"][0]) for _ in range(5)]
        assert frames == [4, 8, 12, 16, 20]
    with atari(game, repeat_action_probability=0.5, full_action_space=True) as env:
        assert env.spec.protocol["sticky_actions"] == 0.5
        assert env.spec.protocol["action_set"] == "full"
        assert env.spec.action_space.n == 18


def test_sticky_actions_are_on_exactly_where_the_protocol_says_so() -> None:
    """Without them, the seed changes nothing."""
    for sticky in (0.0, 0.25):
        trajectories = []
        for seed in (0, 1):
            with atari("ALE/Pong-v5", seed=seed, **PLAIN | {"repeat_action_probability": sticky}) as env:
                env.reset()
                trajectories.append(torch.stack([env.step(action).obs for action in random_actions(env, 80)]))
        assert torch.equal(*trajectories) == (sticky == 0.0)


@pytest.mark.parametrize("game", ["Pong-v4", "Pong-v0"])
def test_random_frame_skip_is_refused(game: str) -> None:
    with pytest.raises(ConfigError, match=f"{game} skips a random number of frames; use 'ALE/<Game>-v5'"):
        make_env(AtariSettings(id=game), 1, Streams(0), "train")


def test_ram_observations_are_refused() -> None:
    kwargs = dict(gym.registry["ALE/Pong-v5"].kwargs) | {"obs_type": "ram"}
    gym.register("ALE/PongRam-v5", entry_point="ale_py.env:AtariEnv", kwargs=kwargs)
    try:
        with pytest.raises(ConfigError, match="ALE/PongRam-v5 has RAM observations; use 'ALE/<Game>-v5'"):
            make_env(AtariSettings(id="ALE/PongRam-v5"), 1, Streams(0), "train")
    finally:
        del gym.registry["ALE/PongRam-v5"]


@pytest.mark.parametrize("wrong", ["Pong-v5", "ALE/Pongg-v5", "ALE/Pong", "ALE/pong-v5", "PongDeterministic-v4"])
def test_wrong_ids_name_the_right_one(wrong: str) -> None:
    assert wrong not in gym.registry
    assert "'ALE/Pong-v5'" in unknown_id(wrong) or (wrong == "PongDeterministic-v4" and "Pong" in unknown_id(wrong))
    with pytest.raises(ConfigError, match=f"unknown environment '{wrong}'"):
        make_env(AtariSettings(id=wrong), 1, Streams(0), "train")


def test_a_missing_rom_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("ALE_ROMS_DIR", str(tmp_path))
    with pytest.raises(EnvError, match="ALE/Pong-v5: the ROM cannot be loaded") as caught:
        make_env(AtariSettings(id="ALE/Pong-v5"), 1, Streams(0), "train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"), [("repeat_action_probability", 1.5), ("frame_skip", 0), ("noop_max", -1), ("image_size", 300)]
)
def test_settings_out_of_range_are_refused(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"env.{key}"):
        AtariSettings(id="ALE/Pong-v5", **{key: value})


def test_human_normalized_scores() -> None:
    assert human_normalized("ALE/Pong-v5", -20.7) == pytest.approx(0.0, abs=1e-6)
    assert human_normalized("PongNoFrameskip-v4", 14.6) == pytest.approx(1.0, abs=1e-6)
    assert human_normalized("CartPole-v1", 500.0) is None


# ---------------------------------------------------------------- episodes


def test_the_frame_cap_is_a_time_limit_in_environment_steps() -> None:
    with atari("ALE/Pong-v5", 2, **PLAIN, max_frames_per_episode=40) as env:
        assert env.spec.max_episode_steps == 10
        env.reset()
        steps = [env.step(action) for action in random_actions(env, 30)]
        ends = [s.transition.episode_end.tolist() for s in steps]
        assert ends == ([[False] * 2] * 9 + [[True] * 2]) * 3
        assert not torch.stack([s.transition.terminal for s in steps]).any()
        assert torch.stack([s.transition.valid for s in steps]).all()
        assert [e.length_env_steps for s in steps for e in s.episodes] == [10] * 6
        at_end = steps[9]
        assert not torch.equal(at_end.transition.next_obs, at_end.obs)
        assert torch.equal(at_end.transition.next_obs[:, :3], steps[8].obs[:, 1:])
        assert not at_end.obs[:, :3].any()


def test_one_environment_ends_and_the_others_play_on() -> None:
    """A step after a partial reset belongs to the episode that the reset began."""
    with atari("ALE/Breakout-v5", 3, repeat_action_probability=0.0) as env:
        obs, own = env.reset(), 0
        for action in random_actions(env, 500):
            step = env.step(action)
            assert torch.equal(step.transition.obs, obs)
            end = step.transition.episode_end
            assert torch.equal(step.transition.next_obs[~end], step.obs[~end])
            assert torch.equal(step.transition.next_obs[:, :3], obs[:, 1:])
            assert not step.obs[end][:, :3].any()
            own += 0 < int(end.sum()) < 3
            obs = step.obs
        assert own >= 2


def test_rewards_are_raw() -> None:
    with atari("ALE/SpaceInvaders-v5", 2) as env:
        env.reset()
        rewards = torch.stack([env.step(action).transition.reward for action in random_actions(env, 150)])
        assert rewards.max() >= 5
        assert set(rewards.unique().tolist()) <= {0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 200.0}


@pytest.mark.parametrize("life_loss", [True, False])
def test_a_lost_life_is_terminal_only_if_asked_for_and_never_an_episode(life_loss: bool) -> None:
    with atari("ALE/Breakout-v5", 2, life_loss_is_terminal=life_loss) as env:
        env.reset()
        terminals, total, length = [0, 0], [0.0, 0.0], [0, 0]
        games = 0
        for action in random_actions(env, 1500):
            t, _, episodes = env.step(action)
            for i in range(2):
                terminals[i] += int(t.terminal[i])
                total[i] += float(t.reward[i])
                length[i] += 1
                assert bool(t.terminal[i]) or not bool(t.episode_end[i])
            assert [e.env_index for e in episodes] == torch.nonzero(t.episode_end).flatten().tolist()
            for e in episodes:
                i = e.env_index
                assert terminals[i] == (5 if life_loss else 1)
                assert (e.episode_return, e.length_env_steps) == (total[i], length[i])
                terminals[i], total[i], length[i] = 0, 0.0, 0
                games += 1
            if games >= 4:
                break
        assert games >= 4


# ---------------------------------------------------------------- seeds and resume


def test_stacks_begin_with_zero_frames() -> None:
    with atari("ALE/Pong-v5", 2, frame_stack=4) as env:
        obs = env.reset()
        assert obs.shape == (2, 4, 84, 84)
        assert obs.dtype == torch.uint8
        assert not obs[:, :3].any()
        assert obs[:, 3].flatten(1).any(1).all()
        after = env.step(torch.tensor([0, 0])).obs
        assert torch.equal(after[:, 2], obs[:, 3])
        assert not after[:, :2].any()


def test_seeds_fix_the_game() -> None:
    def trajectory(seed: int, stream: str) -> torch.Tensor:
        with atari("ALE/Breakout-v5", 2, seed=seed, stream=stream) as env:
            first = env.reset()
            return torch.stack([first] + [env.step(action).obs for action in random_actions(env, 40)])

    same, again, evaluation, other = (trajectory(*a) for a in ((0, "train"), (0, "train"), (0, "eval"), (1, "train")))
    assert torch.equal(same, again)
    assert not torch.equal(same, evaluation)
    assert not torch.equal(same, other)
    assert not torch.equal(same[:, 0], same[:, 1])


@pytest.mark.parametrize("seed", [0, 2**31 - 1])
def test_the_ends_of_the_range_of_seeds_work(seed: int) -> None:
    vector_env, spec = make_atari(AtariSettings(id="ALE/Pong-v5", num_threads=1), 2)
    env = HostVecEnv(vector_env, spec, lambda i, k: seed, resets_by_mask=True)
    first = env.reset()
    assert torch.equal(first[0], first[1])
    assert torch.equal(first, env.reset())
    env.close()


@pytest.mark.parametrize("steps", [0, 3, 130])
def test_a_restored_game_continues_bit_for_bit(steps: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Sticky actions, no-ops and FIRE included; games end at different times and by a cap."""
    settings = {"life_loss_is_terminal": True, "max_frames_per_episode": 340}
    with atari("ALE/Breakout-v5", 3, **settings) as original, atari("ALE/Breakout-v5", 3, **settings) as restored:
        actions, obs = random_actions(original, steps + 100), original.reset()
        for action in actions[:steps]:
            obs = original.step(action).obs
        assert torch.equal(restored.load_state_dict(original.state_dict()), obs)
        ended = 0
        for action in actions[steps:]:
            step = original.step(action)
            equal(step, restored.step(action))
            ended += len(step.episodes)
        assert ended >= 3
    assert capsys.readouterr().err == ""


def test_an_action_outside_the_set_never_reaches_the_emulator() -> None:
    with atari("ALE/Pong-v5", 2) as env:
        env.reset()
        for action in (torch.tensor([0, 6]), torch.tensor([-1, 0]), torch.tensor([0, 1], dtype=torch.int32)):
            with pytest.raises(EnvError, match=r"ALE/Pong-v5: actions must be int64 \(2,\) in \[0, 5\]"):
                env.step(action)
        assert env.step(torch.tensor([0, 5])).obs.shape == (2, 4, 84, 84)


# ---------------------------------------------------------------- pixels


def area_weights(size: int, target: int) -> np.ndarray:
    """(target, size): how much of each pixel lies in each of `target` equal parts, as a mean."""
    edges, scale = np.arange(size), size / target
    low = np.arange(target)[:, None] * scale
    return np.clip(np.minimum(edges + 1, low + scale) - np.maximum(edges, low), 0, None) / scale


def area_resize(image: np.ndarray, size: tuple[int, int], **_: Any) -> np.ndarray:
    """What OpenCV's INTER_AREA computes when it shrinks a grey image."""
    rows, columns = (area_weights(*pair) for pair in zip(image.shape, size[::-1], strict=True))
    return np.rint(rows @ image @ columns.T).astype(np.uint8)


@pytest.mark.parametrize(("game", "steps"), [("Breakout", 500), ("Pong", 250)])
def test_the_same_game_as_gymnasiums_wrapper(game: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", SimpleNamespace(resize=area_resize, INTER_AREA=3))  # all that it wants
    single = AtariPreprocessing(gym.make(f"{game}NoFrameskip-v4"), noop_max=0, frame_skip=4, screen_size=84)
    expected, _ = single.reset(seed=0)
    with atari(f"{game}NoFrameskip-v4", **PLAIN) as env:
        close_pixels(env.reset()[0, -1], expected)
        ended = 0
        for action in random_actions(env, steps):
            transition, obs, episodes = env.step(action)
            expected, reward, terminated, truncated, _ = single.step(int(action))
            close_pixels(transition.next_obs[0, -1], expected)
            assert transition.reward.item() == reward
            assert bool(transition.terminal) == terminated
            assert bool(transition.episode_end) == (terminated or truncated)
            if terminated or truncated:
                expected, _ = single.reset()
                close_pixels(obs[0, -1], expected)
                ended += len(episodes)
        assert ended or game == "Pong"
    single.close()


def close_pixels(frame: torch.Tensor, expected: np.ndarray) -> None:
    """ALE's own tolerance: at most 25 pixels differ, by at most 2."""
    difference = np.abs(frame.numpy().astype(np.int64) - expected)
    assert (difference > 0).sum() <= 25
    assert difference.max() <= 2


def test_cameras_follow_the_game() -> None:
    """Two of the same seed agree in every frame, and they show the game that the environment plays."""
    settings = AtariSettings(id="ALE/Breakout-v5", num_threads=1)
    with atari("ALE/Breakout-v5") as env:
        obs = env.reset()
        seed = Streams(0).seed("env/train", 0, 0)
        one, two, other = (AtariCamera(settings) for _ in range(3))
        frames = [one.reset(seed), two.reset(seed), other.reset(seed + 1)]
        near, far = [], []
        for action in random_actions(env, 60):
            assert frames[0].shape == (210, 160, 3)
            assert frames[0].dtype == np.uint8
            np.testing.assert_array_equal(frames[0], frames[1])
            grey = [area_resize(f @ np.array([0.299, 0.587, 0.114]), (84, 84)) for f in frames]
            newest = obs[0, -1].numpy().astype(np.int64)
            near.append((np.abs(newest - grey[0]) > 8).sum())
            far.append((np.abs(newest - grey[2]) > 8).sum())
            obs = env.step(action).obs
            frames = [camera.step(int(action)) for camera in (one, two, other)]
        assert max(near) <= 5
        assert max(far) > 20
        for camera in (one, two, other):
            assert camera.fps == 15
            camera.close()
