"""The adaptor from Gymnasium's vector environments to the contract: exact transitions in every auto-reset mode, exact
resume, and one line for everything that can go wrong."""

import functools
import multiprocessing
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from contract import EnvSpec, Episode, Streams, Transition
from envs.host import HostVecEnv, agent_view
from envs.make import make_env
from envs.settings import AtariSettings, GymnasiumSettings, register_environments
from faults import ConfigError, EnvError, NonFiniteError
from memory.replay import Replay

ROOT = Path(__file__).resolve().parents[2]
MODES = [AutoresetMode.DISABLED, AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP]
each_mode = pytest.mark.parametrize("mode", MODES, ids=[m.name for m in MODES])


class Counter(gym.Env):
    """Observation (episode, t), reward = action. Terminates after `ends` steps, meets a time limit after `limit`."""

    def __init__(self, ends: int | None = None, limit: int | None = None, actions: int = 300) -> None:
        self.observation_space = Box(-1e9, 1e9, (2,), np.float32)
        self.action_space = Discrete(actions)
        self.ends, self.limit = ends, limit
        self.episode, self.t = -1, 0

    def obs(self) -> np.ndarray:
        return np.array([self.episode, self.t], np.float32)

    def reward(self, action: Any) -> float:
        return float(action)

    def info(self) -> dict[str, Any]:
        return {}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode, self.t = self.episode + 1, 0
        return self.obs(), self.info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return self.obs(), self.reward(action), self.t == self.ends, self.t == self.limit, self.info()


def spec_of(vector_env: Any, **changes: Any) -> EnvSpec:
    actions = vector_env.single_action_space
    return EnvSpec(
        env_id="Test-v0",
        observation_space=agent_view(vector_env.single_observation_space, "Test-v0"),
        action_space=Discrete(int(actions.n)) if isinstance(actions, Discrete) else actions,
        num_envs=vector_env.num_envs,
        **changes,
    )


def host(
    *makers: Callable[[], gym.Env], mode: AutoresetMode = AutoresetMode.DISABLED, seed: int = 0, **options: Any
) -> HostVecEnv:
    vector_env = SyncVectorEnv(makers, autoreset_mode=mode)
    streams = Streams(seed)
    return HostVecEnv(
        vector_env,
        spec_of(vector_env),
        lambda env, episode: streams.seed("env", env, episode),
        resets_by_mask=mode is AutoresetMode.DISABLED,
        **options,
    )


Row = tuple[int, tuple[float, ...], float, tuple[float, ...], bool, bool]


def play(env: HostVecEnv, actions: list[list[int]]) -> tuple[list[Row], list[Transition], list[Episode]]:
    """(env, obs, reward, next_obs, terminal, episode_end) of the valid rows, sorted by environment, then by time."""
    rows, transitions, episodes = [], [], []
    obs = env.reset()
    for action in actions:
        step = env.step(torch.tensor(action))
        t = step.transition
        assert torch.equal(t.obs, obs)
        transitions.append(t)
        episodes += step.episodes
        for i in torch.nonzero(t.valid).flatten().tolist():
            row = (
                i,
                tuple(t.obs[i].tolist()),
                t.reward[i].item(),
                tuple(t.next_obs[i].tolist()),
                t.terminal[i].item(),
                t.episode_end[i].item(),
            )
            rows.append(row)
        obs = step.obs
    return sorted(rows, key=lambda row: row[0]), transitions, episodes


# ---------------------------------------------------------------- the master test


