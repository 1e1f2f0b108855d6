"""The yardsticks of the exact table, and that it runs what train.py would."""

import numpy as np
import pytest

from benchmarks.tabular_exact import CONTESTANTS, cell, setup_of, yardstick
from contract import Inspection
from rules.planning import value_iteration
from rules.tabular import boltzmann_value, epsilon_greedy, epsilon_soft_value, log_sum_exp_value

EXACT = {
    "q_learning": lambda q: q.max(axis=-1),
    "sarsa": lambda q: epsilon_soft_value(q, 0.1),
    "softmax_q_soft": lambda q: log_sum_exp_value(q, 0.1),
    "softmax_q_boltzmann": lambda q: boltzmann_value(q, 0.1),
}


@pytest.mark.parametrize("name", EXACT)
def test_the_fixed_point_has_no_error_and_the_inverted_table_a_large_one(name: str) -> None:
    setup = setup_of(CONTESTANTS[name], "FrozenLake-v1")
    error_of = yardstick(CONTESTANTS[name].measure, setup)
    q, _ = value_iteration(setup.model, 0.99, EXACT[name])
    visits = np.ones(q.shape, np.int64)
    assert error_of(Inspection({}, q, epsilon_greedy(q, 0.0), visits)) == pytest.approx(0, abs=1e-6)
    assert error_of(Inspection({}, -q, epsilon_greedy(-q, 0.0), visits)) > 0.05


def test_a_loss_is_a_share_of_the_best_value() -> None:
    setup = setup_of(CONTESTANTS["q_learning"], "CliffWalking-v1")
    q, _ = value_iteration(setup.model, 0.99)
    policy = epsilon_greedy(q, 0.0)
    policy[36] = [0.5, 0.0, 0.0, 0.5]  # up, or left against the wall: one step more on average
    best, later = -(1 - 0.99**13) / 0.01, -(1 - 0.99**12) / 0.01
    value = (-1 + 0.5 * 0.99 * later) / (1 - 0.5 * 0.99)
    loss = yardstick("off_policy", setup)(Inspection({}, q, policy, np.ones(q.shape, np.int64)))
    assert loss == pytest.approx((best - value) / -best)


def test_a_cell_says_what_ran() -> None:
    row = cell(CONTESTANTS["q_learning"], "CliffWalking-v1", 2, stepwise=True, more=("total_env_steps=10000",))
    assert row["command"] == "python train.py agent=q_learning env=CliffWalking-v1 total_env_steps=10000"
    assert (row["path"], row["num_envs"], row["time_limit"], row["seeds"]) == ("stepwise", 16, 200, 2)
    assert -1e-9 < row["median_error"] <= row["largest_error"] < 0.2
