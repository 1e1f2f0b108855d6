"""Exact shortest paths.

Two graphs, both of legal moves only (see `rules.py` for how the ego moves):

    cells   states (cell, heading), one move per cell: the length of a route, in cells
    time    states (cell, heading, speed), one move per environment step: the time of a route, in steps

Indices: `cell = row * W + column`, `pose = cell * 4 + heading`, `state = pose * 3 + speed`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs.driving.maps import STEPS, City, shift

UNREACHABLE = 32_767
"""The distance of what cannot be reached; int16's largest."""
KEEP, LEFT, RIGHT, ACCELERATE, BRAKE = range(5)
MAX_SPEED = 2
STRAIGHT, TURN_LEFT, TURN_RIGHT = range(3)


def legal_moves(lanes: NDArray[np.uint8]) -> NDArray[np.int32]:
    """The legal successors of every pose, wherever it stands itself.

    Args:
        lanes: (H, W) permitted headings.

    Returns:
        (H*W*4, 3) int32: the pose after going straight, left and right, -1 where the move is not legal.
    """
    h, w = lanes.shape
    cell = np.arange(h * w).reshape(h, w)
    moves = np.full((h, w, 4, 3), -1, np.int32)
    for heading in range(4):
        for move, side in ((STRAIGHT, 0), (TURN_LEFT, 3), (TURN_RIGHT, 1)):
            direction = (heading + side) % 4
            turns = (lanes >> direction & 1).astype(bool)  # else the car changes lane and keeps its heading
            after = np.where(turns, direction, heading)
            dr, dc = STEPS[direction]
            ahead = shift(lanes, (direction + 2) % 4)  # the lanes of the cell that is entered
            legal = (ahead >> after & 1).astype(bool)
            moves[:, :, heading, move] = np.where(legal, (cell + dr * w + dc) * 4 + after, -1)
    return moves.reshape(-1, 3)


