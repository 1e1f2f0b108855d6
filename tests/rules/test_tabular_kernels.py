"""Compiled tabular learners against the pure rules, the model's probabilities, and the stepwise agents."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
import warp as wp
from hypothesis import given
from hypothesis import strategies as st

from envs.tables import TabularModel, tabular_model
from memory.population import Population
from rules.schedules import linear_schedule
from rules.tabular import (
    boltzmann_value,
    epsilon_greedy,
    expected_value,
    greedy_value,
    linear_step_size,
    log_sum_exp_value,
    td_update,
    visit_step_size,
)
from rules.tabular_kernels import RULES, Variant, alias_table, make_kernels
from tests.agents.tabular import Training

LIMIT = 7
TOTAL = 400
NUMBERS = {
    "gamma": 0.9,
    "step_size": 0.7,
    "step_size_end": 0.1,
    "step_size_power": 0.6,
    "total_steps": TOTAL,
    "rate_start": 0.9,
    "rate_end": 0.2,
    "rate_steps": 300,
}
SCHEDULES = dict(zip(RULES, ("constant", "visits", "linear", "constant", "visits", "linear", "constant"), strict=True))


def lake(limit: int | None = LIMIT) -> TabularModel:
    model = tabular_model(gym.make("FrozenLake-v1"), limit)
    assert model is not None
    return model


def variant(rule: str = "q_learning") -> Variant:
    """Shared by the tests below, so that each rule is compiled once."""
    return Variant(rule, 4, 3, SCHEDULES[rule], rate_decays=True)


def population(
    rule: str = "q_learning", num_seeds: int = 3, model: TabularModel | None = None, **changes
) -> Population:
    threads = changes.pop("threads", 1)
    return Population(variant(rule), model or lake(), NUMBERS | changes, num_seeds, seed=11, threads=threads)


def scramble(learners: Population) -> None:
    """Random tables, in which there are no ties."""
    learners.q.copy_(torch.randn(learners.q.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64))


class Replay:
    """One learner's table, moved by the pure rules along the kernel's own steps."""

    def __init__(self, rule: str, q: np.ndarray) -> None:
        self.rule, self.q = rule, q  # (S, tables, A)
        self.visits = np.zeros((len(q), q.shape[2]), int)

    def learn(self, time: int, s: int, a: int, r: float, s2: int, terminal: bool, drawn: int, table: int) -> None:
        rate = linear_schedule(time, NUMBERS["rate_start"], NUMBERS["rate_end"], NUMBERS["rate_steps"])
        self.visits[s, a] += 1
        alpha = {
            "constant": NUMBERS["step_size"],
            "linear": linear_step_size(time / TOTAL, NUMBERS["step_size"], NUMBERS["step_size_end"]),
            "visits": visit_step_size(int(self.visits[s, a]), NUMBERS["step_size"], NUMBERS["step_size_power"]),
        }[SCHEDULES[self.rule]]
        row = self.q[s2, table]
        value = {
            "q_learning": lambda: greedy_value(row),
            "double_q_learning": lambda: self.q[s2, 1 - table, row.argmax()],
            "sarsa": lambda: row[drawn],
            "softmax_sarsa": lambda: row[drawn],
            "expected_sarsa": lambda: expected_value(row, epsilon_greedy(row, rate)),
            "softmax_expected_sarsa": lambda: boltzmann_value(row, rate),
            "softmax_soft": lambda: log_sum_exp_value(row, rate),
        }[self.rule]()
        discount = 0.0 if terminal else NUMBERS["gamma"]
        self.q[s, table, a] = td_update(float(self.q[s, table, a]), r, discount, float(value), alpha)


@pytest.mark.parametrize("rule", RULES)
def test_tables_are_those_of_the_pure_rules_along_the_same_steps(rule):
    model, learners = lake(), population(rule)
    scramble(learners)
    replays = [Replay(rule, q.numpy().copy()) for q in learners.q]
    ends = {"terminal": 0, "limit": 0}
    for time in range(1, TOTAL + 1):
        state, action, length = (learners.array(name) for name in ("state", "action", "length"))
        learners.advance(1)
        outcome, drawn, table = (learners.array(f"last_{name}") for name in ("outcome", "drawn", "table"))
        s, a, k = np.unravel_index(outcome, model.next_state.shape)
        assert (s == state).all()
        assert (a == action).all()
        next_state, terminal = model.next_state[s, a, k], model.terminal[s, a, k]
        ended = terminal | (length + 1 == LIMIT)
        assert (learners.array("length") == np.where(ended, 0, length + 1)).all()
        assert (learners.array("state") == np.where(ended, 0, next_state)).all()
        if rule in ("sarsa", "softmax_sarsa"):
            assert (learners.array("action") == drawn)[~ended].all()
        ends["terminal"] += int(terminal.sum())
        ends["limit"] += int((ended & ~terminal).sum())
        for i, replay in enumerate(replays):
            reward = float(model.reward[s[i], a[i], k[i]])
            replay.learn(time, s[i], a[i], reward, int(next_state[i]), bool(terminal[i]), int(drawn[i]), int(table[i]))
    assert min(ends.values()) > 10
    for i, replay in enumerate(replays):
        np.testing.assert_allclose(learners.q[i].numpy(), replay.q, rtol=0, atol=1e-12)
        assert (learners.visits[i].numpy() == replay.visits).all()
    if rule == "double_q_learning":
        assert not torch.equal(learners.q[:, :, 0], learners.q[:, :, 1])


@pytest.mark.parametrize("rule", ["q_learning", "sarsa"])
def test_when_the_next_action_is_chosen(rule):
    """Q-learning acts on the table that the update has left, SARSA chose a' before it."""
    learners = population(rule, 64, rate_start=0.0, rate_end=0.0)
    scramble(learners)
    learners.advance(1)
    differs = 0
    for _ in range(100):
        before = learners.q[:, :, 0].numpy().copy()
        episodes = learners.episodes.copy()
        learners.advance(1)
        after = learners.q[:, :, 0].numpy()
        state, action, running = learners.array("state"), learners.array("action"), learners.episodes == episodes
        rows = np.arange(64)
        new, old = after[rows, state].argmax(axis=1), before[rows, state].argmax(axis=1)
        assert (action == np.where(running, old, new) if rule == "sarsa" else action == new).all()
        differs += int((new != old)[running].sum())
    assert differs > 10