def test_transitions_are_exact_in_every_mode() -> None:
    """Three environments: ends by termination after 2, by time limit after 3, by both at once after 3."""
    no, yes = False, True
    first = [
        (0, (0, 0), 1.0, (0, 1), no, no),
        (0, (0, 1), 1.0, (0, 2), yes, yes),
        (1, (0, 0), 2.0, (0, 1), no, no),
        (1, (0, 1), 2.0, (0, 2), no, no),
        (1, (0, 2), 2.0, (0, 3), no, yes),
        (2, (0, 0), 3.0, (0, 1), no, no),
        (2, (0, 1), 3.0, (0, 2), no, no),
        (2, (0, 2), 3.0, (0, 3), yes, yes),
    ]
    second = [(0, (1, 0), 1.0, (1, 1), no, no), (0, (1, 1), 1.0, (1, 2), yes, yes)]
    third = [(1, (1, 0), 2.0, (1, 1), no, no), (2, (1, 0), 3.0, (1, 1), no, no)]
    expected = {
        AutoresetMode.DISABLED: sorted(first + second + third, key=lambda row: row[0]),
        AutoresetMode.SAME_STEP: sorted(first + second + third, key=lambda row: row[0]),
        AutoresetMode.NEXT_STEP: sorted(first + second[:1], key=lambda row: row[0]),
    }
    valid = {mode: torch.ones(4, 3, dtype=torch.bool) for mode in MODES}
    valid[AutoresetMode.NEXT_STEP][2, 0] = valid[AutoresetMode.NEXT_STEP][3, 1:] = False
    assert {mode: len(rows) for mode, rows in expected.items()} == dict(zip(MODES, (12, 9, 12), strict=True))
    for mode in MODES:
        makers = [lambda: Counter(ends=2), lambda: Counter(limit=3), lambda: Counter(ends=3, limit=3)]
        env = host(*makers, mode=mode)
        rows, transitions, episodes = play(env, [[1, 2, 3]] * 4)
        assert rows == expected[mode], mode
        assert torch.equal(torch.stack([t.valid for t in transitions]), valid[mode]), mode
        finished = [(e.env_index, e.episode_return, e.length_env_steps) for e in episodes]
        assert finished[:3] == [(0, 2.0, 2), (1, 6.0, 3), (2, 9.0, 3)], mode
        assert finished[3:] == ([] if mode is AutoresetMode.NEXT_STEP else [(0, 2.0, 2)]), mode
        env.close()


@each_mode
def test_empty_rows_carry_neither_reward_nor_ends(mode: AutoresetMode) -> None:
    env = host(lambda: Counter(ends=1), mode=mode)
    _, transitions, episodes = play(env, [[5]] * 6)
    assert [int(t.valid) for t in transitions] == ([1, 0] * 3 if mode is AutoresetMode.NEXT_STEP else [1] * 6)
    for t in transitions:
        assert t.valid.all() or not (t.reward.any() or t.terminal.any() or t.episode_end.any())
    assert [e.episode_return for e in episodes] == [5.0] * (3 if mode is AutoresetMode.NEXT_STEP else 6)
    env.close()


def test_dtypes_and_shapes() -> None:
    env = host(Counter, Counter)
    _, (t,), _ = play(env, [[1, 2]])
    assert (t.reward.dtype, t.terminal.dtype, t.episode_end.dtype, t.valid.dtype) == (torch.float32, *[torch.bool] * 3)
    assert t.reward.shape == t.terminal.shape == t.valid.shape == (2,)
    assert t.obs.dtype == torch.float32
    assert t.obs.shape == t.next_obs.shape == (2, 2)
    env.close()


class Score(Counter):
    """Rewards -7, 0, 200."""

    def reward(self, action: Any) -> float:
        return (-7.0, 0.0, 200.0)[self.t - 1]


@each_mode
def test_rewards_stay_raw(mode: AutoresetMode) -> None:
    env = host(lambda: Score(ends=3), mode=mode)
    rows, _, episodes = play(env, [[0]] * 3)
    assert [row[2] for row in rows] == [-7.0, 0.0, 200.0]
    assert episodes[0].episode_return == 193.0
    env.close()


class Judge(Counter):
    """Completed where the first action was 1; every reset says that nothing is completed yet."""

    done = False

    def info(self) -> dict[str, Any]:
        return {"is_success": self.done}

    def reset(self, **kwargs: Any) -> Any:
        self.done = False
        return super().reset(**kwargs)

    def reward(self, action: Any) -> float:
        self.done = bool(action == 1)
        return float(action)


@each_mode
def test_success_comes_from_the_last_step_of_the_episode(mode: AutoresetMode) -> None:
    env = host(*[lambda: Judge(ends=2)] * 2, mode=mode, success_return=0.0)
    _, _, episodes = play(env, [[0, 1], [1, 0]])
    assert [(e.env_index, e.success) for e in episodes] == [(0, True), (1, False)]
    env.close()


