"""Replay of sequences: consecutive steps of one environment with their own state, in both stores, across wraps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from contract import EnvSpec, Transition
from memory.sequences import SequenceReplay

LENGTH, NUM_ENVS = 4, 3


def make(capacity: int, stack: int = 1, seed: int = 0) -> SequenceReplay:
    space = Box(0, 255, (stack, 1, 2), np.uint8) if stack > 1 else Box(-1, 1000, (1,), np.float32)
    spec = EnvSpec("Index-v0", space, Discrete(1000), NUM_ENVS, frame_stack=stack)
    return SequenceReplay(capacity, spec, LENGTH, 2, np.random.default_rng(seed))


def observation(env: int, episode: int, t: int, stack: int) -> Tensor:
    """Names the episode and the step; a stack has zeros before the episode's first frame."""
    if stack == 1:
        return torch.tensor([100.0 * episode + t])
    frames = [[episode + 1, s + 1] if s >= 0 else [0, 0] for s in range(t - stack + 1, t + 1)]
    return torch.tensor(frames, dtype=torch.uint8)[:, None, :]


def play(replay: SequenceReplay, rows: int, stack: int = 1, first: int = 0) -> None:
    """Episodes of environment i have 5 + i steps. Rewards name the row, states the row and the environment."""
    for row in range(first, first + rows):
        episode, t = zip(*(divmod(row, 5 + i) for i in range(NUM_ENVS)), strict=True)
        end = torch.tensor([t[i] == 4 + i for i in range(NUM_ENVS)])
        step = Transition(
            obs=torch.stack([observation(i, episode[i], t[i], stack) for i in range(NUM_ENVS)]),
            action=row * NUM_ENVS + torch.arange(NUM_ENVS),
            reward=torch.full((NUM_ENVS,), float(row)),
            next_obs=torch.stack([observation(i, episode[i], t[i] + 1, stack) for i in range(NUM_ENVS)]),
            terminal=end & (row % 2 == 0),
            episode_end=end,
            valid=torch.tensor([True, stack > 1 or row % 7 != 3, True]),
        )
        state = torch.tensor([[float(row), float(i)] for i in range(NUM_ENVS)])
        replay.add(step, step.reward, state, torch.tensor([t[i] == 0 for i in range(NUM_ENVS)]))


@pytest.mark.parametrize("stack", [1, 3], ids=["vector", "frames"])
@pytest.mark.parametrize("rows", [4, 9, 12, 13, 40])
def test_a_sequence_is_what_was_played(stack: int, rows: int) -> None:
    replay = make(12 * NUM_ENVS, stack)
    play(replay, rows, stack)
    found = replay.sample(300)
    begun = set()
    for b in range(300):
        start, env = (int(x) for x in found.state[b])
        begun.add((start, env))
        for k in range(LENGTH):
            row = start + k
            episode, t = divmod(row, 5 + env)
            assert int(found.action[k, b]) == row * NUM_ENVS + env
            assert found.reward[k, b] == row
            assert torch.equal(found.obs[k, b], observation(env, episode, t, stack))
            assert torch.equal(found.next_obs[k, b], observation(env, episode, t + 1, stack))
            assert bool(found.episode_start[k, b]) == (t == 0)
            assert bool(found.episode_end[k, b]) == (t == 4 + env)
            assert bool(found.terminal[k, b]) == (t == 4 + env and row % 2 == 0)
            assert bool(found.valid[k, b]) == (env != 1 or stack > 1 or row % 7 != 3)
    newest = range(max(0, rows - 12), rows - LENGTH + 1)
    assert {(row, env) for row in newest for env in range(NUM_ENVS)} <= begun
    if stack == 1 or rows <= 12:
        assert len(begun) == len(replay) == len(newest) * NUM_ENVS, "and no others"


def copied(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: copied(value) for key, value in state.items()}
    return state.clone() if isinstance(state, Tensor) else state


@pytest.mark.parametrize("stack", [1, 3], ids=["vector", "frames"])
@pytest.mark.parametrize("rows", [0, 5, 12, 13, 31])
def test_a_restored_replay_draws_and_grows_as_the_original(stack: int, rows: int) -> None:
    original, restored = make(12 * NUM_ENVS, stack, seed=1), make(12 * NUM_ENVS, stack, seed=2)
    play(original, rows, stack)
    restored.load_state_dict(copied(original.state_dict()))
    for replay in (original, restored):
        play(replay, 6, stack, first=rows)
    one, two = original.sample(50), restored.sample(50)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_memory_is_announced_before_it_is_taken() -> None:
    replay = make(600)
    announced = replay.bytes
    play(replay, 1)
    columns = [t for t in (*vars(replay).values(), *vars(replay._store).values()) if isinstance(t, Tensor)]
    assert announced == sum(t.numel() * t.itemsize for t in columns)
