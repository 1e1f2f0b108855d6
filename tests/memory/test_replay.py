"""Replay: every sampleable transition is the one that was played, in both stores, across ends, wraps and restarts."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import scipy.stats
import torch
from gymnasium.spaces import Box, Dict, Discrete
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from contract import Batch, EnvSpec, Transition
from memory.replay import FrameStore, Replay, VectorStore

STACK = 3
ORDINARY, TASK_END, TIME_LIMIT, LIFE_LOSS = range(4)
STORES = {"vector": VectorStore, "frames": FrameStore}
each_store = pytest.mark.parametrize("store", STORES)


class Played(NamedTuple):
    """What happened in one row of one environment."""

    obs: Tensor
    reward: float
    next_obs: Tensor
    terminal: bool
    episode_end: bool
    valid: bool


Log = dict[tuple[int, int], Played]


def pixels(episode: int, t: int) -> Tensor:
    """(STACK, 1, 2) uint8: frames (episode + 1, step + 1), oldest first, zeros before the episode's first."""
    frames = [[episode + 1, s + 1] if s >= 0 else [0, 0] for s in range(t - STACK + 1, t + 1)]
    return torch.tensor(frames, dtype=torch.uint8)[:, None, :]


def played(codes: list[list[int]], empty_rows: bool) -> tuple[list[Transition], Log]:
    """Transitions of environments whose rows end as `codes` says. The action names the row and the environment.

    Args:
        codes: codes[row][env].
        empty_rows: an ended environment spends the next row on its reset.
    """
    n = len(codes[0])
    episode, t, resetting = [0] * n, [0] * n, [False] * n
    transitions, log = [], dict[tuple[int, int], Played]()
    for row, row_codes in enumerate(codes):
        for i, code in enumerate(row_codes):
            obs = pixels(episode[i], t[i])
            if resetting[i]:
                episode[i], t[i], resetting[i] = episode[i] + 1, 0, False
                log[row, i] = Played(obs, 0.0, pixels(episode[i], 0), False, False, False)
                continue
            t[i] += 1
            end = code in (TASK_END, TIME_LIMIT)
            terminal = code in (TASK_END, LIFE_LOSS)
            log[row, i] = Played(obs, float(row * n + i + 1), pixels(episode[i], t[i]), terminal, end, True)
            if end and empty_rows:
                resetting[i] = True
            elif end:
                episode[i], t[i] = episode[i] + 1, 0
        entries = [log[row, i] for i in range(n)]
        transitions.append(
            Transition(
                obs=torch.stack([e.obs for e in entries]),
                action=torch.tensor([row * n + i for i in range(n)]),
                reward=torch.tensor([e.reward for e in entries]),
                next_obs=torch.stack([e.next_obs for e in entries]),
                terminal=torch.tensor([e.terminal for e in entries]),
                episode_end=torch.tensor([e.episode_end for e in entries]),
                valid=torch.tensor([e.valid for e in entries]),
            )
        )
    return transitions, log


def codes_of(rows: int, episodes: list[list[tuple[int, int]]], losses: bool = False) -> list[list[int]]:
    """codes[row][env] of environments that repeat their own list of (length, how it ends)."""
    columns = []
    for plan in episodes:
        column: list[int] = []
        while len(column) < rows:
            for length, code in plan:
                inside = [LIFE_LOSS if losses and t % 3 == 1 else ORDINARY for t in range(length - 1)]
                column += [*inside, code]
        columns.append(column[:rows])
    return [list(row) for row in zip(*columns, strict=True)]


def make_replay(store: str, capacity: int, num_envs: int, gamma: float = 0.5, n_step: int = 1, seed: int = 0) -> Replay:
    spec = EnvSpec(
        "Pixels-v0",
        Box(0, 255, (STACK, 1, 2), np.uint8),
        Discrete(2),
        num_envs,
        frame_stack=STACK if store == "frames" else 1,
    )
    replay = Replay(capacity, spec, gamma, n_step, np.random.default_rng(seed))
    assert type(replay._store) is STORES[store]
    return replay


def add(replay: Replay, transition: Transition) -> None:
    replay.add(transition, transition.reward)