def test_learners_do_not_depend_on_how_many_there_are_nor_on_launches_nor_on_threads():
    whole, alone, in_pieces = population(num_seeds=43, threads=2), population(num_seeds=1), population(num_seeds=43)
    whole.advance(500)
    alone.advance(500)
    for steps in (1, 2, 47, 450):
        in_pieces.advance(steps)
    assert torch.equal(whole.q[:1], alone.q)
    for name, value in whole.state_dict().items():
        assert np.array_equal(value, in_pieces.state_dict()[name]), name
    assert torch.equal(whole.q, in_pieces.q)
    assert len({tuple(visits.flatten().tolist()) for visits in whole.visits}) == 43


def test_adjacent_learners_are_not_correlated():
    learners = population(num_seeds=4000, rate_start=1.0, rate_end=1.0)
    learners.advance(60)
    length = learners.finished().mean_length
    assert abs(np.corrcoef(length[:-1], length[1:])[0, 1]) < 4 / np.sqrt(4000)


def surprise(counts: np.ndarray, probability: np.ndarray) -> float:
    """Standard deviations by which Pearson's chi-square exceeds what (rows of) counts should give."""
    expected = probability * counts.sum(axis=-1, keepdims=True)
    seen = expected > 0
    assert counts[~seen].sum() == 0
    freedom = (seen.sum(axis=-1) - 1).sum()
    chi_square = ((counts - expected)[seen] ** 2 / expected[seen]).sum()
    return float((chi_square - freedom) / np.sqrt(2 * freedom))


def random_model(num_states: int = 6, limit: int | None = 9) -> TabularModel:
    """Uneven probabilities, of which some are zero."""
    rng = np.random.default_rng(2)
    table = {}
    for s in range(num_states):
        table[s] = {}
        for a in range(4):
            p = rng.dirichlet([0.7, 0.7, 0.7]) if (s + a) % 3 else np.array([0.25, 0.75, 0.0])
            table[s][a] = [(p[k], int(rng.integers(num_states)), float(k), bool(k == 2)) for k in range(3)]
    return TabularModel.from_outcomes(table, rng.dirichlet(np.ones(num_states)), limit)


