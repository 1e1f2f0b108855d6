"""Exact dynamic programming against numbers that are published or derived by hand.

python -m benchmarks.planning             # a few seconds; writes results/planning.json
"""

from __future__ import annotations

import sys
from functools import partial

import numpy as np

from benchmarks.record import write_result
from benchmarks.textbook import model_of
from envs.tables import Outcome, TabularModel
from rules.planning import evaluate_policy, finite_horizon_value, value_iteration
from rules.tabular import epsilon_greedy, epsilon_soft_value, greedy_value

MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))
Cell = tuple[int, int]


def gridworld(
    size: int, jumps: dict[Cell, tuple[Cell, float]], edge_reward: float, step_reward: float, ends: tuple[int, ...] = ()
) -> TabularModel:
    """Sutton and Barto's square gridworlds: moves over the edge stay, `jumps` map a cell to (cell, reward)."""
    table: dict[int, dict[int, list[Outcome]]] = {}
    for s in range(size * size):
        row, column = divmod(s, size)
        table[s] = {}
        for a, (down, right) in enumerate(MOVES):
            to = (row + down, column + right)
            if (row, column) in jumps:
                (to_row, to_column), reward = jumps[row, column]
            elif 0 <= to[0] < size and 0 <= to[1] < size:
                (to_row, to_column), reward = to, step_reward
            else:
                (to_row, to_column), reward = (row, column), edge_reward
            next_state = to_row * size + to_column
            over = s in ends
            table[s][a] = [(1.0, next_state, 0.0 if over else reward, over or next_state in ends)]
    return TabularModel.from_outcomes(table, np.full(size * size, 1 / size**2))


def optimum(env_id: str, gamma: float, **kwargs: object) -> float:
    """Best value from where episodes begin."""
    model = model_of(env_id, **kwargs)
    return float(model.start @ greedy_value(value_iteration(model, gamma)[0]))


def limited(env_id: str, horizon: int, planned_with: float | None = None) -> float:
    """Best undiscounted return within a time limit; or that of the policy which is greedy at another discount."""
    model = model_of(env_id)
    if planned_with is None:
        return float(finite_horizon_value(model, horizon, 1.0)[0])
    policy = epsilon_greedy(value_iteration(model, planned_with)[0], 0.0)
    return float(finite_horizon_value(model, horizon, 1.0, policy=policy)[0])


def exploring(env_id: str, epsilon: float, of_optimal: bool = False) -> float:
    """Value of the best epsilon-soft policy; or of the epsilon-greedy policy of Q*."""
    model = model_of(env_id)
    backup = greedy_value if of_optimal else partial(epsilon_soft_value, epsilon=epsilon)
    q, _ = value_iteration(model, 1.0, backup)
    return float(model.start @ evaluate_policy(model, epsilon_greedy(q, epsilon), 1.0))


def numbers() -> list[tuple[str, float, float]]:
    """(what, expected, ours)."""
    lake, large = "FrozenLake-v1", "FrozenLake8x8-v1"
    four = evaluate_policy(gridworld(4, {}, -1.0, -1.0, ends=(0, 15)), np.full((16, 4), 0.25), 1.0)
    five = gridworld(5, {(0, 1): ((4, 1), 10.0), (0, 3): ((2, 3), 5.0)}, -1.0, 0.0)
    random, best = evaluate_policy(five, np.full((25, 4), 0.25), 0.9), greedy_value(value_iteration(five, 0.9)[0])
    walk = evaluate_policy(model_of("Textbook/RandomWalk-v0"), np.ones((7, 1)), 1.0)
    return [
        ("FrozenLake 4x4, slippery, gamma 1: V* at the start, 14/17", 14 / 17, optimum(lake, 1.0)),
        ("the same, gamma 0.99", 0.5420259320, optimum(lake, 0.99)),
        ("the same, gamma 0.95", 0.1804715784, optimum(lake, 0.95)),
        ("the same, gamma 0.9", 0.0688909049, optimum(lake, 0.9)),
        ("the same, best success rate within 100 steps", 0.7441902878, limited(lake, 100)),
        ("the same, policy of gamma 0.999", 0.7401648978, limited(lake, 100, 0.999)),
        ("FrozenLake 4x4, not slippery, gamma 0.99: 0.99^5", 0.99**5, optimum(lake, 0.99, is_slippery=False)),
        ("FrozenLake 8x8, slippery, gamma 1", 1.0, optimum(large, 1.0)),
        ("the same, gamma 0.99", 0.4146403618, optimum(large, 0.99)),
        ("the same, best success rate within 200 steps", 0.9132201502, limited(large, 200)),
        ("the same, policy of gamma 0.999", 0.8856539193, limited(large, 200, 0.999)),
        ("CliffWalking, gamma 1", -13.0, optimum("CliffWalking-v1", 1.0)),
        ("the same, best epsilon-soft policy, epsilon 0.1", -20.7076773987, exploring("CliffWalking-v1", 0.1)),
        ("the same, epsilon-greedy in Q*, ties shared", -50.8, exploring("CliffWalking-v1", 0.1, of_optimal=True)),
        ("windy gridworld: shortest path", -15.0, optimum("Textbook/WindyGridworld-v0", 1.0)),
        ("the same, king's moves", -7.0, optimum("Textbook/WindyGridworld-v0", 1.0, king_moves=True)),
        (
            "the same, king's moves and standing still",
            -7.0,
            optimum("Textbook/WindyGridworld-v0", 1.0, king_moves=True, stand_still=True),
        ),
        ("windy gridworld, best epsilon-soft policy", -17.0483228064, exploring("Textbook/WindyGridworld-v0", 0.1)),
        ("Taxi, gamma 1: 19 - 4.57 - 6.5", 7.93, optimum("Taxi-v4", 1.0)),
        ("the same, gamma 0.99", 6.3274643149, optimum("Taxi-v4", 0.99)),
        ("Figure 4.1, random policy: V of cell 1", -14.0, float(four[1])),
        ("the same, cell 3", -22.0, float(four[3])),
        ("Example 3.5, random policy, gamma 0.9: V of cell A", 8.789, float(random[1])),
        ("Example 3.8, gamma 0.9: V* of cell A", 24.419, float(best[1])),
        ("random walk of five states: V of the middle", 0.5, float(walk[3])),
    ]


def main() -> int:
    rows = [{"quantity": what, "expected": expected, "ours": ours} for what, expected, ours in numbers()]
    for row in rows:
        print(f"{row['quantity']}: {row['ours']:.10g} (expected {row['expected']:.10g})")
    write_result("planning", {"rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