def chain(log: Log, row: int, env: int, n_step: int, gamma: float, added: int) -> tuple[float, float, Tensor]:
    """n-step reward, discount and next observation, by the definition."""
    total = 0.0
    for j in range(n_step):
        step = log[row + j, env]
        assert step.valid
        total += gamma**j * step.reward
        if step.terminal:
            return total, 0.0, step.next_obs
        if step.episode_end or row + j + 1 == added or j + 1 == n_step:
            return total, gamma ** (j + 1), step.next_obs
    raise AssertionError


def check(replay: Replay, log: Log, added: int, num_envs: int, gamma: float, n_step: int, draws: int) -> set[int]:
    """Compares every distinct sample with the log; returns which (row, environment) pairs came, as numbers."""
    batch = replay.sample(draws)
    ids, first = np.unique(batch.action.numpy(), return_index=True)
    for number, b in zip(ids.tolist(), first.tolist(), strict=True):
        row, env = divmod(number, num_envs)
        reward, discount, next_obs = chain(log, row, env, n_step, gamma, added)
        assert torch.equal(batch.obs[b], log[row, env].obs), (row, env)
        assert torch.equal(batch.next_obs[b], next_obs), (row, env)
        assert batch.reward[b].item() == pytest.approx(reward, rel=1e-6)
        assert batch.discount[b].item() == pytest.approx(discount, rel=1e-6)
    return set(ids.tolist())


EPISODES = [
    [(5, TASK_END), (2, TIME_LIMIT), (1, TASK_END), (9, TIME_LIMIT), (1, TIME_LIMIT)],
    [(3, TIME_LIMIT), (7, TASK_END), (4, TIME_LIMIT)],
]


@each_store
@pytest.mark.parametrize("empty_rows", [False, True], ids=["no_empty_rows", "empty_rows"])
@pytest.mark.parametrize("n_step", [1, 2, 3, 5])
def test_every_sampleable_transition_over_three_wraps(store: str, empty_rows: bool, n_step: int) -> None:
    rows, num_envs = 11, len(EPISODES)
    transitions, log = played(codes_of(3 * (rows + STACK) + 5, EPISODES, losses=True), empty_rows)
    replay = make_replay(store, rows * num_envs, num_envs, 0.5, n_step)
    for added, transition in enumerate(transitions, start=1):
        add(replay, transition)
        seen = check(replay, log, added, num_envs, 0.5, n_step, draws=500)
        newest = {
            r * num_envs + i for r in range(max(0, added - rows), added) for i in range(num_envs) if log[r, i].valid
        }
        assert newest <= seen, "the newest `capacity` transitions can be drawn"
        if store == "vector" or added >= rows + STACK:
            assert seen == newest, "and no others"
            assert len(replay) == min(added, rows) * num_envs


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_samples_follow_the_definition_for_any_flags(data: st.DataObject) -> None:
    num_envs = data.draw(st.integers(1, 3))
    row = st.lists(
        st.sampled_from([ORDINARY] * 3 + [TASK_END, TIME_LIMIT, LIFE_LOSS]), min_size=num_envs, max_size=num_envs
    )
    codes = data.draw(st.lists(row, min_size=1, max_size=25))
    n_step, capacity = data.draw(st.integers(1, 6)), data.draw(st.integers(2 * num_envs, 12 * num_envs))
    transitions, log = played(codes, data.draw(st.booleans()))
    for store in STORES:
        replay = make_replay(store, capacity, num_envs, 0.9, n_step)
        for transition in transitions:
            add(replay, transition)
        check(replay, log, len(transitions), num_envs, 0.9, n_step, draws=100)


# ---------------------------------------------------------------- written numbers


def scalar_replay(capacity: int, gamma: float, n_step: int) -> Replay:
    spec = EnvSpec("Index-v0", Box(-1, 1000, (1,), np.float32), Discrete(100), 1)
    return Replay(capacity, spec, gamma, n_step, np.random.default_rng(0))


def index_step(index: int, reward: float, terminal: bool, episode_end: bool) -> Transition:
    """obs, action and next_obs all name the row."""
    name = torch.tensor([[float(index)]])
    flags = (torch.tensor([flag]) for flag in (terminal, episode_end, True))
    return Transition(name, torch.tensor([index]), torch.tensor([reward]), name, *flags)