def timed_moves(lanes: NDArray[np.uint8], top_speed: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The legal successors of every state under the five actions.

    Args:
        lanes: (H, W) permitted headings.
        top_speed: of the ego, 1 or 2.

    Returns:
        after: (H*W*12, 5) int32 state, -1 where the action is not legal.
        through: (H*W*12, 5) int32 state on the way, for moves of two cells, else -1.
    """
    moves = legal_moves(lanes)
    straight = moves[:, STRAIGHT]
    two = np.where(straight >= 0, straight[np.maximum(straight, 0)], -1)
    poses = len(moves)
    after = np.full((poses, 3, 5), -1, np.int32)
    through = np.full((poses, 3, 5), -1, np.int32)

    def at_speed(pose: NDArray[np.int32], speed: int) -> NDArray[np.int32]:
        return np.where(pose >= 0, pose * 3 + speed, -1)

    reached = [np.arange(poses, dtype=np.int32), straight, two]
    for speed in range(3):
        for action, new_speed in ((KEEP, speed), (ACCELERATE, min(speed + 1, top_speed)), (BRAKE, max(speed - 1, 0))):
            after[:, speed, action] = at_speed(reached[new_speed], new_speed)
            if new_speed == MAX_SPEED:
                through[:, speed, action] = at_speed(straight, new_speed)
        after[:, speed, LEFT] = at_speed(moves[:, TURN_LEFT], 1)
        after[:, speed, RIGHT] = at_speed(moves[:, TURN_RIGHT], 1)
    return after.reshape(-1, 5), through.reshape(-1, 5)


def distances(
    successors: NDArray[np.int32], goals: NDArray[np.bool_], through: NDArray[np.int32] | None = None
) -> NDArray[np.int16]:
    """Moves to the nearest goal state, for many goal sets at once: breadth-first, level by level, backwards.

    Args:
        successors: (S, A) int32, -1 for none.
        goals: (K, S) bool: the goal states of K tasks.
        through: (S, A) int32: a state passed on the way; passing a goal counts as reaching it.

    Returns:
        (K, S) int16, `UNREACHABLE` where no goal can be reached.
    """
    tasks, states = goals.shape
    first, before = _predecessors(successors)
    distance = np.full((tasks, states), UNREACHABLE, np.int16)
    distance[goals] = 0
    task, state = np.nonzero(goals)
    level = 0
    while len(task):
        level += 1
        next_task, next_state = _expand(first, before, task, state)
        if through is not None and level == 1:
            passing = _expand(*_predecessors(through), task, state)
            next_task, next_state = (
                np.concatenate(pair) for pair in zip((next_task, next_state), passing, strict=True)
            )
        new = distance[next_task, next_state] == UNREACHABLE
        task, state = next_task[new], next_state[new]
        flat = np.unique(task * states + state)
        task, state = flat // states, flat % states
        distance[task, state] = level
    return distance


def _predecessors(successors: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(S, A) successors -> the states before each state s: `before[first[s] : first[s + 1]]`."""
    states = len(successors)
    after = successors.ravel()
    order = np.argsort(after, kind="stable")
    order = order[np.searchsorted(after, 0, sorter=order) :]
    return np.searchsorted(after[order], np.arange(states + 1)), order // successors.shape[1]


def _expand(
    first: NDArray[np.int64], before: NDArray[np.int64], task: NDArray[np.int64], state: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Every predecessor of every (task, state)."""
    count = first[state + 1] - first[state]
    offset = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    return np.repeat(task, count), before[np.repeat(first[state], count) + offset]


def goal_poses(goals: NDArray[np.int32], shape: tuple[int, int], per_cell: int) -> NDArray[np.bool_]:
    """(K, 2) goal cells -> (K, H*W*per_cell) bool: every heading (and speed) at the goal."""
    marks = np.zeros((len(goals), shape[0] * shape[1], per_cell), bool)
    marks[np.arange(len(goals)), goals[:, 0] * shape[1] + goals[:, 1]] = True
    return marks.reshape(len(goals), -1)


def strong_component(city: City, pose: int) -> NDArray[np.bool_]:
    """(H*W*4,) bool: the poses from which `pose` can be reached and which can be reached from it."""
    moves = legal_moves(city.lanes)
    mark = np.zeros((1, len(moves)), bool)
    mark[0, pose] = True
    to_pose = distances(moves, mark)[0] < UNREACHABLE
    reached, frontier = mark[0].copy(), np.array([pose])
    while len(frontier):
        after = np.unique(moves[frontier])
        frontier = after[(after >= 0) & ~reached[after]]
        reached[frontier] = True
    return to_pose & reached


def manoeuvres(moves: NDArray[np.int32], distance: NDArray[np.int16]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """What a navigator would say at every pose: the next turn or lane change of the shortest route, and how far it is.

    Args:
        moves: (P, 3) int32 legal moves.
        distance: (K, P) int16 route lengths.

    Returns:
        move: (K, P) uint8: 0 if there is no route, 1 for straight on to the goal, 2 for left, 3 for right.
        cells: (K, P) uint8: cells to go straight before that move (before the goal, if there is none), at most 255.
    """
    length = np.where(moves >= 0, distance[:, np.maximum(moves, 0)], UNREACHABLE)  # (K, P, 3)
    best = length.argmin(axis=2)  # straight on wins a tie
    known = length.min(axis=2) < UNREACHABLE
    at_goal = distance == 0
    glides = known & (best == STRAIGHT) & ~at_goal
    move = np.where(at_goal, 1, np.where(known, best + 1, 0)).astype(np.uint8)
    hop = np.where(glides, moves[:, STRAIGHT], np.arange(len(moves)))  # (K, P); doubles its reach in every round
    cells = glides.astype(np.int32)
    while True:
        further = cells + np.take_along_axis(cells, hop, axis=1)
        if (further == cells).all():
            return np.take_along_axis(move, hop, axis=1), np.minimum(cells, 255).astype(np.uint8)
        cells, hop = further, np.take_along_axis(hop, hop, axis=1)
