"""What each tabular agent does with a few steps, computed by hand. alpha 0.5 and gamma 0.5 unless said."""

import numpy as np
import pytest
import torch

from contract import Batch, Mode, Tilings, Transition
from faults import ConfigError
from tests.agents.tabular import LIMIT, TERMINAL, feed, make

HALF = {"step_size": 0.5, "gamma": 0.5}


def test_q_learning() -> None:
    agent = make("q_learning", **HALF)
    agent.table.q[1] = [2.0, 4.0]
    feed(agent, (0, 1, 1.0, 1))  # 0 + 0.5 * (1 + 0.5 * 4 - 0) = 1.5
    assert agent.table.q[0].tolist() == [0.0, 1.5]
    feed(agent, (1, 0, 0.0, 0))  # 2 + 0.5 * (0 + 0.5 * 1.5 - 2) = 1.375
    assert agent.table.q[1].tolist() == [1.375, 4.0]
    feed(agent, (0, 1, 3.0, 1, TERMINAL))  # 1.5 + 0.5 * (3 - 1.5) = 2.25
    feed(agent, (0, 0, 1.0, 1, LIMIT))  # a time limit bootstraps: 0 + 0.5 * (1 + 0.5 * 4) = 1.5
    assert agent.table.q[0].tolist() == [1.5, 2.25]
    assert agent.table.visits.tolist() == [[1, 2], [1, 0], [0, 0]]


def test_metrics_say_how_wrong_the_table_was_and_how_it_explores() -> None:
    agent = make("q_learning", epsilon_start=0.4, epsilon_end=0.2, epsilon_decay_env_steps=4, **HALF)
    (metrics,) = feed(agent, (0, 1, -3.0, 1))
    assert metrics == {"train/td_error": 3.0, "train/n_updates": 1.0, "rollout/exploration_rate": pytest.approx(0.35)}


def test_rows_of_a_resetting_environment_are_not_learned_from() -> None:
    agent = make("q_learning", num_envs=2, **HALF)
    row = Transition(
        torch.tensor([0, 0]), torch.tensor([1, 1]), torch.tensor([8.0, 8.0]), torch.tensor([1, 1]),
        torch.tensor([False, False]), torch.tensor([False, False]), torch.tensor([True, False]),
    )  # fmt: skip
    acted = agent.policy(Mode("train"), 2, torch.Generator()).act(torch.tensor([0, 0]), torch.tensor([True, True]))
    agent.observe(row, acted)
    agent.update()
    assert agent.table.q[0].tolist() == [0.0, 4.0]  # once
    assert agent.table.env_steps == 1


def test_environments_update_the_shared_table_one_after_the_other() -> None:
    agent = make("q_learning", num_envs=2, **HALF)
    row = Transition(
        torch.tensor([1, 0]), torch.tensor([0, 0]), torch.tensor([4.0, 0.0]), torch.tensor([2, 1]),
        torch.tensor([True, False]), torch.tensor([True, False]), torch.tensor([True, True]),
    )  # fmt: skip
    acted = agent.policy(Mode("train"), 2, torch.Generator()).act(row.obs, torch.tensor([True, True]))
    agent.observe(row, acted)
    agent.update()
    assert agent.table.q[1, 0] == 2.0
    assert agent.table.q[0, 0] == 0.5  # 0.5 * (0 + 0.5 * 2): the first environment's news is already in


def test_expected_sarsa_averages_over_the_policy() -> None:
    agent = make("expected_sarsa", epsilon_start=0.2, epsilon_end=0.2, **HALF)
    agent.table.q[1] = [2.0, 4.0]
    feed(agent, (0, 0, 1.0, 1))  # pi = (0.1, 0.9): 0.5 * (1 + 0.5 * 3.8) = 1.45
    assert agent.table.q[0, 0] == pytest.approx(1.45)


def test_double_q_learning_values_with_the_other_table() -> None:
    agent = make("double_q_learning", **HALF)
    agent.first.q[1], agent.second.q[1] = [1.0, 0.0], [3.0, 8.0]
    feed(agent, (0, 0, 0.0, 1))
    # heads: Q1 <- 0.5 * 0.5 * Q2(1, argmax Q1 = 0) = 0.75; tails: Q2 <- 0.5 * 0.5 * Q1(1, argmax Q2 = 1) = 0
    heads = agent.first.visits[0, 0] == 1
    assert (agent.first.q[0, 0], agent.second.q[0, 0]) == ((0.75, 0.0) if heads else (0.0, 0.0))
    assert agent.first.visits.sum() + agent.second.visits.sum() == 1
    assert agent.action_values(np.array([1])).tolist() == [[2.0, 4.0]]