def by_action(batch: Batch) -> dict[int, tuple[float, float, int]]:
    """action -> (reward, discount, row whose next_obs it is)."""
    columns = (batch.reward.tolist(), batch.discount.tolist(), batch.next_obs[:, 0].long().tolist())
    return dict(zip(batch.action.tolist(), zip(*columns, strict=True), strict=True))


TIANSHOU = {
    ("A", 1): [2.6, 4, 4.4, 5.3, 6.2, 8, 8, 8.9, 9.8, 12],
    ("A", 2): [3.4, 4, 5.53, 6.62, 7.8, 8, 9.89, 10.98, 12.2, 12],
    ("A", 10): [3.4, 4, 5.678, 6.78, 7.8, 8, 10.122, 11.22, 12.2, 12],
    ("B", 1): [2.6, 3.6, 4.4, 5.3, 6.2, 8, 8, 8.9, 9.8, 12],
    ("B", 2): [3.36, 3.6, 5.53, 6.62, 7.8, 8, 9.89, 10.98, 12.2, 12],
    ("B", 10): [3.36, 3.6, 5.678, 6.78, 7.8, 8, 10.122, 11.22, 12.2, 12],
}


@pytest.mark.parametrize(("case", "n_step"), TIANSHOU, ids=str)
def test_n_step_targets_of_tianshou(case: str, n_step: int) -> None:
    """test/base/test_returns.py: a ring of 10 after 12 transitions."""
    nan = float("nan")
    next_value = torch.tensor([-12, nan, -4, -4, -6, -7, -8, nan, -10, -11])
    replay = scalar_replay(10, 0.1, n_step)
    for i in range(12):
        end = i % 10 in (1, 3, 7)
        add(replay, index_step(i % 10, i + 1.0, end and not (case == "B" and i % 10 == 3), end))
    found = by_action(replay.sample(500))
    for query, expected in zip([2, 3, 4, 5, 6, 7, 8, 9, 0, 1], TIANSHOU[case, n_step], strict=True):
        reward, discount, last = found[query]
        target = reward + (discount * next_value[last].item() if discount else 0.0)
        assert target == pytest.approx(expected, rel=1e-5), query


@pytest.mark.parametrize("terminal", [True, False], ids=["task_end", "time_limit"])
def test_n_step_rows_by_hand(terminal: bool) -> None:
    """gamma 0.5, n = 3, reward 1, five steps, the third ends the episode."""
    replay = scalar_replay(8, 0.5, 3)
    for i in range(5):
        add(replay, index_step(i, 1.0, terminal and i == 2, i == 2))
    keep = 0.0 if terminal else 1.0
    assert by_action(replay.sample(200)) == {
        0: (1.75, 0.125 * keep, 2),
        1: (1.5, 0.25 * keep, 2),
        2: (1.0, 0.5 * keep, 2),
        3: (1.5, 0.25, 4),
        4: (1.0, 0.5, 4),
    }


def test_the_newest_rows_of_a_wrapped_ring_do_not_run_into_the_oldest() -> None:
    """Stable-Baselines3, tests/test_n_step_replay.py: rewards 1, a ring of 10 after 12 steps."""
    replay = scalar_replay(10, 0.9, 3)
    for i in range(12):
        add(replay, index_step(i, 1.0, False, False))
    found = by_action(replay.sample(500))
    assert sorted(found) == list(range(2, 12))
    assert found[9] == pytest.approx((1 + 0.9 + 0.81, 0.9**3, 11))
    assert found[10] == pytest.approx((1.9, 0.81, 11))
    assert found[11] == pytest.approx((1.0, 0.9, 11))


def test_the_learners_reward_is_what_is_stored() -> None:
    replay = scalar_replay(4, 0.9, 1)
    replay.add(index_step(0, 200.0, False, False), torch.tensor([1.0]))
    assert replay.sample(3).reward.tolist() == [1.0] * 3


