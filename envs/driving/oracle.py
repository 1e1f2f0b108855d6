"""Exact answers: the transition table of a small city, its optimal values, the time from every state to its goal."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from envs.driving.batch import DrivingBatch
from envs.driving.maps import FIRST_DRIVABLE, LAST_DRIVABLE
from envs.driving.routes import distances, goal_poses, timed_moves
from envs.driving.tables import Tables

Table = dict[int, dict[int, list[tuple[float, int, float, bool]]]]
"""`P[state][action]` is a list of (probability, next state, reward, terminated), as in Gymnasium's toy texts."""
NUM_ACTIONS = 5


class Model(NamedTuple):
    """A deterministic Markov decision process with S states and A actions."""

    next_state: NDArray[np.int64]
    """(S, A)."""
    reward: NDArray[np.float64]
    """(S, A)."""
    terminal: NDArray[np.bool_]
    """(S, A)."""

    def table(self) -> Table:
        """The same as nested dicts."""
        rows = zip(self.next_state.tolist(), self.reward.tolist(), self.terminal.tolist(), strict=True)
        return {
            s: {a: [(1.0, *answer)] for a, answer in enumerate(zip(*row, strict=True))} for s, row in enumerate(rows)
        }


def tabular_model(batch: DrivingBatch) -> Model:
    """The process of a city without traffic, found by letting the kernels take every action in every state.

    Args:
        batch: an environment with obs=state; only its parameters are used.

    Returns:
        The model. Cells that cannot be entered, and the goal, lead to themselves with reward 0 and end the episode.
    """
    tables = batch.tables
    kind = tables.cities[0].kind
    height, width = kind.shape
    states = np.arange(height * width * 12)
    cell = states // 12
    row, column = cell // width, cell % width
    open_ = (kind >= FIRST_DRIVABLE).ravel()[cell] & (kind <= LAST_DRIVABLE).ravel()[cell]
    inside = (row + tables.margin) * tables.width + column + tables.margin
    live = np.flatnonzero(open_ & (inside != tables.goal[0, 0]))

    trial = DrivingBatch(batch.config, len(live) * NUM_ACTIONS)
    trial.reset(np.zeros(trial.num_envs, np.uint32), np.zeros(trial.num_envs, np.int32))
    state = trial.state_dict()
    state["pose"] = np.repeat(inside[live] * 4 + live // 3 % 4, NUM_ACTIONS).astype(np.int32)
    state["speed"] = np.repeat(live % 3, NUM_ACTIONS).astype(np.int32)
    trial.load_state_dict(state)
    trial.action.assign(np.tile(np.arange(NUM_ACTIONS), len(live)))
    trial.step()

    model = Model(
        np.repeat(states[:, None], NUM_ACTIONS, axis=1),
        np.zeros((len(states), NUM_ACTIONS)),
        np.ones((len(states), NUM_ACTIONS), bool),
    )
    model.next_state[live] = trial.next_obs["state"].numpy().reshape(-1, NUM_ACTIONS)
    model.reward[live] = trial.reward.numpy().reshape(-1, NUM_ACTIONS)
    model.terminal[live] = trial.terminal.numpy().reshape(-1, NUM_ACTIONS)
    return model


def value_iteration(model: Model, gamma: float, tolerance: float = 1e-12) -> NDArray[np.float64]:
    """Optimal action values.

    Equation:
        Q(s, a) = r(s, a) + gamma * (1 - terminal(s, a)) * max_a' Q(s'(s, a), a')

    Source:
        Bellman 1957; Sutton and Barto 2018, section 4.4.

    Args:
        model: S states, A actions.
        gamma: discount, in [0, 1); or 1 if every policy ends.
        tolerance: largest change at which iteration stops.

    Returns:
        (S, A) float64.
    """
    q = np.zeros(model.reward.shape)
    while True:
        better = model.reward + gamma * ~model.terminal * q.max(axis=1)[model.next_state]
        if np.abs(better - q).max() <= tolerance:
            return better
        q = better


def steps_to_goal(tables: Tables, top_speed: int) -> NDArray[np.int16]:
    """The shortest legal time from every state to every goal, traffic aside, for an ego of that top speed.

    Returns:
        (M * K, cells * 12) int16 environment steps, cells counted with the margin; `routes.UNREACHABLE` where there is
        no legal way.
    """
    shape = (tables.height, tables.width)
    found = []
    for m in range(len(tables.cities)):
        lanes = ((tables.ground[m] >> 3) & 15).astype(np.uint8).reshape(shape)
        goals = np.stack([tables.goal[m] // tables.width, tables.goal[m] % tables.width], axis=1)
        after, through = timed_moves(lanes, top_speed)
        found.append(distances(after, goal_poses(goals, shape, 12), through))
    return np.concatenate(found)
