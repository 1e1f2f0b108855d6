"""Tabular agents against exact answers: what each has learned after a stated budget, evaluated without sampling noise.

    python -m benchmarks.tabular_exact                                   # every agent and environment, 20 seeds
    python -m benchmarks.tabular_exact agents=q_learning,sarsa envs=FrozenLake-v1 seeds=5

Each policy is evaluated by solving its linear equations, discounted by 0.99, without a time limit (training has one):

    off-policy agents      the greedy policy against V*
    on-policy agents       the epsilon-greedy policy, epsilon 0.1, against the best epsilon-soft policy
    softmax_q, soft        Q against the unique fixed point of the log-sum-exp backup, tau 0.1, averaged over the
    updates softmax_q, Boltzmann   Q against its own Boltzmann backup: the residual, since there may be several fixed
    points mc_softmax             its own stochastic policy against V*

Results are kept in benchmarks/results/tabular_exact.json, one entry per agent and environment.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from agents import load_algorithm
from contract import Mode, Streams, Task
from envs.tables import TableVecEnv, TabularModel, tabular_model
from envs.textbook.blackjack import blackjack_model
from rules.planning import action_values, evaluate_policy, value_iteration
from rules.tabular import boltzmann_value, epsilon_greedy, epsilon_soft_value, greedy_value, log_sum_exp_value
from training.loop import Interaction

RESULTS = Path(__file__).parent / "results" / "tabular_exact.json"
GAMMA, EPSILON, TEMPERATURE = 0.99, 0.1, 0.1
TOLERANCE = 0.01


@dataclass(frozen=True)
class World:
    """An environment, and what every agent is given there."""

    limit: int
    env_steps: int
    initial_q: float
    """What cannot be beaten: optimism makes agents try everything."""


WORLDS = {
    "FrozenLake-v1": World(100, 300_000, 1.0),
    "FrozenLake8x8-v1": World(200, 1_500_000, 1.0),
    "CliffWalking-v1": World(200, 200_000, 0.0),
    "Taxi-v4": World(200, 500_000, 0.0),
    "Blackjack-v1": World(100, 1_000_000, 0.0),
}
FALLING = {"step_size": 0.3, "step_size_schedule": "linear", "step_size_end": 0.002}
FALLING_TO_ZERO = {"FrozenLake8x8-v1": {"step_size": 0.2, "step_size_end": 0.0}}
"""The large lake has nearly equal actions everywhere: only long averages tell them apart."""
BY_VISITS = {"CliffWalking-v1": {"step_size": 1.0, "step_size_schedule": "visits", "step_size_power": 0.8}}
"""A fall costs a hundred steps: on-policy values need long averages there, too."""
LONG_WALKS = {"CliffWalking-v1": 1_000_000}
CONTROL = ("FrozenLake-v1", "FrozenLake8x8-v1", "CliffWalking-v1", "Taxi-v4")


@dataclass(frozen=True)
class Contestant:
    """An agent with its settings, what it is measured against, and where."""

    algorithm: str
    measure: str
    """off_policy, on_policy, soft, boltzmann or own."""
    settings: dict[str, Any] = field(default_factory=dict)
    worlds: tuple[str, ...] = CONTROL
    share_of_budget: float = 1.0
    explores_first: bool = False
    """Epsilon falls from 1 to 0.1 over the first half of the budget, instead of 0.1 throughout."""
    by_world: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Settings that differ in one environment."""
    env_steps: dict[str, int] = field(default_factory=dict)
    """Budgets that differ in one environment."""

    def budget(self, env_id: str) -> int:
        """Environment steps of one training run."""
        return self.env_steps.get(env_id, int(WORLDS[env_id].env_steps * self.share_of_budget))


CONTESTANTS = {
    "q_learning": Contestant("q_learning", "off_policy", FALLING, by_world=FALLING_TO_ZERO),
    "double_q_learning": Contestant(
        "double_q_learning", "off_policy", FALLING, share_of_budget=3.0, explores_first=True
    ),
    "watkins_q_lambda": Contestant(
        "sarsa_lambda", "off_policy", FALLING | {"off_policy": True, "trace_decay": 0.5}, explores_first=True
    ),
    "dyna_q": Contestant("dyna_q", "off_policy", {"planning_step_size": 1.0, "planning_steps": 5}, share_of_budget=0.1),
    "prioritised_sweeping": Contestant(
        "dyna_q",
        "off_policy",
        {"step_size": 1.0, "planning_steps": 5, "sweeping": "prioritised", "priority_threshold": 1e-5},
        share_of_budget=0.1,
    ),
    "sarsa": Contestant("sarsa", "on_policy", FALLING, by_world=BY_VISITS | FALLING_TO_ZERO, env_steps=LONG_WALKS),
    "expected_sarsa": Contestant("expected_sarsa", "on_policy", FALLING),
    "sarsa_lambda": Contestant(
        "sarsa_lambda",
        "on_policy",
        FALLING | {"trace_decay": 0.3},
        by_world=BY_VISITS | FALLING_TO_ZERO,
        env_steps=LONG_WALKS,
    ),
    "n_step_sarsa": Contestant(
        "n_step_sarsa", "on_policy", FALLING | {"n_step": 2}, by_world=BY_VISITS | FALLING_TO_ZERO, env_steps=LONG_WALKS
    ),
    "softmax_q_soft": Contestant("softmax_q", "soft", FALLING | {"backup": "soft"}, ("FrozenLake-v1",), 3.0),
    "softmax_q_boltzmann": Contestant(
        "softmax_q", "boltzmann", FALLING | {"backup": "expected_sarsa"}, ("FrozenLake-v1",), 3.0
    ),
    "monte_carlo": Contestant(
        "monte_carlo",
        "on_policy",
        {"step_size_power": 0.7, "truncated_episodes": "bootstrap"},
        ("FrozenLake-v1", "Blackjack-v1"),
        explores_first=True,
    ),
    "monte_carlo_off_policy": Contestant(
        "monte_carlo", "off_policy", {"off_policy": True}, ("FrozenLake-v1", "Blackjack-v1"), explores_first=True
    ),
    "mc_softmax": Contestant(
        "mc_softmax",
        "own",
        {"step_size": 0.1, "temperature": 15.0, "truncated_episodes": "bootstrap"},
        ("FrozenLake-v1", "Blackjack-v1"),
        3.0,
    ),
}