def test_continuous_actions_and_discrete_observations() -> None:
    spec = EnvSpec("Mixed-v0", Discrete(9), Box(-1, 1, (2,), np.float32), 2)
    replay = Replay(6, spec, 0.9, 1, np.random.default_rng(0))
    no, yes = torch.zeros(2, dtype=torch.bool), torch.ones(2, dtype=torch.bool)
    action = torch.tensor([[0.1, 0.2], [0.3, 0.4]])
    replay.add(
        Transition(torch.tensor([1, 2]), action, torch.zeros(2), torch.tensor([3, 4]), no, no, yes), torch.zeros(2)
    )
    batch = replay.sample(50)
    assert batch.obs.dtype == batch.next_obs.dtype == torch.int64
    assert torch.equal(batch.next_obs, batch.obs + 2)
    assert torch.equal(batch.action, action[batch.obs - 1])


# ---------------------------------------------------------------- what must not leak


@each_store
def test_stored_rows_do_not_follow_the_environments_buffers(store: str) -> None:
    transitions, log = played(codes_of(6, EPISODES), False)
    replay, reference = (make_replay(store, 40, 2) for _ in range(2))
    buffers = Transition(*(torch.empty_like(part) for part in transitions[0]))
    for transition in transitions:
        for buffer, part in zip(buffers, transition, strict=True):
            buffer.copy_(part)
        replay.add(buffers, buffers.reward)
        add(reference, transition)
    for buffer in buffers:
        buffer.fill_(1)
    batch = replay.sample(100)
    equal(batch, reference.sample(100))
    for part in batch:
        part.fill_(1)  # and samples are copies
    check(replay, log, 6, 2, 0.5, 1, 200)


@each_store
@pytest.mark.parametrize("empty_rows", [False, True], ids=["no_empty_rows", "empty_rows"])
def test_sampling_is_uniform_and_passes_over_empty_rows(store: str, empty_rows: bool) -> None:
    transitions, log = played(codes_of(50, EPISODES), empty_rows)
    replay = make_replay(store, 20, 2)
    for transition in transitions:
        add(replay, transition)
    wanted = [r * 2 + i for r in range(40, 50) for i in range(2) if log[r, i].valid]
    assert (len(wanted) < 20) == empty_rows
    ids, counts = np.unique(replay.sample(20_000).action.numpy(), return_counts=True)
    assert ids.tolist() == wanted
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


@each_store
def test_slots_that_were_never_written_are_never_read(store: str) -> None:
    transitions, _ = played(codes_of(7, EPISODES, losses=True), True)
    clean, poisoned = (make_replay(store, 40, 2, n_step=5) for _ in range(2))
    for transition in transitions:
        add(clean, transition)
        add(poisoned, transition)
    poisoned._reward[7:] = float("nan")
    for flags in (poisoned._terminal, poisoned._episode_end, poisoned._valid):
        flags[7:] = True
    poisoned._action[7:] = 255
    inner: Any = poisoned._store
    if store == "frames":
        inner._frames[8 * 2 : -1] = 255  # row 7 holds the frames after the newest row, the last slot is zero
        inner._age[7:] = 255
    else:
        inner._obs[7:] = 255
        inner._next_obs[7:] = 255
    equal(clean.sample(500), poisoned.sample(500))


def test_a_terminals_next_observation_reaches_no_target() -> None:
    spec = EnvSpec("Index-v0", Box(-np.inf, np.inf, (1,), np.float32), Discrete(2), 1)
    replay = Replay(6, spec, 0.9, 3, np.random.default_rng(0))
    for i in range(6):
        step = index_step(i, 1.0, i % 3 == 2, i % 3 == 2)
        add(replay, step._replace(next_obs=step.next_obs / (i % 3 != 2)) if i % 3 == 2 else step)
    batch = replay.sample(100)
    assert not batch.discount.any()
    assert batch.reward.isfinite().all()
    assert batch.obs.isfinite().all()


# ---------------------------------------------------------------- saving, size


def equal(a: Batch, b: Batch) -> None:
    for part, other in zip(a, b, strict=True):
        assert torch.equal(part, other)


def copied(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: copied(value) for key, value in state.items()}
    return state.clone() if isinstance(state, Tensor) else state


