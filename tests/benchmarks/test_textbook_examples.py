"""Sutton and Barto's learning curves: small versions always, the published ones with `-m slow`."""

from itertools import pairwise

import numpy as np
import pytest
from matplotlib.figure import Figure

from benchmarks.textbook import (
    EXAMPLES,
    batch_errors,
    control,
    greedy_lengths,
    left_shares,
    model_of,
    n_step_errors,
    walks,
)
from tests.agents.tabular import TERMINAL, feed, make

WALK = np.arange(1, 6) / 6


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_published_numbers(name: str) -> None:
    example, _ = EXAMPLES[name]
    outside = [number for number in example(Figure(), False) if not number.inside]
    assert not outside


def test_on_the_cliff_q_learning_finds_the_edge_and_expected_sarsa_the_safer_path() -> None:
    model = model_of("CliffWalking-v1")
    results = {
        name: control(model, name, 8, 0.5, 0.1, 1.0, np.random.default_rng(0), episodes=250)
        for name in ("q_learning", "expected_sarsa", "sarsa")
    }
    online = {name: result.returns[:, 100:250].mean() for name, result in results.items()}
    assert -62 < online["q_learning"] < -38
    assert -24 < online["expected_sarsa"] < -18.5
    assert online["sarsa"] > online["q_learning"] + 10
    assert (greedy_lengths(model, results["q_learning"].q) == 13).all()
    assert (greedy_lengths(model, results["expected_sarsa"].q) == 15).all()


def test_windy_gridworld() -> None:
    model = model_of("Textbook/WindyGridworld-v0")
    runs = control(model, "sarsa", 8, 0.5, 0.1, 1.0, np.random.default_rng(0), steps=8000)
    assert 130 < runs.episodes[:, -1].mean() < 185


def test_maximization_bias() -> None:
    generator = np.random.default_rng(0)
    q, double = (left_shares(is_double, 500, 60, generator).mean(axis=0) for is_double in (False, True))
    assert q.max() > 0.85
    assert double[10:].max() < 0.5


def test_random_walk() -> None:
    episodes = walks(5, 60, 100, np.random.default_rng(0))
    td = n_step_errors(episodes, WALK, 0.5, np.array([0.05]), 1, 0.0)[0].mean(axis=0)
    mc = n_step_errors(episodes, WALK, 0.5, np.array([0.02]), None, 0.0)[0].mean(axis=0)
    assert td[0] == pytest.approx(np.sqrt((2 / 9 + 2 / 36) / 5), abs=1e-12)
    assert td[100] < 0.045 < mc[100]
    batch_td, batch_mc = (batch_errors(episodes, WALK, is_td).mean(axis=0) for is_td in (True, False))
    assert (batch_td[1:] < batch_mc[1:]).all()


@pytest.mark.parametrize(("n", "agent"), [(1, "sarsa"), (3, "n_step_sarsa"), (None, "monte_carlo")])
def test_many_walks_at_once_equal_the_agents_walk_by_walk(n: int | None, agent: str) -> None:
    episodes = walks(5, 4, 6, np.random.default_rng(3))
    errors = n_step_errors(episodes, WALK, 0.5, np.array([0.3]), n, 0.0)[0]
    for run in range(4):
        settings = {"n_step": n} if agent == "n_step_sarsa" else {}
        if agent == "monte_carlo":
            settings = {"visit": "every", "step_size_schedule": "constant"}
        learner = make(agent, 7, 1, gamma=1.0, step_size=0.3, initial_q=0.5, **settings)
        for e, (path, length) in enumerate(episodes):
            steps = [int(s) for s in path[run, : length[run] + 1]]
            for t, (s, to) in enumerate(pairwise(steps)):
                end = [TERMINAL] if t == length[run] - 1 else []
                feed(learner, (s, 0, float(to == 6), to, *end))
            rms = np.sqrt(((learner.table.q[1:-1, 0] - WALK) ** 2).mean())
            assert errors[run, e + 1] == pytest.approx(rms, abs=1e-12)