def test_sarsa_waits_for_the_next_action() -> None:
    agent = make("sarsa", **HALF)
    agent.table.q[1] = [2.0, 4.0]
    feed(agent, (0, 0, 1.0, 1))
    assert agent.table.q[0, 0] == 0.0
    feed(
        agent, (1, 0, 2.0, 2, TERMINAL)
    )  # first Q(0,0) = 0.5 * (1 + 0.5 * Q(1,0)) = 1, then Q(1,0) = 2 + 0.5 * (2 - 2)
    assert agent.table.q[0, 0] == 1.0
    assert agent.table.q[1, 0] == 2.0


def test_sarsa_draws_an_action_for_the_state_behind_a_time_limit() -> None:
    agent = make("sarsa", epsilon_start=0.0, epsilon_end=0.0, **HALF)
    agent.table.q[1] = [2.0, 4.0]
    feed(
        agent, (0, 0, 1.0, 1, LIMIT), (2, 0, 0.0, 2)
    )  # greedy: 0.5 * (1 + 0.5 * 4) = 1.5, whatever the next episode does
    assert agent.table.q[0, 0] == 1.5


def test_n_step_sarsa() -> None:
    agent = make("n_step_sarsa", n_step=2, **HALF)
    agent.table.q[2] = [8.0, 0.0]
    feed(agent, (0, 0, 1.0, 1), (1, 1, 2.0, 2))
    assert not agent.table.q[:2].any()
    feed(agent, (2, 0, 4.0, 0, TERMINAL))
    # Q(0,0) <- 0.5 * (1 + 0.5 * 2 + 0.25 * Q(2,0) = 2) = 2; at the end Q(1,1) <- 0.5 * (2 + 0.5 * 4) = 2 and
    # Q(2,0) <- 8 + 0.5 * (4 - 8) = 6
    assert agent.table.q.tolist() == [[2.0, 0.0], [0.0, 2.0], [6.0, 0.0]]


def test_one_step_sarsa_is_sarsa_and_long_n_is_every_visit_monte_carlo() -> None:
    steps = [(0, 0, 1.0, 1), (1, 1, 2.0, 0), (0, 0, 3.0, 2), (2, 1, -1.0, 1, TERMINAL), (1, 0, 5.0, 2, TERMINAL)]
    tables = []
    for name, settings in (
        ("sarsa", {}),
        ("n_step_sarsa", {"n_step": 1}),
        ("sarsa_lambda", {"trace_decay": 0.0}),
        ("n_step_sarsa", {"n_step": 100}),
        ("monte_carlo", {"visit": "every", "step_size_schedule": "constant"}),
    ):
        agent = make(name, **HALF, **settings)
        feed(agent, *steps)
        tables.append(agent.table.q)
    assert np.array_equal(tables[0], tables[1])
    assert tables[2] == pytest.approx(tables[0])
    assert np.array_equal(tables[3], tables[4])
    assert not np.array_equal(tables[0], tables[3])


@pytest.mark.parametrize(("trace", "first_visit"), [("accumulating", 1.25), ("replacing", 1.0), ("dutch", 1.125)])
def test_sarsa_lambda_traces(trace: str, first_visit: float) -> None:
    agent = make("sarsa_lambda", trace=trace, trace_decay=1.0, **HALF)
    feed(agent, (0, 0, 0.0, 1), (1, 0, 0.0, 0), (0, 0, 0.0, 2, LIMIT))
    assert not agent.traces.any()  # cleared at the end of the episode
    feed(agent, (0, 0, 0.0, 1), (1, 0, 0.0, 0), (0, 0, 4.0, 2, TERMINAL))
    # e(0,0) decays by gamma * lambda = 0.5 per step to 0.25 and is visited again; e(1,0) has decayed to 0.5; error 4
    assert agent.table.q[0, 0] == pytest.approx(0.5 * 4 * first_visit)
    assert agent.table.q[1, 0] == pytest.approx(0.5 * 4 * 0.5)