@each_store
@pytest.mark.parametrize("empty_rows", [False, True], ids=["no_empty_rows", "empty_rows"])
@pytest.mark.parametrize("steps", [0, 1, 4, 10, 11, 12, 13, 14, 15, 36])
def test_a_restored_replay_draws_and_grows_as_the_original(store: str, empty_rows: bool, steps: int) -> None:
    """Rings of 10 rows (vector) and 13 (frames): before, at and after the wrap, inside episodes and at their ends."""
    transitions, log = played(codes_of(steps + 20, EPISODES), empty_rows)
    original = make_replay(store, 20, 2, n_step=3, seed=1)
    for transition in transitions[:steps]:
        add(original, transition)
        original.sample(3)
    restored = make_replay(store, 20, 2, n_step=3, seed=2)
    restored.load_state_dict(copied(original.state_dict()))
    for added in range(steps, steps + 20):
        if added:
            for _ in range(5):
                equal(original.sample(20), restored.sample(20))
        add(original, transitions[added])
        add(restored, transitions[added])
    check(restored, log, steps + 20, 2, 0.5, 3, 400)


@each_store
def test_memory_is_announced_before_it_is_taken(store: str) -> None:
    shape = (4, 84, 84)
    spec = EnvSpec("Big-v0", Box(0, 255, shape, np.uint8), Discrete(2), 4, frame_stack=4 if store == "frames" else 1)
    replay = Replay(400, spec, 0.9, 1, np.random.default_rng(0))
    announced = replay.bytes

    def observations() -> int:
        tensors = [t for name, t in vars(replay._store).items() if isinstance(t, Tensor) and name != "_next_age"]
        return sum(t.numel() * t.itemsize for t in tensors)

    assert observations() < 10_000
    frames = torch.zeros(4, *shape, dtype=torch.uint8)
    no, yes = torch.zeros(4, dtype=torch.bool), torch.ones(4, dtype=torch.bool)
    add(replay, Transition(frames, torch.zeros(4, dtype=torch.int64), torch.zeros(4), frames, no, no, yes))
    small = sum(t.numel() * t.itemsize for t in vars(replay).values() if isinstance(t, Tensor))
    assert announced == replay.bytes == observations() + small


def test_a_million_atari_steps_fit_into_7_2_gb() -> None:
    spec = EnvSpec("Atari-v0", Box(0, 255, (4, 84, 84), np.uint8), Discrete(6), 8, frame_stack=4)
    replay = Replay(1_000_000, spec, 0.99, 1, np.random.default_rng(0))
    assert 1_000_000 * 84 * 84 <= replay.bytes <= 7.2e9


def test_several_senses_are_stored_as_each_would_be_alone() -> None:
    """The same draws from a replay of parts, and from one of each part, at starts, ends and after the ring is full."""
    rng = np.random.default_rng(0)
    boxes = {"camera": Box(0, 255, (2, 3), np.uint8), "radar": Box(-1, 1, (4,), np.float32)}

    def spec(space: Any) -> EnvSpec:
        return EnvSpec("senses", space, Discrete(2), num_envs=2)

    def make(space: Any) -> Replay:
        return Replay(12, spec(space), 0.9, 2, np.random.default_rng(1))

    together, apart = make(Dict(boxes)), {name: make(space) for name, space in boxes.items()}
    for row in range(11):
        obs, next_obs = (
            {
                "camera": torch.from_numpy(rng.integers(256, size=(2, 2, 3), dtype=np.uint8)),
                "radar": torch.from_numpy(rng.random((2, 4), np.float32)),
            }
            for _ in range(2)
        )
        end = torch.tensor([row == 4, False])
        step = Transition(obs, torch.tensor([row, row]) % 2, torch.rand(2), next_obs, end, end, torch.ones(2) > 0)
        together.add(step, step.reward)
        for name, replay in apart.items():
            replay.add(step._replace(obs=obs[name], next_obs=next_obs[name]), step.reward)
        batch = together.sample(6)
        for name, replay in apart.items():
            alone = replay.sample(6)
            assert torch.equal(batch.obs[name], alone.obs)  # type: ignore[index, arg-type]
            assert torch.equal(batch.next_obs[name], alone.next_obs)  # type: ignore[index, arg-type]
            assert torch.equal(batch.discount, alone.discount)
    assert together.bytes > sum(replay._store.bytes for replay in apart.values())
    restored = make(Dict(boxes))
    restored.load_state_dict(together.state_dict())
    one, two = together.sample(20), restored.sample(20)
    assert all(torch.equal(one.obs[name], two.obs[name]) for name in boxes)  # type: ignore[index]