@cache
def world_model(env_id: str) -> tuple[TabularModel, np.ndarray | None]:
    """The dynamics with the training's time limit, and what agents see of the states if not the states themselves."""
    if env_id == "Blackjack-v1":
        return blackjack_model()
    env = gym.make(env_id)
    model = tabular_model(env, WORLDS[env_id].limit)
    env.close()
    assert model is not None
    return model, None


def train(contestant: Contestant, env_id: str, seed: int, num_envs: int = 64) -> Any:
    """One agent after its budget."""
    world, streams = WORLDS[env_id], Streams(seed)
    model, observation = world_model(env_id)
    algorithm = load_algorithm(contestant.algorithm)
    env_steps = contestant.budget(env_id)
    keys = {"gamma": GAMMA, "initial_q": world.initial_q} | contestant.settings
    keys |= contestant.by_world.get(env_id, {})
    if contestant.explores_first:
        keys |= {"epsilon_start": 1.0, "epsilon_end": 0.1, "epsilon_decay_env_steps": env_steps // 2}
    if contestant.algorithm == "softmax_q":
        keys |= {"temperature_end": TEMPERATURE, "temperature_decay_env_steps": 0}
    if contestant.algorithm in ("mc_softmax", "monte_carlo"):
        keys["initial_q"] = 0.0
    env = TableVecEnv(model, num_envs, streams.numpy("env"), env_id, observation)
    agent = algorithm.make_agent(algorithm.Settings(**keys), Task(env.spec, env_steps, torch.device("cpu"), streams))
    policy = agent.policy(Mode("train"), num_envs, streams.torch("policy"))
    Interaction(agent, env, policy)(env_steps)
    return agent


def error_of(agent: Any, contestant: Contestant, env_id: str) -> float:
    """The relative loss, or error, of what an agent has learned; see the module docstring."""
    model, observation = world_model(env_id)
    seen = np.arange(model.num_states) if observation is None else observation
    inspection = agent.inspect()
    q, own = inspection.q[seen], inspection.policy[seen]
    if contestant.measure == "soft":
        exact, _ = value_iteration(model, GAMMA, partial(log_sum_exp_value, temperature=TEMPERATURE))
        return _weighted(q - exact, exact, inspection.visits)
    if contestant.measure == "boltzmann":
        return _weighted(q - action_values(model, boltzmann_value(q, TEMPERATURE), GAMMA), q, inspection.visits)
    if contestant.measure == "on_policy":
        exact, _ = value_iteration(model, GAMMA, partial(epsilon_soft_value, epsilon=EPSILON))
        best, policy = float(model.start @ epsilon_soft_value(exact, EPSILON)), epsilon_greedy(q, EPSILON)
    else:
        best, policy = float(model.start @ greedy_value(value_iteration(model, GAMMA)[0])), own
    # Blackjack's value is near zero by accident, so a loss there is counted in units of the stake.
    scale = 1.0 if env_id == "Blackjack-v1" else abs(best)
    return (best - float(model.start @ evaluate_policy(model, policy, GAMMA))) / scale


def _weighted(error: np.ndarray, values: np.ndarray, visits: np.ndarray) -> float:
    """Mean absolute error of the entries, weighted by how often each was learned from, as a share of their range."""
    return float((np.abs(error) * visits).sum() / visits.sum() / np.ptp(values[visits > 0]))


def main(arguments: list[str]) -> int:
    keys = dict(argument.split("=", 1) for argument in arguments)
    seeds = int(keys.get("seeds", 20))
    names = keys["agents"].split(",") if "agents" in keys else list(CONTESTANTS)
    for name in names:
        contestant = CONTESTANTS[name]
        for env_id in contestant.worlds:
            if "envs" in keys and env_id not in keys["envs"].split(","):
                continue
            began = time.perf_counter()
            errors = [error_of(train(contestant, env_id, seed), contestant, env_id) for seed in range(seeds)]
            row = {
                "measure": contestant.measure,
                "env_steps": contestant.budget(env_id),
                "settings": {
                    "gamma": GAMMA,
                    **contestant.settings,
                    **contestant.by_world.get(env_id, {}),
                    "explores_first": contestant.explores_first,
                },
                "seeds": seeds,
                "within_1_percent": sum(e <= TOLERANCE for e in errors),
                "median_error": float(np.median(errors)),
                "largest_error": float(max(errors)),
                "seconds": round(time.perf_counter() - began, 1),
            }
            stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
            stored[f"{name} on {env_id}"] = row
            print(
                f"{name:24s}{env_id:18s}{contestant.measure:11s}{row['env_steps']:>9,} steps  "
                f"{row['within_1_percent']:>2}/{seeds} within 1 %  median {row['median_error']:.2%}  "
                f"largest {row['largest_error']:.2%}  {row['seconds']} s",
                flush=True,
            )
            RESULTS.parent.mkdir(parents=True, exist_ok=True)
            RESULTS.write_text(json.dumps(dict(sorted(stored.items())), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