def test_outcomes_actions_and_starts_have_the_probabilities_they_should():
    model = random_model()
    learners = population(num_seeds=4000, model=model, rate_start=1.0, rate_end=1.0)
    outcomes, starts = np.zeros(model.next_state.size), np.bincount(learners.array("state"), minlength=6)
    for _ in range(50):
        learners.advance(1)
        outcomes += np.bincount(learners.array("last_outcome"), minlength=outcomes.size)
        starts += np.bincount(learners.array("state")[learners.array("length") == 0], minlength=6)
    counts = outcomes.reshape(model.next_state.shape)
    assert abs(surprise(counts, model.probability)) < 4
    assert abs(surprise(counts.sum(axis=2), np.full((6, 4), 0.25))) < 4
    assert abs(surprise(starts, model.start)) < 4


@pytest.mark.parametrize(
    ("rule", "rate", "q", "probability"),
    [
        ("q_learning", 0.0, [1.0, 0.0, 1.0, 1.0], [1 / 3, 0.0, 1 / 3, 1 / 3]),
        ("q_learning", 0.4, [0.0, 0.0, 1.0, 0.0], [0.1, 0.1, 0.7, 0.1]),
        ("softmax_sarsa", 0.5, [0.0, 0.5 * np.log(2), 0.5 * np.log(3), 0.5 * np.log(4)], [0.1, 0.2, 0.3, 0.4]),
    ],
)
def test_actions_have_the_probabilities_of_the_policy(rule, rate, q, probability):
    """Episodes of one step, and a step size of 0: the same state again and again."""
    model = lake(limit=1)
    learners = population(rule, 20_000, model, rate_start=rate, rate_end=rate, step_size=0.0, step_size_end=0.0)
    learners.q[:, 0, 0] = torch.tensor(q, dtype=torch.float64)
    counts = np.zeros(4)
    for _ in range(3):
        learners.advance(1)
        counts += np.bincount(learners.array("action"), minlength=4)
    assert abs(surprise(counts, np.array(probability))) < 4


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12).filter(lambda p: sum(p) > 0.01))
def test_an_alias_table_has_the_probabilities_it_was_made_from(weights):
    probability = np.array(weights) / sum(weights)
    threshold, other = alias_table(probability)
    keep = threshold / 2.0**32
    implied = keep + np.bincount(other, 1 - keep, len(weights))
    np.testing.assert_allclose(implied / len(weights), probability, atol=len(weights) * 2.0**-32)


@pytest.mark.parametrize("rule", ["q_learning", "sarsa"])
def test_learning_curves_are_those_of_the_stepwise_agent(rule):
    settings = {"gamma": 0.95, "step_size": 0.3, "epsilon_start": 0.2, "epsilon_end": 0.2, "initial_q": 0.5}
    numbers = {"gamma": 0.95, "step_size": 0.3, "rate_start": 0.2, "rate_end": 0.2}
    model, episodes = lake(20), 20
    compiled = Population(
        Variant(rule, 4, 3, SCHEDULES[rule], rate_decays=True),
        model,
        NUMBERS | numbers | {"step_size_end": 0.3},
        2000,
        seed=1,
        initial_q=0.5,
        history=episodes,
        threads=1,
    )
    compiled.advance(20 * episodes)
    assert compiled.episodes.min() >= episodes
    stepwise = np.zeros((25, episodes))
    for k in range(25):
        training, found = Training(rule, model, 1, 10_000, seed=k, **settings), []
        while len(found) < episodes:
            found += training.advance(100).episodes
        stepwise[k] = [e.episode_return for e in found[:episodes]]
    for half in (slice(0, episodes // 2), slice(episodes // 2, episodes)):
        ours, theirs = compiled.history[:, half].mean(axis=1), stepwise[:, half].mean(axis=1)
        error = np.hypot(ours.std() / np.sqrt(len(ours)), theirs.std(ddof=1) / np.sqrt(len(theirs)))
        assert abs(ours.mean() - theirs.mean()) < 4 * error


@pytest.mark.parametrize(
    "rule", [r if r == "double_q_learning" else pytest.param(r, marks=pytest.mark.slow) for r in RULES]
)
def test_kernels_compile_for_gpus_that_are_not_here(rule, tmp_path):
    kernels = make_kernels(variant(rule))
    wp.compile_aot_module(kernels.advance_one.module, arch=[80, 90], module_dir=tmp_path, use_ptx=False)
    for arch in ("sm80", "sm90"):
        (cubin,) = tmp_path.glob(f"*.{arch}.cubin")
        assert cubin.stat().st_size > 1000