def test_watkins_q_lambda_cuts_the_trace_at_an_exploring_action() -> None:
    learned = {}
    for off_policy in (False, True):
        agent = make("sarsa_lambda", trace_decay=1.0, off_policy=off_policy, **HALF)
        agent.table.q[1] = [0.0, 0.1]
        feed(agent, (0, 0, 0.0, 1), (1, 0, 4.0, 2, TERMINAL))  # action 0 in state 1 is not the best
        learned[off_policy] = agent.table.q[0, 0]
    assert learned[True] == pytest.approx(0.5 * 0.5 * 0.1)  # the greedy value of state 1 only
    assert learned[False] == pytest.approx(0.5 * 0.5 * 4)  # what the exploring action earned


def test_first_and_every_visit_monte_carlo() -> None:
    steps = [(0, 0, 1.0, 0), (0, 0, 2.0, 1), (1, 1, 4.0, 2, TERMINAL)]  # gamma 0.5: returns 1 + 1 + 1 = 3, 2 + 2 = 4, 4
    first, every = (make("monte_carlo", gamma=0.5, visit=visit) for visit in ("first", "every"))
    for agent in (first, every):
        feed(agent, *steps)
    assert (first.table.q[0, 0], first.table.visits[0, 0]) == (3.0, 1)
    assert (every.table.q[0, 0], every.table.visits[0, 0]) == (3.5, 2)
    feed(first, (0, 0, 5.0, 1, TERMINAL))
    assert first.table.q[0, 0] == 4.0  # the mean of 3 and 5


@pytest.mark.parametrize("name", ["monte_carlo", "mc_softmax"])
def test_a_return_cut_by_a_time_limit_is_dropped_or_closed_by_a_value(name: str) -> None:
    settings = {"gamma": 0.5, "step_size": 1.0, "step_size_schedule": "visits"}
    drop = make(name, **settings)
    feed(drop, (0, 0, 1.0, 1, LIMIT))
    assert not drop.table.visits.any()
    bootstrap = make(name, truncated_episodes="bootstrap", **settings)
    bootstrap.table.q[1] = [6.0, 6.0]
    feed(bootstrap, (0, 0, 1.0, 1, LIMIT))
    assert bootstrap.table.q[0, 0] == 1 + 0.5 * 6


def test_weighted_importance_sampling() -> None:
    agent = make("monte_carlo", gamma=1.0, off_policy=True)
    feed(agent, (0, 1, 0.0, 1), (1, 1, 2.0, 2, TERMINAL), probability=0.25)
    # backwards: Q(1,1) = 2 with C = 1; greedy there, so W = 1 / 0.25 = 4; Q(0,1) = 2 with C = 4
    assert agent.table.q[[0, 1], [1, 1]].tolist() == [2.0, 2.0]
    assert agent.weight_sum[[0, 1], [1, 1]].tolist() == [4.0, 1.0]
    feed(agent, (0, 1, 0.0, 1), (1, 0, 1.0, 2, TERMINAL), probability=0.25)
    # Q(1,0) = 1, which is not greedy: the weight is 0, and what came before learns nothing
    assert agent.table.q.tolist() == [[0.0, 2.0], [1.0, 2.0], [0.0, 0.0]]
    feed(agent, (0, 1, 5.0, 2, TERMINAL), probability=0.25)
    assert agent.table.q[0, 1] == pytest.approx((4 * 2 + 1 * 5) / 5)


@pytest.mark.parametrize(
    ("backup", "next_value"),
    [
        ("expected_sarsa", (2 * np.e**2 + 1 * np.e) / (np.e**2 + np.e)),
        ("soft", np.log(np.e**2 + np.e)),
        ("sarsa", 1.0),
    ],
)
def test_softmax_q_backups(backup: str, next_value: float) -> None:
    agent = make("softmax_q", backup=backup, temperature_end=1.0, temperature_decay_env_steps=0, **HALF)
    agent.table.q[1] = [2.0, 1.0]
    feed(agent, (0, 0, 1.0, 1), (1, 1, 0.0, 2, TERMINAL))
    assert agent.table.q[0, 0] == pytest.approx(0.5 * (1 + 0.5 * next_value))


