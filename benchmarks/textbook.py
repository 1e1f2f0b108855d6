"""Sutton and Barto's examples, rerun: each figure is drawn again, and its numbers stand beside the published ones.

    python -m benchmarks.textbook                     # all of them, about two minutes on one core
    python -m benchmarks.textbook cliff_walking windy # some
    python -m benchmarks.textbook quick=1             # fewer runs, wider noise

Writes benchmarks/results/textbook/<example>.png and numbers.json. The many runs of an example advance together, one
array entry each, by the same functions of `rules/tabular.py` that the agents call; Dyna and blackjack run the agents
themselves.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from agents import load_algorithm
from contract import Mode, Streams, Task
from envs.tables import TableVecEnv, TabularModel, tabular_model
from envs.textbook import register
from envs.textbook.blackjack import HIT, STICK, blackjack_model
from rules.planning import evaluate_policy, value_iteration
from rules.tabular import draw_action, epsilon_greedy, expected_value, greedy_value, td_update
from training.loop import Interaction
from training.pictures import draw_curves, draw_value_map

RESULTS = Path(__file__).parent / "results" / "textbook"
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Number(NamedTuple):
    """One published or derived number, and ours."""

    example: str
    quantity: str
    expected: str
    low: float
    high: float
    ours: float

    @property
    def inside(self) -> bool:
        return bool(self.low <= self.ours <= self.high)


def model_of(env_id: str, **kwargs: Any) -> TabularModel:
    """The table of a registered environment."""
    register()
    env = gym.make(env_id, **kwargs)
    model = tabular_model(env, None)
    env.close()
    assert model is not None
    return model


# --- many runs at once --------------------------------------------------------------------------------------------


class Runs(NamedTuple):
    """What R independent runs of a control algorithm went through."""

    returns: Floats
    """(R, E): undiscounted return of each finished episode, NaN where a run did not get so far."""
    episodes: Ints
    """(R, T): finished episodes after each step, empty unless the runs were counted in steps."""
    q: Floats
    """(R, S, A): the tables at the end."""


def control(
    model: TabularModel,
    algorithm: str,
    runs: int,
    alpha: float,
    epsilon: float,
    gamma: float,
    generator: np.random.Generator,
    episodes: int | None = None,
    steps: int | None = None,
) -> Runs:
    """Runs SARSA, Q-learning or expected SARSA from Q = 0, for so many episodes or so many steps.

    Args:
        model: the world.
        algorithm: sarsa, q_learning or expected_sarsa.
        runs: R, each with a table of its own.
        alpha: step size.
        epsilon: exploration.
        gamma: discount.
        generator: of all runs.
        episodes: stop each run after so many episodes.
        steps: stop all runs after so many steps.
    """
    each = np.arange(runs)
    q = np.zeros((runs, model.num_states, model.num_actions))
    start = np.cumsum(model.start)

    def begin() -> Ints:
        return np.searchsorted(start, generator.random(runs), side="right")

    def policy(states: Ints) -> Floats:
        return epsilon_greedy(q[each, states], epsilon)

    state = begin()
    action = draw_action(policy(state), generator.random(runs))
    finished, total = np.zeros(runs, np.int64), np.zeros(runs)
    returns: list[list[float]] = [[] for _ in range(runs)]
    counts: list[Ints] = []
    while (finished.min() < episodes) if episodes is not None else (len(counts) < (steps or 0)):
        outcome = (model.cumulative[state, action] > generator.random(runs)[:, None]).argmax(axis=1)
        reward = model.reward[state, action, outcome]
        next_state = model.next_state[state, action, outcome].astype(np.int64)
        terminal = model.terminal[state, action, outcome]
        next_policy = policy(next_state)
        next_action = draw_action(next_policy, generator.random(runs))
        next_q = q[each, next_state]  # (R, A)
        if algorithm == "sarsa":
            next_value = next_q[each, next_action]
        elif algorithm == "q_learning":
            next_value = greedy_value(next_q)
        else:
            next_value = expected_value(next_q, next_policy)
        going = finished < episodes if episodes is not None else np.ones(runs, bool)
        moved = td_update(q[each, state, action], reward, gamma * ~terminal, next_value, alpha)  # type: ignore[arg-type]
        q[each[going], state[going], action[going]] = np.asarray(moved)[going]
        total += reward
        for i in np.flatnonzero(terminal & going):
            returns[i].append(float(total[i]))
        total[terminal] = 0.0
        finished += terminal & going
        if algorithm != "sarsa":  # these choose after the update
            next_action = draw_action(policy(next_state), generator.random(runs))
        fresh = begin()
        state = np.where(terminal, fresh, next_state)
        action = np.where(terminal, draw_action(policy(fresh), generator.random(runs)), next_action)
        if steps is not None:
            counts.append(finished.copy())
    longest = max(len(r) for r in returns)
    table = np.full((runs, longest), np.nan)
    for i, r in enumerate(returns):
        table[i, : len(r)] = r
    return Runs(table, np.array(counts).T, q)


def greedy_lengths(model: TabularModel, q: Floats, cap: int = 1000) -> Ints:
    """(R,): steps of each table's greedy policy to the end in a deterministic world, `cap` if it does not get there."""
    lengths = np.full(len(q), cap)
    best = q.argmax(axis=2)
    for i in range(len(q)):
        state = int(model.start.argmax())
        for length in range(1, cap):
            action = best[i, state]
            ended, state = model.terminal[state, action, 0], int(model.next_state[state, action, 0])
            if ended:
                lengths[i] = length
                break
    return lengths


