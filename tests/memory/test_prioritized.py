"""Prioritised replay: the sum tree against a naive one, closed forms, weights, what may be drawn, exact restoration."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from gymnasium.spaces import Box, Discrete
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from contract import EnvSpec, Transition
from memory.prioritized import PRIORITY_FLOOR, PrioritizedReplay, SumTree


def index_steps(rows: int, num_envs: int, stack: int = 1) -> list[Transition]:
    """Steps whose action is row * num_envs + environment."""
    shape = (stack, 1, 1) if stack > 1 else (1,)
    flags = torch.zeros(num_envs, dtype=torch.bool)
    steps = []
    for row in range(rows):
        action = row * num_envs + torch.arange(num_envs)
        obs = torch.zeros(num_envs, *shape, dtype=torch.uint8 if stack > 1 else torch.float32)
        steps.append(Transition(obs, action, action.float(), obs, flags, flags, ~flags))
    return steps


def make(
    capacity: int, num_envs: int = 1, alpha: float = 0.5, stack: int = 1, n_step: int = 1, seed: int = 0
) -> PrioritizedReplay:
    space = Box(0, 255, (stack, 1, 1), np.uint8) if stack > 1 else Box(-1, 1, (1,), np.float32)
    spec = EnvSpec("Index-v0", space, Discrete(1000), num_envs, frame_stack=stack)
    return PrioritizedReplay(capacity, spec, 0.9, n_step, alpha, np.random.default_rng(seed))


def fill(replay: PrioritizedReplay, steps: list[Transition]) -> None:
    for step in steps:
        replay.add(step, step.reward)


def give(replay: PrioritizedReplay, priorities: dict[int, float]) -> None:
    """Draws until every action has been given its priority."""
    missing = set(priorities)
    for _ in range(1000):
        batch, _ = replay.sample(32, 0.4)
        replay.update_priorities(torch.tensor([priorities[a] for a in batch.action.tolist()]))
        missing -= set(batch.action.tolist())
        if not missing:
            return
    raise AssertionError


# ---------------------------------------------------------------- the tree


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_the_tree_equals_a_naive_list(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 20))
    tree, naive = SumTree(size), np.zeros(size)
    whole = st.integers(0, 8).map(float)  # sums of these are exact, so that every boundary is hit
    for _ in range(data.draw(st.integers(1, 6))):
        index = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=8)))
        value = np.array(data.draw(st.lists(whole, min_size=len(index), max_size=len(index))))
        tree.set(index, value)
        for i, v in zip(index, value, strict=True):
            naive[i] = v
        np.testing.assert_array_equal(tree.leaves, naive)
        np.testing.assert_array_equal(tree[index], naive[index])
        assert tree.total == naive.sum()
        if not tree.total:
            continue
        mass = np.arange(0, tree.total, 0.5)
        expected = [int(np.flatnonzero(np.cumsum(naive) > m)[0]) for m in mass]
        assert tree.find(mass).tolist() == expected


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=40), st.integers(0, 2**31))
def test_nothing_of_value_zero_is_ever_found(values: list[float], seed: int) -> None:
    tree = SumTree(len(values))
    tree.set(np.arange(len(values)), np.array(values))
    if tree.total > 0:
        mass = np.append(np.random.default_rng(seed).random(50), 1.0) * tree.total  # the sum itself included
        assert (np.array(values)[tree.find(mass)] > 0).all()


def test_sums_do_not_drift() -> None:
    generator = np.random.default_rng(0)
    tree = SumTree(100)
    for _ in range(2_000):
        tree.set(generator.integers(0, 100, 10), generator.random(10) * 10.0 ** generator.integers(-6, 7, 10))
    rebuilt = SumTree(100)
    rebuilt.set(np.arange(100), tree.leaves.copy())
    assert tree.total == rebuilt.total


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_what_is_no_priority_is_refused(bad: float) -> None:
    tree = SumTree(3)
    tree.set(np.arange(3), np.array([1.0, 2.0, 3.0]))
    with pytest.raises(ValueError, match="priorities must be finite and not negative"):
        tree.set(np.array([0, 1]), np.array([5.0, bad]))
    assert tree.leaves.tolist() == [1.0, 2.0, 3.0]


# ---------------------------------------------------------------- closed forms for p = [1, 2, 4]

CLOSED_FORMS = [  # alpha, P(i) = p**alpha / sum, w / max w for beta 0.4
    (0.5, [0.22654092, 0.32037724, 0.45308184], [1, 0.87055056, 0.75785828]),
    (0.6, [0.20776573, 0.31491396, 0.47732031], [1, 0.84674531, 0.71697762]),
    (0.0, [1 / 3, 1 / 3, 1 / 3], [1, 1, 1]),
    (1.0, [1 / 7, 2 / 7, 4 / 7], [1, 0.5**0.4, 0.25**0.4]),
]


@pytest.mark.parametrize(("alpha", "probability", "weight"), CLOSED_FORMS)
def test_probabilities_and_weights(alpha: float, probability: list[float], weight: list[float]) -> None:
    replay = make(3, alpha=alpha)
    fill(replay, index_steps(3, 1))
    give(replay, {0: 1.0, 1: -2.0, 2: 4.0})  # an error counts by its size
    counts, weights = np.zeros(3), {}
    for _ in range(100):
        batch, w = replay.sample(1000, 0.4)
        assert w.dtype == torch.float32
        counts += np.bincount(batch.action, minlength=3)
        weights |= dict(zip(batch.action.tolist(), w.tolist(), strict=True))
    # Stratified draws scatter less than independent ones: each batch is within 2 of the expected count.
    np.testing.assert_allclose(counts / 100_000, probability, atol=2e-3)
    assert [weights[i] for i in range(3)] == pytest.approx(weight, rel=1e-5)


def test_single_draws_follow_the_probabilities() -> None:
    replay = make(3, alpha=0.5)
    fill(replay, index_steps(3, 1))
    give(replay, {0: 1.0, 1: 2.0, 2: 4.0})
    drawn = [int(replay.sample(1, 0.4)[0].action) for _ in range(5_000)]
    expected = 5_000 * np.array([0.22654092, 0.32037724, 0.45308184])
    assert scipy.stats.chisquare(np.bincount(drawn), expected).pvalue > 1e-3


def test_beta_one_makes_the_weighted_mean_that_of_uniform_draws() -> None:
    replay = make(4, alpha=0.7)
    fill(replay, index_steps(4, 1))
    give(replay, {0: 1.0, 1: 2.0, 2: 4.0, 3: 8.0})
    batch, weight = replay.sample(100_000, 1.0)
    shares = [float(weight[batch.action == i].sum()) for i in range(4)]
    np.testing.assert_allclose(np.array(shares) / sum(shares), 0.25, atol=1e-3)


# ---------------------------------------------------------------- priorities


def leaf(replay: PrioritizedReplay, slot: int) -> float:
    return float(replay._tree.leaves[slot])


def test_a_new_transition_has_the_highest_priority_so_far() -> None:
    replay = make(4, alpha=0.5)
    first, second, third, *_ = index_steps(5, 1)
    replay.add(first, first.reward)
    assert leaf(replay, 0) == 1.0
    replay.sample(1, 0.4)
    replay.update_priorities(torch.tensor([9.0]))
    assert leaf(replay, 0) == pytest.approx(3.0)  # 9 ** 0.5
    replay.add(second, second.reward)
    assert leaf(replay, 1) == pytest.approx(3.0)
    give(replay, {0: 0.5, 1: 0.25})
    replay.add(third, third.reward)
    assert leaf(replay, 2) == pytest.approx(3.0)


def test_no_error_still_leaves_a_chance() -> None:
    replay = make(2, alpha=0.5)
    fill(replay, index_steps(2, 1))
    give(replay, {0: 0.0, 1: 1.0})
    assert leaf(replay, 0) == pytest.approx(PRIORITY_FLOOR**0.5)


def test_an_error_that_is_not_finite_is_refused() -> None:
    replay = make(2)
    fill(replay, index_steps(2, 1))
    replay.sample(2, 0.4)
    with pytest.raises(ValueError, match="finite"):
        replay.update_priorities(torch.tensor([1.0, float("nan")]))


# ---------------------------------------------------------------- what may be drawn


@pytest.mark.parametrize("stack", [1, 3], ids=["vector", "frames"])
@pytest.mark.parametrize("num_envs", [1, 3])
def test_what_uniform_replay_may_draw_and_nothing_else(stack: int, num_envs: int) -> None:
    replay = make(8 * num_envs, num_envs, stack=stack, n_step=2)
    for added, step in enumerate(index_steps(40, num_envs, stack), start=1):
        replay.add(step, step.reward)
        oldest, newest = replay._replay.sampleable()
        assert newest == added - 1
        wanted = {row * num_envs + env for row in range(oldest, newest + 1) for env in range(num_envs)}
        batch, _ = replay.sample(200, 0.4)
        assert set(batch.action.tolist()) == wanted


def test_a_sample_is_the_transition_that_was_added() -> None:
    """Rewards name the row: with n = 2 a sample holds its own and gamma times the next."""
    replay = make(6, 2, n_step=2)
    fill(replay, index_steps(17, 2))
    batch, _ = replay.sample(300, 0.4)
    last = batch.action >= 16 * 2
    expected = batch.action + torch.where(last, 0.0, 0.9 * (batch.action + 2))
    torch.testing.assert_close(batch.reward, expected)


def test_the_empty_rows_of_resetting_environments_are_never_drawn() -> None:
    replay = make(8, 2)
    for row, step in enumerate(index_steps(30, 2)):
        replay.add(step._replace(valid=torch.tensor([row % 3 != 0, row % 4 != 1])), step.reward)
    batch, _ = replay.sample(500, 0.4)
    row, env = batch.action // 2, batch.action % 2
    assert not ((env == 0) & (row % 3 == 0)).any()
    assert not ((env == 1) & (row % 4 == 1)).any()


# ---------------------------------------------------------------- saving, size


def copied(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: copied(value) for key, value in state.items()}
    return state.clone() if isinstance(state, Tensor) else state


@pytest.mark.parametrize("stack", [1, 3], ids=["vector", "frames"])
@pytest.mark.parametrize("rows", [1, 5, 9, 10, 30])
def test_a_restored_replay_draws_and_grows_as_the_original(stack: int, rows: int) -> None:
    steps = index_steps(rows + 20, 2, stack)
    original, restored = make(18, 2, stack=stack, seed=1), make(18, 2, stack=stack, seed=2)
    for step in steps[:rows]:
        original.add(step, step.reward)
        batch, _ = original.sample(4, 0.4)
        original.update_priorities(batch.reward + 0.1)
    restored.load_state_dict(copied(original.state_dict()))
    for step in steps[rows:]:
        for replay in (original, restored):
            replay.add(step, step.reward)
        (one, w1), (two, w2) = original.sample(8, 0.6), restored.sample(8, 0.6)
        assert torch.equal(one.action, two.action)
        assert torch.equal(w1, w2)
        for replay in (original, restored):
            replay.update_priorities(one.reward * 0.3)
    assert np.array_equal(original._tree._nodes, restored._tree._nodes)


def test_memory_counts_the_tree() -> None:
    replay = make(1_000_000)
    assert replay.bytes - replay._replay.bytes == 2 * 2**20 * 8