def test_softmax_q_acts_by_softmax_and_cools() -> None:
    agent = make("softmax_q", temperature_start=2.0, temperature_end=1.0, temperature_decay_env_steps=4)
    agent.table.q[0] = [0.0, 2.0]
    assert agent.behaviour(np.array([0]))[0, 1] == pytest.approx(np.e / (1 + np.e))
    feed(agent, (2, 0, 0.0, 2), (2, 0, 0.0, 2))
    assert agent.behaviour.temperature == 1.5


def test_mc_softmax_estimates_then_improves_the_states_it_visited() -> None:
    agent = make("mc_softmax", gamma=1.0, step_size=1.0, step_size_schedule="visits", episodes_per_improvement=2)
    feed(agent, (0, 0, 1.0, 1, TERMINAL))
    assert agent.pi.tolist() == [[0.5, 0.5]] * 3  # one episode is not enough
    feed(agent, (0, 1, 3.0, 1, TERMINAL))
    # pi'(0) ~ 0.5 * exp(1 - 3), pi'(1) ~ 0.5 * exp(0)
    assert agent.pi[0].tolist() == pytest.approx([np.exp(-2) / (1 + np.exp(-2)), 1 / (1 + np.exp(-2))])
    assert agent.pi[1:].tolist() == [[0.5, 0.5]] * 2


def test_dyna_q_plans_what_it_has_seen() -> None:
    agent = make("dyna_q", planning_steps=200, planning_step_size=1.0, epsilon_start=0.0, epsilon_end=0.0, **HALF)
    feed(agent, (0, 0, 0.0, 1), (1, 1, 4.0, 2, TERMINAL))
    assert agent.table.q.tolist() == [[2.0, 0.0], [0.0, 4.0], [0.0, 0.0]]  # planning carries the 4 back at once


def test_dyna_q_without_planning_is_q_learning() -> None:
    steps = [(0, 0, 1.0, 1), (1, 1, 2.0, 0), (0, 0, 3.0, 2), (2, 1, -1.0, 1, LIMIT), (1, 0, 5.0, 2, TERMINAL)]
    dyna, q = make("dyna_q", planning_steps=0, **HALF), make("q_learning", **HALF)
    feed(dyna, *steps)
    feed(q, *steps)
    assert np.array_equal(dyna.table.q, q.table.q)


def test_the_empirical_model_takes_expectations() -> None:
    agent = make("dyna_q", sweeping="prioritised", planning_steps=5, planning_step_size=1.0, gamma=0.5)
    agent.table.q[1] = [4.0, 0.0]
    feed(agent, (0, 0, 1.0, 1), (0, 0, 3.0, 2, TERMINAL))
    assert agent.table.q[0, 0] == pytest.approx(((1 + 0.5 * 4) + 3) / 2)


def test_prioritised_sweeping_works_backwards_from_the_news() -> None:
    agent = make("dyna_q", num_states=5, sweeping="prioritised", planning_steps=10, planning_step_size=1.0, gamma=0.5)
    feed(agent, (0, 0, 0.0, 1), (1, 0, 0.0, 2), (2, 0, 0.0, 3))
    assert not agent.table.q.any()
    feed(agent, (3, 0, 8.0, 4, TERMINAL))  # one update per pair, from the end to the start
    assert agent.table.q[:, 0].tolist() == [1.0, 2.0, 4.0, 8.0, 0.0]