# --- examples -----------------------------------------------------------------------------------------------------


def cliff_walking(figure: Figure, quick: bool) -> list[Number]:
    """Example 6.6: alpha 0.5, epsilon 0.1, gamma 1, 500 episodes; mean over runs of the return of each episode."""
    model, runs = model_of("CliffWalking-v1"), 20 if quick else 200
    names = {"sarsa": "SARSA", "q_learning": "Q-learning", "expected_sarsa": "expected SARSA"}
    generator = np.random.default_rng(66)
    results = {n: control(model, n, runs, 0.5, 0.1, 1.0, generator, episodes=500) for n in names}
    grid = figure.subplot_mosaic([["curves", name] for name in names], width_ratios=[4, 5])
    curves = {names[n]: _smooth(r.returns[:, :500], 10) for n, r in results.items()}
    draw_curves(grid["curves"], np.arange(5, 496), curves)
    for level, colour in ((-26.9, "C0"), (-49.6, "C1"), (-20.8, "C2")):
        grid["curves"].axhline(level, color=colour, linestyle=":", linewidth=1)
    grid["curves"].set(ylim=(-100, 0), xlabel="episode", ylabel="return", title="Cliff walking (dotted: expected)")
    grid["curves"].legend(loc="lower right")
    online = {n: float(r.returns[:, 400:500].mean()) for n, r in results.items()}
    lengths = {n: greedy_lengths(model, r.q) for n, r in results.items()}
    for n, r in results.items():
        draw_value_map(grid[n], r.q[np.argsort(lengths[n])[runs // 2]], model)
        grid[n].set_title(f"{names[n]}: values and policy of the run with the median greedy path", fontsize=9)
    example = "cliff walking 6.6"
    return [
        Number(example, "SARSA, online return of episodes 401-500", "-26.9", -31, -23, online["sarsa"]),
        Number(example, "Q-learning, the same", "-49.6", -56, -43, online["q_learning"]),
        Number(example, "expected SARSA, the same", "-20.84", -22.5, -19.5, online["expected_sarsa"]),
        Number(example, "SARSA minus Q-learning", "about +23", 12, 40, online["sarsa"] - online["q_learning"]),
        Number(
            example,
            "Q-learning, share of greedy paths of length 13",
            "1",
            1,
            1,
            float((lengths["q_learning"] == 13).mean()),
        ),
        Number(
            example, "expected SARSA, share of length 15", "1", 1, 1, float((lengths["expected_sarsa"] == 15).mean())
        ),
        Number(example, "SARSA, share of length 17", "0.79", 0.6, 0.95, float((lengths["sarsa"] == 17).mean())),
    ]


def windy(figure: Figure, quick: bool) -> list[Number]:
    """Example 6.5: alpha 0.5, epsilon 0.1, gamma 1, 8000 steps; episodes finished against steps."""
    model, runs = model_of("Textbook/WindyGridworld-v0"), 20 if quick else 200
    generator = np.random.default_rng(65)
    results = {
        name: control(model, algorithm, runs, 0.5, 0.1, 1.0, generator, steps=steps)
        for name, algorithm, steps in (
            ("SARSA", "sarsa", 8000),
            ("Q-learning", "q_learning", 8000),
            ("expected SARSA", "expected_sarsa", 20_000),
        )
    }
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    draw_curves(
        left,
        np.arange(8000),
        {name: r.episodes[:, :8000].astype(float) for name, r in results.items()},
        band="quartiles",
    )
    left.set(xlabel="time steps", ylabel="episodes", title="Windy gridworld (band: quartiles of the runs)")
    left.axhline(161, color="C0", linestyle=":", linewidth=1)
    left.legend()
    draw_value_map(right, results["Q-learning"].q[0], model)
    lengths = {name: greedy_lengths(model, r.q) for name, r in results.items()}
    example = "windy gridworld 6.5"
    return [
        Number(
            example,
            "SARSA, episodes after 8000 steps",
            "about 161",
            130,
            185,
            float(results["SARSA"].episodes[:, 7999].mean()),
        ),
        Number(
            example,
            "Q-learning, share of greedy paths of length 15 after 8000 steps",
            "1",
            1,
            1,
            float((lengths["Q-learning"] == 15).mean()),
        ),
        Number(
            example,
            "expected SARSA, the same after 20000 steps",
            "1",
            1,
            1,
            float((lengths["expected SARSA"] == 15).mean()),
        ),
        Number(example, "SARSA, the same after 8000 steps", "0.19", 0.05, 0.4, float((lengths["SARSA"] == 15).mean())),
    ]


def maximization_bias(figure: Figure, quick: bool) -> list[Number]:
    """Example 6.7: alpha 0.1, epsilon 0.1, 10 actions in B with rewards N(-0.1, 1); share of runs that go left from
    A."""
    runs = 1000 if quick else 10_000
    generator = np.random.default_rng(67)
    shares = {
        name: left_shares(name == "double Q-learning", runs, 300, generator)
        for name in ("Q-learning", "double Q-learning")
    }
    axes = figure.subplots()
    draw_curves(axes, np.arange(1, 301), {name: went.astype(float) for name, went in shares.items()})
    axes.axhline(0.05, color="grey", linestyle=":", linewidth=1)
    axes.set(
        xlabel="episode",
        ylabel="share of left from A",
        title="Maximisation bias (dotted: the optimum, 5 %)",
        ylim=(0, 1),
    )
    axes.legend()
    q, double = (went.mean(axis=0) for went in shares.values())
    example = "maximisation bias 6.7"
    return [
        Number(example, "Q-learning, highest share of left", "0.94", 0.85, 1.0, float(q.max())),
        Number(example, "Q-learning, episodes 281-300", "0.121", 0.1, 0.14, float(q[280:].mean())),
        Number(example, "double Q-learning, episode 1", "0.51", 0.45, 0.55, float(double[0])),
        Number(example, "double Q-learning, highest after episode 10", "below 0.5", 0.0, 0.5, float(double[10:].max())),
        Number(example, "double Q-learning, episodes 281-300", "0.068", 0.05, 0.085, float(double[280:].mean())),
    ]


def left_shares(double: bool, runs: int, episodes: int, generator: np.random.Generator) -> NDArray[np.bool_]:
    """(runs, episodes): whether the first action of each episode of example 6.7 was left; A has two actions, B ten."""
    each, tables = np.arange(runs), 2 if double else 1
    q_a, q_b = np.zeros((tables, runs, 2)), np.zeros((tables, runs, 10))  # LEFT = 0, RIGHT = 1

    def act(q: Floats) -> Ints:
        return draw_action(epsilon_greedy(q.mean(axis=0), 0.1), generator.random(runs))

    went = np.zeros((runs, episodes), bool)
    for episode in range(episodes):
        learner = generator.integers(tables, size=runs)
        judge = tables - 1 - learner
        action = act(q_a)
        left = went[:, episode] = action == 0
        best_b = draw_action(epsilon_greedy(q_b[learner, each], 0.0), generator.random(runs))
        next_value = q_b[judge, each, best_b]
        moved = td_update(q_a[learner, each, action], 0.0, left * 1.0, next_value, 0.1)  # type: ignore[arg-type]
        q_a[learner, each, action] = moved
        action, reward = act(q_b), generator.normal(-0.1, 1.0, runs)
        learner = generator.integers(tables, size=runs)
        moved = td_update(q_b[learner, each, action], reward, 0.0, 0.0, 0.1)  # type: ignore[arg-type]
        q_b[learner[left], each[left], action[left]] = np.asarray(moved)[left]
    return went


def walks(num_states: int, runs: int, episodes: int, generator: np.random.Generator) -> list[tuple[Ints, Ints]]:
    """Random walks of example 6.2, for each episode: positions (runs, T + 1), padded, and lengths (runs,)."""
    result = []
    for _ in range(episodes):
        position = np.full(runs, (num_states + 1) // 2)
        path = [position]
        while ((position > 0) & (position <= num_states)).any():
            moving = (position > 0) & (position <= num_states)
            position = position + moving * generator.choice([-1, 1], runs)
            path.append(position)
        table = np.stack(path, axis=1)
        result.append((table, ((table > 0) & (table <= num_states)).sum(axis=1)))
    return result


def n_step_errors(
    episodes: list[tuple[Ints, Ints]],
    true_value: Floats,
    initial: float,
    alphas: Floats,
    n: int | None,
    left_reward: float,
) -> Floats:
    """RMS errors of n-step TD prediction, averaged over the states.

    Args:
        episodes: from `walks`.
        true_value: (S,) of the states between the ends.
        initial: value of every state before learning.
        alphas: (C,) step sizes, tried side by side on the same walks.
        n: steps; None: all of them, constant-alpha Monte Carlo.
        left_reward: of the left end; the right end gives 1.

    Returns:
        (C, runs, episodes + 1): before the first episode, and after each.
    """
    num_states, runs = len(true_value), len(episodes[0][1])
    each = np.arange(runs)
    value = np.full((len(alphas), runs, num_states + 2), initial)
    errors = [np.sqrt(((value[..., 1:-1] - true_value) ** 2).mean(axis=2))]
    for path, length in episodes:
        final_reward = np.where(path[each, length] == 0, left_reward, 1.0)
        span = int(length.max()) if n is None else n
        frozen = value.copy() if n is None else value  # Monte Carlo learns when the episode has ended
        for tau in range(int(length.max())):
            active = tau < length
            state = path[:, tau]
            ahead = np.minimum(tau + span, length)
            ends = ahead == length  # the n steps reach the end: no bootstrap
            target_value = frozen[:, each, path[each, ahead]]
            new = td_update(
                value[:, each, state], np.where(ends, final_reward, 0.0), 1.0 * ~ends, target_value, alphas[:, None]
            )  # type: ignore[arg-type]
            value[:, each[active], state[active]] = np.asarray(new)[:, active]
        errors.append(np.sqrt(((value[..., 1:-1] - true_value) ** 2).mean(axis=2)))
    return np.stack(errors, axis=2)


def random_walk(figure: Figure, quick: bool) -> list[Number]:
    """Example 6.2: TD(0) against constant-alpha Monte Carlo, 100 episodes, V = 0.5 at the start, RMS over the
    states."""
    runs = 100 if quick else 1000
    generator = np.random.default_rng(62)
    true_value = np.arange(1, 6) / 6
    episodes = walks(5, runs, 100, generator)
    td = n_step_errors(episodes, true_value, 0.5, np.array([0.05, 0.1, 0.15]), 1, 0.0)
    mc = n_step_errors(episodes, true_value, 0.5, np.array([0.01, 0.02, 0.03, 0.04]), None, 0.0)
    left, right = figure.subplots(1, 2)
    draw_curves(left, np.arange(101), {f"TD, alpha {a}": td[i] for i, a in enumerate((0.05, 0.1, 0.15))})
    draw_curves(left, np.arange(101), {f"MC, alpha {a}": mc[i] for i, a in enumerate((0.01, 0.02, 0.03, 0.04))})
    left.set(xlabel="walks", ylabel="RMS error over the states", title="Random walk", ylim=(0, 0.25))
    left.legend(fontsize=7)
    batch = {name: batch_errors(episodes, true_value, name == "batch TD") for name in ("batch TD", "batch MC")}
    draw_curves(right, np.arange(1, 101), batch)
    right.set(xlabel="walks", title="batch training (figure 6.2)", ylim=(0, 0.25))
    right.legend(fontsize=7)
    example = "random walk 6.2"
    means = {name: b.mean(axis=0) for name, b in batch.items()}
    return [
        Number(example, "RMS before the first walk", "0.2357", 0.235702, 0.235703, float(td[0, :, 0].mean())),
        Number(example, "TD, alpha 0.05, after 100 walks", "0.035", 0.033, 0.040, float(td[0, :, 100].mean())),
        Number(example, "TD, alpha 0.1", "0.055", 0.050, 0.060, float(td[1, :, 100].mean())),
        Number(example, "TD, alpha 0.15", "0.070", 0.064, 0.077, float(td[2, :, 100].mean())),
        Number(example, "MC, alpha 0.01", "0.097", 0.090, 0.104, float(mc[0, :, 100].mean())),
        Number(example, "MC, alpha 0.02", "0.081", 0.075, 0.088, float(mc[1, :, 100].mean())),
        Number(example, "MC, alpha 0.03", "0.093", 0.086, 0.100, float(mc[2, :, 100].mean())),
        Number(example, "MC, alpha 0.04", "0.106", 0.098, 0.114, float(mc[3, :, 100].mean())),
        Number(example, "batch TD after 10 walks", "0.11 to 0.15", 0.11, 0.15, float(means["batch TD"][9])),
        Number(example, "batch TD after 100 walks", "0.033 to 0.042", 0.033, 0.042, float(means["batch TD"][99])),
        Number(example, "batch MC after 10 walks", "0.16 to 0.19", 0.16, 0.19, float(means["batch MC"][9])),
        Number(example, "batch MC after 100 walks", "0.052 to 0.056", 0.050, 0.058, float(means["batch MC"][99])),
        Number(
            example,
            "smallest lead of batch TD, 2 to 100 walks",
            "above 0",
            0.0,
            1.0,
            float((means["batch MC"] - means["batch TD"])[1:].min()),
        ),
    ]


def batch_errors(episodes: list[tuple[Ints, Ints]], true_value: Floats, td: bool) -> Floats:
    """(runs, episodes): RMS errors of the fixed points of batch training; states not yet visited keep 0.5.

    Batch TD converges to the value of the empirical chain, batch Monte Carlo to the mean of the returns that followed.
    """
    num_states, runs = len(true_value), len(episodes[0][1])
    errors = np.zeros((runs, len(episodes)))
    for run in range(runs):
        moves = np.zeros((num_states + 2, num_states + 2))
        wins = np.zeros(num_states + 2)
        for e, (path, length) in enumerate(episodes):
            visited = path[run, : length[run] + 1]
            np.add.at(moves, (visited[:-1], visited[1:]), 1)
            np.add.at(wins, visited[:-1], float(visited[-1] == num_states + 1))
            count = moves.sum(axis=1)[1:-1]
            seen = count > 0
            value = np.full(num_states, 0.5)
            if td:
                chain = moves[1:-1, 1:-1] / np.maximum(count, 1)[:, None]
                right = moves[1:-1, -1] / np.maximum(count, 1)
                value[seen] = np.linalg.solve(np.eye(seen.sum()) - chain[np.ix_(seen, seen)], right[seen])
            else:
                value[seen] = wins[1:-1][seen] / count[seen]
            errors[run, e] = np.sqrt(((value - true_value) ** 2).mean())
    return errors


def n_step(figure: Figure, quick: bool) -> list[Number]:
    """Example 7.1, figure 7.2: n-step TD on 19 states, RMS error averaged over the states and the first 10 episodes."""
    runs = 30 if quick else 100
    generator = np.random.default_rng(72)
    episodes = walks(19, runs, 10, generator)
    true_value = np.arange(-9, 10) / 10
    alphas = np.array([0.02, 0.05, *np.arange(0.1, 1.01, 0.1)])
    axes = figure.subplots()
    best = {}
    for n in (1, 2, 4, 8, 16, 32, 64):
        errors = n_step_errors(episodes, true_value, 0.0, alphas, n, -1.0)[..., 1:].mean(axis=(1, 2))
        axes.plot(alphas, errors, label=f"n = {n}", marker=".")
        best[n] = float(errors.min())
    axes.set(
        xlabel="alpha", ylabel="RMS error, first 10 episodes", title="n-step TD on the 19-state walk", ylim=(0.2, 0.55)
    )
    axes.legend()
    example = "random walk, n-step 7.2"
    return [
        Number(example, "n with the lowest error", "4", 4, 4, float(min(best, key=best.__getitem__))),
        Number(example, "lead of n = 4 over n = 1", "above 0", 0.0, 1.0, best[1] - best[4]),
        Number(example, "lead of n = 4 over n = 64", "above 0", 0.0, 1.0, best[64] - best[4]),
    ]


def dyna_maze(figure: Figure, quick: bool) -> list[Number]:
    """Figure 8.2: Dyna-Q with 0, 5 and 50 planning steps, alpha 0.1, epsilon 0.1, gamma 0.95; steps per episode."""
    model, runs, episodes = model_of("Textbook/DynaMaze-v0"), 3 if quick else 10, 50
    algorithm = load_algorithm("dyna_q")
    axes = figure.subplots()
    lengths: dict[int, Floats] = {}
    for planning_steps in (0, 5, 50):
        lengths[planning_steps] = np.zeros((runs, episodes))
        for seed in range(runs):
            settings = algorithm.Settings(gamma=0.95, step_size=0.1, planning_steps=planning_steps)
            finished = play(settings, algorithm, TableVecEnv(model, 1, Streams(seed).numpy("env")), seed, episodes)[1]
            lengths[planning_steps][seed] = finished
        draw_curves(
            axes, np.arange(2, episodes + 1), {f"{planning_steps} planning steps": lengths[planning_steps][:, 1:]}
        )
    axes.axhline(14, color="grey", linestyle=":", linewidth=1)
    axes.set(xlabel="episode", ylabel="steps", title="Dyna maze (dotted: the shortest path)", ylim=(0, 800))
    axes.legend()
    mean = {n: length.mean(axis=0) for n, length in lengths.items()}
    near = {n: int(np.flatnonzero(m <= 21)[0]) + 1 if (m <= 21).any() else episodes for n, m in mean.items()}
    example = "Dyna maze 8.2"
    return [
        Number(example, "shortest path", "14", 14, 14, float(shortest(model))),
        Number(
            example,
            "first episode of mean length within 1.5 of the shortest, 0 planning steps",
            "about 25",
            15,
            35,
            near[0],
        ),
        Number(example, "the same, 5 planning steps", "about 5", 3, 9, near[5]),
        Number(example, "the same, 50 planning steps", "about 3", 2, 5, near[50]),
    ]


def shortest(model: TabularModel) -> int:
    """Steps from the start of a deterministic maze to its end."""
    q, _ = value_iteration(model, 0.95)
    return int(greedy_lengths(model, q[None])[0])


def play(settings: Any, algorithm: Any, env: TableVecEnv, seed: int, episodes: int) -> tuple[Any, list[int]]:
    """Trains an agent for so many episodes; returns it and their lengths."""
    streams = Streams(seed)
    agent = algorithm.make_agent(settings, Task(env.spec, 1_000_000, torch.device("cpu"), streams))
    policy = agent.policy(Mode("train"), env.spec.num_envs, streams.torch("policy"))
    advance, lengths = Interaction(agent, env, policy), list[int]()
    while len(lengths) < episodes:
        lengths += [episode.length_env_steps for episode in advance(env.spec.num_envs).episodes]
    return agent, lengths[:episodes]


def blackjack(figure: Figure, quick: bool) -> list[Number]:
    """Example 5.1: values of sticking on 20 and 21; 5.3: the best policy; 5.4: one state valued off-policy."""
    model, observation = blackjack_model()
    generator = np.random.default_rng(51)
    total = observation // 22
    sticks = total >= 20
    policy = np.stack([sticks, ~sticks], axis=1).astype(np.float64)  # STICK, HIT
    exact = evaluate_policy(model, policy, 1.0)
    counts = (10_000, 100_000 if quick else 500_000)
    estimates = [first_visit_values(model, observation, policy, count, generator) for count in counts]
    rows = [(12 + k) for k in range(10)]
    grid = figure.subplots(2, 4, subplot_kw={"projection": None})
    optimal, _ = value_iteration(model, 1.0)
    panels = [
        (f"{counts[0]:,} episodes", estimates[0]),
        (f"{counts[1]:,} episodes", estimates[1]),
        ("exact", exact),
    ]
    for row, ace in enumerate((1, 0)):
        cells = np.array([[(t * 11 + d) * 2 + ace for d in range(1, 11)] for t in rows])
        for column, (title, value) in enumerate(panels):
            grid[row, column].imshow(
                value[cells], origin="lower", vmin=-1, vmax=1, cmap="viridis", extent=(0.5, 10.5, 11.5, 21.5)
            )
            grid[row, column].set_title(f"{title}, {'usable' if ace else 'no usable'} ace", fontsize=8)
        hits = (optimal[:, HIT] > optimal[:, STICK])[cells]
        grid[row, 3].imshow(hits, origin="lower", cmap="Greys", extent=(0.5, 10.5, 11.5, 21.5))
        grid[row, 3].set_title("5.3: optimal policy (black: hit)", fontsize=8)
    figure.supxlabel("dealer shows", fontsize=9)
    figure.supylabel("player's sum", fontsize=9)
    state = (13 * 11 + 2) * 2 + 1
    reachable_cells = [(t * 11 + d) * 2 + ace for t in rows for d in range(1, 11) for ace in (0, 1)]
    error = np.abs(estimates[1] - exact)[reachable_cells]
    settings_module = load_algorithm("monte_carlo")
    settings = settings_module.Settings(gamma=1.0, epsilon_start=0.1, epsilon_end=0.1)
    env = TableVecEnv(model, 100, Streams(53).numpy("env"), observation=observation)
    agent, _ = play(settings, settings_module, env, 53, 100_000 if quick else 500_000)
    learned = epsilon_greedy(agent.table.q, 0.0)[observation]
    loss = float(model.start @ (optimal.max(axis=1) - evaluate_policy(model, learned, 1.0)))
    ordinary, weighted = off_policy_errors(
        model, observation, policy, state, float(exact[state]), 20 if quick else 100, generator
    )
    return [
        Number(
            "blackjack 5.1", "mean error of the values after the long run", "0 (noise)", 0, 0.03, float(error.mean())
        ),
        Number(
            "blackjack 5.3", "value lost by the on-policy Monte Carlo agent's greedy policy", "0 (noise)", 0, 0.01, loss
        ),
        Number(
            "blackjack 5.4",
            "value of (13, dealer 2, usable ace), exact",
            "-0.27726",
            -0.278,
            -0.2765,
            float(exact[state]),
        ),
        Number("blackjack 5.4", "mean square error after 10,000 episodes, weighted", "near 0", 0, 0.01, weighted),
        Number("blackjack 5.4", "the same, ordinary minus weighted, after 10 episodes", "above 0", 0.0, 10, ordinary),
    ]


def first_visit_values(
    model: TabularModel, observation: Ints, policy: Floats, episodes: int, generator: np.random.Generator
) -> Floats:
    """(S,): mean returns after each state that was visited, in states as agents see them; no state comes twice."""
    state = np.searchsorted(np.cumsum(model.start), generator.random(episodes), side="right")
    visits, outcome = simulate(model, policy, state, generator)
    total, count = np.zeros(model.num_states), np.zeros(model.num_states)
    for states, playing in visits:
        np.add.at(total, observation[states[playing]], outcome[playing])
        np.add.at(count, observation[states[playing]], 1)
    return total / np.maximum(count, 1)


def simulate(
    model: TabularModel, policy: Floats, state: Ints, generator: np.random.Generator
) -> tuple[list[tuple[Ints, NDArray[np.bool_]]], Floats]:
    """Plays one episode from each of (N,) states: the visited states with who was still playing, and (N,) returns."""
    playing, outcome, visits = np.ones(len(state), bool), np.zeros(len(state)), []
    while playing.any():
        visits.append((state, playing))
        action = draw_action(policy[state], generator.random(len(state)))
        k = (model.cumulative[state, action] > generator.random(len(state))[:, None]).argmax(axis=1)
        outcome = outcome + playing * model.reward[state, action, k]
        going = playing & ~model.terminal[state, action, k]
        state = np.where(going, model.next_state[state, action, k], state)
        playing = going
    return visits, outcome


def off_policy_errors(
    model: TabularModel,
    observation: Ints,
    target: Floats,
    state: int,
    value: float,
    runs: int,
    generator: np.random.Generator,
) -> tuple[float, float]:
    """Example 5.4: the target policy's value of one state from random behaviour, by importance sampling.

    Returns:
        How much larger the mean square error of ordinary than of weighted importance sampling is after 10 episodes, and
        the latter's after 10,000.
    """
    episodes = 10_000
    start = np.full(runs * episodes, state)
    playing, weight, outcome = np.ones(len(start), bool), np.ones(len(start)), np.zeros(len(start))
    current = start
    while playing.any():
        action = generator.integers(2, size=len(start))
        weight = np.where(playing, weight * target[current, action] / 0.5, weight)
        k = (model.cumulative[current, action] > generator.random(len(start))[:, None]).argmax(axis=1)
        outcome = outcome + playing * model.reward[current, action, k]
        going = playing & ~model.terminal[current, action, k]
        current = np.where(going, model.next_state[current, action, k], current)
        playing = going
    weight, outcome = weight.reshape(runs, episodes), outcome.reshape(runs, episodes)
    summed, weights = (weight * outcome).cumsum(axis=1), weight.cumsum(axis=1)
    weighted = summed / np.where(weights == 0, 1, weights)
    ordinary = summed / np.arange(1, episodes + 1)
    errors = [((estimate - value) ** 2).mean(axis=0) for estimate in (ordinary, weighted)]
    return float(errors[0][9] - errors[1][9]), float(errors[1][-1])


# --- all together -------------------------------------------------------------------------------------------------

EXAMPLES: dict[str, tuple[Callable[[Figure, bool], list[Number]], tuple[float, float]]] = {
    "cliff_walking": (cliff_walking, (13, 6)),
    "windy": (windy, (11, 4)),
    "maximization_bias": (maximization_bias, (6, 4)),
    "random_walk": (random_walk, (11, 4.5)),
    "n_step": (n_step, (6, 4.5)),
    "dyna_maze": (dyna_maze, (6, 4)),
    "blackjack": (blackjack, (11, 6)),
}


def _smooth(values: Floats, window: int) -> Floats:
    """Running mean over the last axis."""
    summed = np.cumsum(np.pad(values, ((0, 0), (1, 0))), axis=1)
    return np.asarray((summed[:, window:] - summed[:, :-window]) / window)


def main(arguments: list[str]) -> int:
    quick = "quick=1" in arguments
    names = [a for a in arguments if a != "quick=1"] or list(EXAMPLES)
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / "numbers.json"
    stored = json.loads(path.read_text()) if path.exists() else {}
    for name in names:
        example, size = EXAMPLES[name]
        figure = Figure(figsize=size, layout="constrained")
        numbers = example(figure, quick)
        figure.savefig(RESULTS / f"{name}.png", dpi=110)
        stored[name] = [{**number._asdict(), "inside": number.inside} for number in numbers]
        for number in numbers:
            mark = "ok" if number.inside else "OUTSIDE"
            print(f"{mark:8s}{number.example}: {number.quantity}: {number.ours:.4g} (expected {number.expected})")
    path.write_text(json.dumps(stored, indent=1) + "\n")
    return 0 if all(n["inside"] for name in names for n in stored[name]) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