@each_mode
def test_success_return_decides_where_the_environment_does_not_say(mode: AutoresetMode) -> None:
    env = host(*[lambda: Counter(ends=2)] * 3, mode=mode, success_return=4.0)
    _, _, episodes = play(env, [[2, 2, 1], [2, 1, 9]])
    assert [e.success for e in episodes] == [True, False, True]
    env.close()
    env = host(lambda: Counter(ends=1), mode=mode)
    assert play(env, [[1]])[2][0].success is None
    env.close()


class Lives(Counter):
    """Three lives of two steps each."""

    def info(self) -> dict[str, Any]:
        return {"lives": 3 - self.t // 2}


@each_mode
def test_a_lost_life_is_terminal_but_no_end_of_the_episode(mode: AutoresetMode) -> None:
    env = host(lambda: Lives(ends=6), mode=mode, life_loss_is_terminal=True)
    rows, _, episodes = play(env, [[1]] * 10)
    flags = [(row[4], row[5]) for row in rows]
    no, lost, over = (False, False), (True, False), (True, True)
    assert flags[:9] == [no, lost, no, lost, no, over, no, lost, no]  # new lives at a new game are no loss
    assert [(e.episode_return, e.length_env_steps) for e in episodes] == [(6.0, 6)]
    env.close()
    env = host(lambda: Lives(ends=6), mode=mode)
    assert [row[4] for row in play(env, [[1]] * 6)[0]] == [False] * 5 + [True]
    env.close()


@each_mode
def test_lives_at_a_time_limit_and_at_a_new_game_are_no_loss(mode: AutoresetMode) -> None:
    """The third life goes in the very step of the limit; then a game that gives lives away."""
    env = host(lambda: Lives(limit=4), mode=mode, life_loss_is_terminal=True)
    rows, transitions, _ = play(env, [[1]] * 9)
    assert [(row[4], row[5]) for row in rows[:4]] == [(False, False), (True, False), (False, False), (False, True)]
    assert not any(t.terminal.any() for t in transitions if not t.valid.all())
    env.close()
    env = host(lambda: Gifts(limit=3), mode=mode, life_loss_is_terminal=True)
    assert not any(t.terminal.any() for t in play(env, [[1]] * 12)[1])
    env.close()


class Gifts(Counter):
    """One more life with every step."""

    def info(self) -> dict[str, Any]:
        return {"lives": 3 + self.t}


class Reuser(Counter):
    """Returns one and the same array for ever."""

    def obs(self) -> np.ndarray:
        self.buffer = getattr(self, "buffer", np.zeros(2, np.float32))
        self.buffer[:] = self.episode, self.t
        return self.buffer


@pytest.mark.parametrize("mode", MODES[:2], ids=["DISABLED", "NEXT_STEP"])
def test_replay_keeps_rows_of_an_environment_that_reuses_its_array(mode: AutoresetMode) -> None:
    rows = []
    for maker in (Reuser, Counter):
        env = host(lambda maker=maker: maker(limit=3), lambda maker=maker: maker(ends=2), mode=mode)
        replay = Replay(40, env.spec, 0.9, 1, np.random.default_rng(0))
        env.reset()
        for _ in range(15):
            transition = env.step(torch.tensor([1, 2])).transition
            replay.add(transition, transition.reward)
        rows.append(replay.sample(100))
        env.close()
    for reused, fresh in zip(*rows, strict=True):
        assert torch.equal(reused, fresh)
    batch = rows[0]
    assert torch.equal(batch.next_obs[:, 0], batch.obs[:, 0])
    assert torch.equal(batch.next_obs[:, 1], batch.obs[:, 1] + 1)


# ---------------------------------------------------------------- what can go wrong


class Faulty(Counter):
    """Does something wrong at its third step."""

    wrong: Any = None

    def reward(self, action: Any) -> float:
        return float(self.wrong) if self.t == 3 else 1.0


class BadObs(Counter):
    def obs(self) -> np.ndarray:
        return np.array([np.nan if self.t == 3 else 0.0, self.t], np.float32)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_non_finite_reward_names_environment_and_step(value: float) -> None:
    env = host(Counter, type("Bad", (Faulty,), {"wrong": value}))
    seed = Streams(0).seed("env", 1, 0)
    with pytest.raises(NonFiniteError, match=rf"environment 1 returned reward {value} \(seed {seed}, step 2 of"):
        play(env, [[0, 0]] * 3)
    env.close()


@each_mode
def test_a_non_finite_observation_names_environment_and_step(mode: AutoresetMode) -> None:
    for limit in (None, 3):  # the last observation of an episode counts too
        env = host(Counter, lambda limit=limit: BadObs(limit=limit), mode=mode)
        with pytest.raises(NonFiniteError, match=r"environment 1 returned a non-finite observation \(seed \d+, step 2"):
            play(env, [[0, 0]] * 3)
        env.close()


def test_an_exception_in_the_environment_is_one_line() -> None:
    env = host(type("Bad", (Faulty,), {"wrong": "first\nsecond"}))
    with pytest.raises(EnvError, match="Test-v0: step failed after 2 vector steps: ValueError") as caught:
        play(env, [[0]] * 3)
    assert "\n" not in str(caught.value)
    env.close()


@pytest.mark.parametrize(
    "action",
    [
        torch.tensor([0, 3]),
        torch.tensor([-1, 0]),
        torch.tensor([0, 1], dtype=torch.int32),
        torch.tensor([0.0, 1.0]),
        torch.tensor([0]),
        torch.tensor([[0], [1]]),
    ],
    ids=["too_large", "negative", "int32", "float", "too_few", "two_axes"],
)
def test_actions_outside_the_space_are_refused(action: torch.Tensor) -> None:
    env = host(*[lambda: Counter(actions=3)] * 2)
    env.reset()
    with pytest.raises(EnvError, match=r"actions must be int64 \(2,\) in \[0, 2\]"):
        env.step(action)
    env.close()


def test_step_before_reset_and_a_missing_reset_mask_are_refused() -> None:
    env = host(Counter)
    with pytest.raises(EnvError, match="reset must come before step"):
        env.step(torch.tensor([0]))
    env.close()
    vector_env = SyncVectorEnv([Counter], autoreset_mode=AutoresetMode.DISABLED)
    with pytest.raises(EnvError, match="reset_mask"):
        HostVecEnv(vector_env, spec_of(vector_env), lambda i, k: 0, resets_by_mask=False)


HANGING = """
    import os, sys, time
    import gymnasium as gym, numpy as np, torch
    from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
    from contract import EnvSpec
    from envs.host import HostVecEnv

    class Hang(gym.Env):
        observation_space = gym.spaces.Discrete(2)
        action_space = gym.spaces.Discrete(2)
        def reset(self, **kwargs): return 0, {}
        def step(self, action):
            print(os.getpid(), flush=True)
            time.sleep(600)

    vector = {vector}([Hang], autoreset_mode=AutoresetMode.DISABLED)
    spec = EnvSpec("Hang-v0", vector.single_observation_space, vector.single_action_space, 1)
    env = HostVecEnv(vector, spec, lambda i, k: 0, resets_by_mask=True, timeout_s=0.4)
    env.reset()
    env.step(torch.tensor([0]))
"""


@pytest.mark.parametrize("vector", ["SyncVectorEnv", "AsyncVectorEnv"])
def test_a_hung_step_ends_the_process_with_one_line(vector: str) -> None:
    program = textwrap.dedent(HANGING).replace("{vector}", vector)
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 3
    assert ran.stderr.splitlines() == ["error: Hang-v0 did not answer within 0.4 s; the last checkpoint is kept"]
    if vector == "AsyncVectorEnv":
        wait_for_end(int(ran.stdout))


def wait_for_end(pid: int) -> None:
    """Fails if the process is still running after ten seconds (one that waits for its parent to notice has ended)."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return
        if state == "Z":
            return
        time.sleep(0.05)
    pytest.fail(f"process {pid} is still there")


class Suicide(Counter):
    def reward(self, action: Any) -> float:
        if action == 1:
            os._exit(1)
        return 0.0


def test_a_dead_worker_is_one_line_and_leaves_no_process() -> None:
    vector_env = AsyncVectorEnv([Suicide, Suicide], autoreset_mode=AutoresetMode.DISABLED)
    children = [process.pid for process in vector_env.processes]
    env = HostVecEnv(vector_env, spec_of(vector_env), lambda i, k: 0, resets_by_mask=True)
    start = time.monotonic()
    env.reset()
    env.step(torch.tensor([0, 0]))
    with pytest.raises(EnvError, match=r"step failed after 1 vector steps: .*[a-z]") as caught:
        env.step(torch.tensor([0, 1]))
    env.close()
    assert "\n" not in str(caught.value)
    assert time.monotonic() - start < 30
    for pid in children:
        wait_for_end(pid)
    assert not {process.pid for process in multiprocessing.active_children()} & set(children)


def test_async_workers_give_the_same_transitions() -> None:
    seen = []
    for vector in (SyncVectorEnv, AsyncVectorEnv):
        makers = [lambda: Counter(ends=2), lambda: Counter(limit=3)]
        vector_env = vector(makers, autoreset_mode=AutoresetMode.DISABLED)
        env = HostVecEnv(vector_env, spec_of(vector_env), lambda i, k: 0, resets_by_mask=True)
        seen.append(play(env, [[1, 2]] * 5)[0])
        env.close()
    assert seen[0] == seen[1]
    assert len(seen[0]) == 10


# ---------------------------------------------------------------- spaces


class Fixed(gym.Env):
    """One observation, and a log of the actions that arrive."""

    def __init__(self, space: gym.Space, value: Any, action_space: gym.Space | None = None) -> None:
        self.observation_space, self.value = space, value
        self.action_space = action_space or Discrete(2)
        self.actions: list[Any] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self.value, {}

    def step(self, action: Any) -> Any:
        self.actions.append(np.array(action))
        return self.value, 0.0, False, False, {}


IMAGE = np.arange(2 * 5 * 3, dtype=np.uint8).reshape(2, 5, 3)


@pytest.mark.parametrize(
    ("space", "value", "view", "expected"),
    [
        (Discrete(4, start=10), 12, Discrete(4), torch.tensor(2)),
        (MultiDiscrete([3, 4], start=[5, -1]), np.array([6, 2]), MultiDiscrete([3, 4]), torch.tensor([1, 3])),
        (Tuple((Discrete(3, start=1), Discrete(2))), (3, 1), MultiDiscrete([3, 2]), torch.tensor([2, 1])),
        (MultiBinary(3), np.array([1, 0, 1], np.int8), MultiDiscrete([2, 2, 2]), torch.tensor([1, 0, 1])),
        (
            MultiBinary((2, 2)),
            np.array([[1, 0], [0, 1]], np.int8),
            MultiDiscrete([2] * 4),
            torch.tensor([1, 0, 0, 1]),
        ),
        (
            Box(0, 255, (2, 5, 3), np.uint8),
            IMAGE,
            Box(0, 255, (3, 2, 5), np.uint8),
            torch.from_numpy(IMAGE).permute(2, 0, 1),
        ),
        (
            Box(0, 255, (3, 5, 2), np.uint8),
            IMAGE.reshape(3, 5, 2),
            Box(0, 255, (3, 5, 2), np.uint8),
            torch.from_numpy(IMAGE.reshape(3, 5, 2)),
        ),
        (Box(-1, 1, (2,), np.float64), np.array([0.5, -1]), Box(-1, 1, (2,), np.float32), torch.tensor([0.5, -1.0])),
    ],
    ids=["discrete_start", "multi_start", "tuple", "binary", "binary_2d", "image_hwc", "bytes_chw", "float64"],
)
def test_observations_arrive_as_agents_see_them(
    space: gym.Space, value: Any, view: gym.Space, expected: torch.Tensor
) -> None:
    assert agent_view(space, "x") == view
    env = host(*[lambda: Fixed(space, value)] * 2)
    step_obs = env.step(torch.tensor([0, 1])).transition.next_obs if env.reset() is not None else None
    for obs in (env.reset(), step_obs):
        assert obs.shape == (2, *expected.shape)
        assert obs.dtype == expected.dtype
        assert torch.equal(obs[0], expected)
        assert torch.equal(obs[1], expected)
    env.close()


@pytest.mark.parametrize(
    "space", [Dict({"a": Discrete(2)}), Tuple((Box(0, 1, (1,)), Discrete(2))), gym.spaces.Text(3)], ids=repr
)
def test_unreadable_observations_are_refused_in_one_line(space: gym.Space) -> None:
    with pytest.raises(ConfigError, match=f"Odd-v0 has observations of type {type(space).__name__}") as caught:
        agent_view(space, "Odd-v0")
    assert "\n" not in str(caught.value)


def test_actions_reach_the_environment_in_its_own_numbers() -> None:
    env = host(*[lambda: Fixed(Discrete(1), 0, Discrete(3, start=-1))] * 2)
    env.reset()
    transition = env.step(torch.tensor([0, 2])).transition
    assert [int(single.actions[-1]) for single in env._env.envs] == [-1, 1]
    assert transition.action.tolist() == [0, 2]
    env.close()


# ---------------------------------------------------------------- seeds and resume


def test_episode_seeds_are_distinct() -> None:
    seeds = [
        Streams(seed).seed(f"env/{stream}", env, 0)
        for seed in range(32)
        for env in range(16)
        for stream in ("train", "eval")
    ]
    assert len(set(seeds)) == 1024
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert len({Streams(0).seed("env/train", 0, episode) for episode in range(100)}) == 100


class SeedLog(Counter):
    log: list[int]

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.log.append(seed)
        return super().reset(seed=seed)


def test_every_episode_is_reset_with_its_own_seed() -> None:
    logs: list[list[int]] = [[], []]
    makers = [lambda log=log, ends=ends: make_seed_log(log, ends) for log, ends in zip(logs, (2, 3), strict=True)]
    env = host(*makers, seed=7)
    _, _, episodes = play(env, [[0, 0]] * 6)
    for i, (log, count) in enumerate(zip(logs, (4, 3), strict=True)):
        assert log == [Streams(7).seed("env", i, k) for k in range(count)]
        assert [e.seed for e in episodes if e.env_index == i] == log[:-1]
    env.close()


def test_where_seeding_is_slow_episodes_without_a_seed_lie_between() -> None:
    logs: list[list[int]] = [[], []]
    makers = [lambda log=log, ends=ends: make_seed_log(log, ends) for log, ends in zip(logs, (2, 5), strict=True)]
    env = host(*makers, seed=7, seed_every_env_steps=4)
    _, _, episodes = play(env, [[0, 0]] * 10)
    seed = functools.partial(Streams(7).seed, "env")
    assert logs[0] == [seed(0, 0), None, seed(0, 2), None, seed(0, 4), None]
    assert logs[1] == [seed(1, 0), seed(1, 1), seed(1, 2)]
    for i, log in enumerate(logs):
        assert [e.seed for e in episodes if e.env_index == i] == log[:-1]
    assert env.seed_of(0) == seed(0, 4)
    env._env.envs[0].unwrapped.reward = lambda action: float("nan")
    with pytest.raises(NonFiniteError, match=rf"seed {seed(0, 4)}, step 0 of episode 1 after it"):
        env.step(torch.tensor([0, 0]))
    env.close()


def make_seed_log(log: list[int], ends: int) -> SeedLog:
    env = SeedLog(ends=ends)
    env.log = log
    return env


class Walk(Counter):
    """Random walk from the seed of the episode; ends by itself or by its limit."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        gym.Env.reset(self, seed=seed)
        self.t, self.x = 0, float(self.np_random.normal())
        return np.array([self.x, 0], np.float32), {}

    def step(self, action: Any) -> Any:
        self.t, self.x = self.t + 1, self.x + float(self.np_random.normal()) + action
        obs = np.array([self.x, self.t], np.float32)
        return obs, self.x, self.x > 6, self.t == 9, {}


class Push(Walk):
    """The same with continuous actions."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = Box(-1, 1, (1,), np.float32)

    def step(self, action: Any) -> Any:
        return super().step(float(action[0]))


def gymnasium_env(env_id: str) -> Callable[[], HostVecEnv]:
    return lambda: make_env(GymnasiumSettings(id=env_id), 3, Streams(3), "train")


RESUMABLE: dict[str, Callable[[], HostVecEnv]] = {
    **{name: gymnasium_env(name) for name in ("CartPole-v1", "FrozenLake-v1", "Blackjack-v1", "Taxi-v4")},
    "walk": lambda: host(Walk, Walk, Walk, seed=3),
    "continuous": lambda: host(Push, Push, Push, seed=3),
    "seeded now and then": lambda: host(Walk, Walk, Walk, seed=3, seed_every_env_steps=20),
}


def random_actions(env: HostVecEnv, generator: torch.Generator) -> torch.Tensor:
    n = env.spec.num_envs
    if isinstance(env.spec.action_space, Discrete):
        return torch.randint(int(env.spec.action_space.n), (n,), generator=generator)
    return torch.rand(n, 1, generator=generator) * 2 - 1


@pytest.mark.parametrize("name", RESUMABLE)
@pytest.mark.parametrize("steps", [0, 5, 137])
def test_a_restored_environment_continues_bit_for_bit(
    name: str, steps: int, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = torch.Generator().manual_seed(1)
    original = RESUMABLE[name]()
    obs = original.reset()
    for _ in range(steps):
        obs = original.step(random_actions(original, generator)).obs
    state = original.state_dict()
    assert len(state["actions"]) <= steps
    restored = RESUMABLE[name]()
    assert torch.equal(restored.load_state_dict(state), obs)
    assert capsys.readouterr().err == ""
    ended = 0
    for _ in range(60):
        action = random_actions(original, generator)
        mine, theirs = original.step(action), restored.step(action)
        for a, b in zip(mine.transition, theirs.transition, strict=True):
            assert torch.equal(a, b)
        assert torch.equal(mine.obs, theirs.obs)
        assert mine.episodes == theirs.episodes
        ended += len(mine.episodes)
    assert ended or name == "Taxi-v4"  # whose episodes last 200 steps
    again, once_more = original.state_dict(), restored.state_dict()
    np.testing.assert_array_equal(again["episode"], once_more["episode"])
    assert again["obs_sha256"] == once_more["obs_sha256"]
    original.close()
    restored.close()


def test_the_action_log_survives_a_caller_that_reuses_its_tensor() -> None:
    env, generator, action = host(Push), torch.Generator().manual_seed(0), torch.zeros(1, 1)
    obs = env.reset()
    for _ in range(3):
        obs = env.step(action.copy_(random_actions(env, generator))).obs
    restored = host(Push)
    assert torch.equal(restored.load_state_dict(env.state_dict()), obs)
    env.close()
    restored.close()


def test_the_action_log_holds_running_episodes_only() -> None:
    env = host(lambda: Counter(limit=5), lambda: Counter(limit=7))
    env.reset()
    for _ in range(1000):
        env.step(torch.tensor([0, 0]))
    assert len(env.state_dict()["actions"]) <= 20
    env.close()


class Unrepeatable(Counter):
    calls = 0

    def obs(self) -> np.ndarray:
        Unrepeatable.calls += 1
        return np.array([Unrepeatable.calls, self.t], np.float32)


def test_an_environment_that_cannot_be_replayed_says_so_and_begins_again(capsys: pytest.CaptureFixture[str]) -> None:
    env = host(Unrepeatable, Unrepeatable)
    env.reset()
    for _ in range(3):
        env.step(torch.tensor([0, 0]))
    restored = host(Unrepeatable, Unrepeatable)
    obs = restored.load_state_dict(env.state_dict())
    error = capsys.readouterr().err
    assert error.startswith("warning: Test-v0 cannot be replayed")
    assert error.count("\n") == 1
    assert obs[:, 1].tolist() == [0, 0]
    assert restored.state_dict()["episode"].tolist() == [1, 1]
    assert restored.step(torch.tensor([1, 1])).transition.next_obs[:, 1].tolist() == [1, 1]
    env.close()
    restored.close()


def test_a_new_evaluation_environment_does_not_change_how_training_counts() -> None:
    register_environments()
    train = host(lambda: Counter(ends=3), mode=AutoresetMode.SAME_STEP)
    before = dict(gym.vector.VectorEnv.metadata)
    evaluation = make_env(AtariSettings(id="ALE/Pong-v5", num_threads=1), 1, Streams(0), "eval")
    assert evaluation._mode is AutoresetMode.NEXT_STEP
    later = host(lambda: Counter(ends=3), mode=AutoresetMode.SAME_STEP)
    for env in (train, later):
        assert env._mode is AutoresetMode.SAME_STEP
        assert [e.length_env_steps for e in play(env, [[1]] * 9)[2]] == [3, 3, 3]
        env.close()
    assert evaluation._env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    evaluation.close()
    shared = gym.vector.VectorEnv.metadata
    assert {k: v for k, v in shared.items() if k != "autoreset_mode"} == {
        k: v for k, v in before.items() if k != "autoreset_mode"
    }