def test_q_learning_is_dqn_on_one_hot_observations() -> None:
    """A linear network without bias, SGD, the latest step as the batch, a target that is always in sync."""
    from agents.dqn import td_loss

    num_states, num_actions, alpha, gamma = 6, 3, 0.3, 0.9
    agent = make("q_learning", num_states, num_actions, step_size=alpha, gamma=gamma)
    network = torch.nn.Linear(num_states, num_actions, bias=False, dtype=torch.float64)
    torch.nn.init.zeros_(network.weight)
    optimizer = torch.optim.SGD(network.parameters(), lr=alpha)
    generator = np.random.default_rng(0)
    one_hot = torch.eye(num_states, dtype=torch.float64)
    for t in range(300):
        s, a, next_s = (int(generator.integers(n)) for n in (num_states, num_actions, num_states))
        reward = float(np.float32(generator.uniform(-0.05, 0.05)))  # errors below 1, where Huber is half the square
        terminal = t % 7 == 0
        feed(agent, (s, a, reward, next_s, *([TERMINAL] if terminal else [])))
        discount = torch.tensor([0.0 if terminal else gamma], dtype=torch.float64)
        batch = Batch(
            one_hot[[s]], torch.tensor([a]), torch.tensor([reward], dtype=torch.float64), one_hot[[next_s]], discount
        )
        loss = td_loss(network, network, batch, False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert network.weight.detach().T.numpy() == pytest.approx(agent.table.q, abs=1e-12)
    assert np.abs(agent.table.q).max() > 0.05


SUMS_OVER_TILES = {
    "q_learning": {},
    "sarsa": {},
    "expected_sarsa": {},
    "n_step_sarsa": {"n_step": 2},
    "sarsa_lambda": {"trace_decay": 0.5},
    "softmax_q": {"backup": "sarsa", "temperature_end": 1.0, "temperature_decay_env_steps": 0},
}


def test_a_value_is_a_sum_of_tiles_and_an_update_spreads_over_them() -> None:
    agent = make("q_learning", Tilings([3, 3]), **HALF)  # rows 0 to 2 and 3 to 5
    agent.table.q[1], agent.table.q[5] = [1.0, 0.0], [2.0, 5.0]
    assert agent.table.values(np.array([[1, 5], [0, 3]])).tolist() == [[3.0, 5.0], [0.0, 0.0]]
    feed(agent, ([0, 0], 1, 1.0, [1, 2]))  # 1 + 0.5 * max(1 + 2, 0 + 5) = 3.5, half of it over two tiles
    assert agent.table.q[:, 1].tolist() == [0.875, 0.0, 0.0, 0.875, 0.0, 5.0]
    feed(agent, ([0, 1], 1, 0.0, [1, 2], TERMINAL))  # error 0 - (0.875 + 0): only one tile is shared
    assert agent.table.q[:, 1] == pytest.approx([0.65625, 0.0, 0.0, 0.875, -0.21875, 5.0])
    assert agent.table.visits[:, 1].tolist() == [2, 0, 0, 1, 1, 0]


def test_traces_of_tiles() -> None:
    agent = make("sarsa_lambda", Tilings([3, 3]), trace_decay=1.0, **HALF)
    feed(agent, ([0, 0], 0, 0.0, [0, 1]), ([0, 1], 0, 4.0, [2, 2], TERMINAL))
    # the first tile is visited twice and stays at 1, the tile left behind has decayed to 0.5; alpha / 2 * error = 1
    assert agent.table.q[:, 0].tolist() == [1.0, 0.0, 0.0, 0.5, 1.0, 0.0]


def test_initial_values_are_shared_among_the_tiles() -> None:
    agent = make("q_learning", Tilings([3, 3, 3, 3]), initial_q=2.0)
    assert agent.table.values(np.array([[0, 3, 6, 9]])).tolist() == [[2.0, 2.0]]


@pytest.mark.parametrize("schedule", ["constant", "linear", "visits"])
@pytest.mark.parametrize("name", SUMS_OVER_TILES)
def test_one_tiling_is_a_table_to_the_last_bit(name: str, schedule: str) -> None:
    settings = {"step_size": 0.7, "step_size_schedule": schedule, "step_size_power": 0.6, **SUMS_OVER_TILES[name]}
    tiles, table = make(name, Tilings([5]), 3, **settings), make(name, 5, 3, **settings)
    generator = np.random.default_rng(0)
    for _ in range(200):
        s, a, next_s = (int(generator.integers(n)) for n in (5, 3, 5))
        end = ([], [], [TERMINAL], [LIMIT])[int(generator.integers(4))]
        reward = float(generator.normal())
        feed(tiles, ([s], a, reward, [next_s], *end))
        feed(table, (s, a, reward, next_s, *end))
    assert np.array_equal(tiles.table.q, table.table.q)
    assert np.ptp(table.table.q) > 0.5


@pytest.mark.parametrize("name", ["double_q_learning", "dyna_q", "monte_carlo", "mc_softmax"])
def test_who_cannot_sum_over_tiles_says_so(name: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot sum over the tiles of test; use env\.discretize=bins"):
        make(name, Tilings([3, 3]))


def test_dutch_traces_are_for_tables() -> None:
    with pytest.raises(ConfigError, match=r"agent\.trace=dutch is for tables"):
        make("sarsa_lambda", Tilings([3, 3]), trace="dutch")
