"""Tabular agents against exact answers: what each has learned after a stated budget, evaluated without sampling noise.

    python -m benchmarks.tabular_exact                                   # every agent and environment, 20 seeds
    python -m benchmarks.tabular_exact agents=q_learning,sarsa envs=FrozenLake-v1 seeds=5

Settings and budgets are those of `python train.py agent=<agent> env=<id>` and whatever else the row's command says. A
policy's value is the solution of its linear equations, discounted by 0.99, from where episodes begin; training has a
time limit, the evaluation has none:

    off_policy   the greedy policy against V*
    on_policy    the epsilon-greedy policy, epsilon 0.1, against the best epsilon-soft policy
    own          the stochastic policy that the agent has learned, against V*
    soft         Q against the unique fixed point of the log-sum-exp backup
    boltzmann    Q against its own Boltzmann backup: the residual, since there may be several fixed points

The first three are losses as a share of the best value (in Blackjack, whose value is near zero by accident, of the
stake). The last two are mean absolute errors, weighted by how often each entry was learned from, as a share of the
range of the values.

Rules that `agent=tabular_compiled` has too are run by it, one environment per seed; a test holds both paths equal. The
others run step by step. Results are kept in benchmarks/results/tabular_exact.json, one entry per agent and environment.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from agents import load_algorithm
from contract import Inspection, Mode, Streams, Task
from envs import settings as env_settings
from envs.tables import TableVecEnv, TabularModel, tabular_model
from envs.textbook.blackjack import blackjack_model
from memory.population import Population
from rules.planning import action_values, evaluate_policy, value_iteration
from rules.tabular import (
    Floats,
    boltzmann_value,
    epsilon_greedy,
    epsilon_soft_value,
    greedy_value,
    log_sum_exp_value,
)
from training.config import compose_config, typed
from training.loop import Interaction

RESULTS = Path(__file__).parent / "results" / "tabular_exact.json"
TOLERANCE = 0.01
STAKE = 1.0
LAKES = ("FrozenLake-v1", "FrozenLake8x8-v1")
CONTROL = (*LAKES, "CliffWalking-v1", "Taxi-v4")
EPISODIC = ("FrozenLake-v1", "Blackjack-v1")
WARM = ("agent.temperature_end=0.1", "agent.temperature_decay_env_steps=0")
"""tau 0.1 throughout."""


@dataclass(frozen=True)
class Contestant:
    """An agent, what it is measured against, and where."""

    agent: str
    measure: str
    """off_policy, on_policy, own, soft or boltzmann."""
    worlds: tuple[str, ...] = CONTROL
    keys: tuple[str, ...] = ()
    """What the command line says beyond agent and environment."""
    compiled_rule: str | None = None
    """Its name among the rules of `agent=tabular_compiled`, if it has one."""

    def command(self, env_id: str) -> list[str]:
        """The overrides of train.py."""
        return [f"agent={self.agent}", f"env={env_id}", *self.keys]


CONTESTANTS = {
    "q_learning": Contestant("q_learning", "off_policy", compiled_rule="q_learning"),
    "double_q_learning": Contestant("double_q_learning", "off_policy", compiled_rule="double_q_learning"),
    "watkins_q_lambda": Contestant(
        "sarsa_lambda",
        "off_policy",
        ("FrozenLake-v1", "CliffWalking-v1", "Taxi-v4"),
        (
            "agent.off_policy=true",
            "agent.trace_decay=0.5",
            "agent.epsilon_start=1.0",
            "agent.epsilon_decay_env_steps=150_000",
            "total_env_steps=300_000",
        ),
    ),
    "dyna_q": Contestant("dyna_q", "off_policy"),
    "prioritised_sweeping": Contestant(
        "dyna_q", "off_policy", keys=("agent.sweeping=prioritised", "agent.priority_threshold=1e-5")
    ),
    "sarsa": Contestant("sarsa", "on_policy", compiled_rule="sarsa"),
    "expected_sarsa": Contestant("expected_sarsa", "on_policy", compiled_rule="expected_sarsa"),
    "sarsa_lambda": Contestant("sarsa_lambda", "on_policy"),
    "n_step_sarsa": Contestant("n_step_sarsa", "on_policy"),
    "softmax_q_soft": Contestant(
        "softmax_q",
        "soft",
        LAKES[:1],
        (*WARM, "agent.backup=soft", "agent.step_size=0.0125", "total_env_steps=16_000_000"),
        "softmax_soft",
    ),
    "softmax_q_boltzmann": Contestant("softmax_q", "boltzmann", LAKES[:1], WARM, "softmax_expected_sarsa"),
    "monte_carlo": Contestant("monte_carlo", "on_policy", EPISODIC),
    "monte_carlo_off_policy": Contestant("monte_carlo", "off_policy", EPISODIC, ("agent.off_policy=true",)),
    "mc_softmax": Contestant("mc_softmax", "own", EPISODIC),
}


@dataclass(frozen=True)
class Setup:
    """What train.py would build."""

    settings: Any
    """Of the agent."""
    env_steps: int
    """Of one seed."""
    num_envs: int
    model: TabularModel
    observation: np.ndarray | None
    """(S,): what agents see of the states, if not the states themselves."""


def setup_of(contestant: Contestant, env_id: str, more: tuple[str, ...] = ()) -> Setup:
    """Composes the configuration of train.py; `more` are further overrides."""
    env_settings.register_environments()
    plain = compose_config([*contestant.command(env_id), *more], env_settings)
    settings = typed(load_algorithm(contestant.agent).Settings, plain["agent"], "agent")
    model, observation = world_model(env_id, plain["env"]["max_episode_steps"])
    return Setup(settings, plain["total_env_steps"], plain["num_envs"], model, observation)


@cache
def world_model(env_id: str, limit: int | None) -> tuple[TabularModel, np.ndarray | None]:
    """The dynamics with the training's time limit, and what agents see of the states if not the states themselves."""
    if env_id == "Blackjack-v1":
        return blackjack_model()
    env = gym.make(env_id)
    model = tabular_model(env, limit or gym.spec(env_id).max_episode_steps)
    env.close()
    assert model is not None
    return model, None


def learn_stepwise(setup: Setup, env_id: str, seed: int) -> Inspection:
    """One seed after its budget, by the usual loop on the model's table."""
    streams = Streams(seed)
    env = TableVecEnv(setup.model, setup.num_envs, streams.numpy("env"), env_id, setup.observation)
    task = Task(env.spec, setup.env_steps, torch.device("cpu"), streams)
    agent = load_algorithm(setup.settings.algorithm).make_agent(setup.settings, task)
    policy = agent.policy(Mode("train"), setup.num_envs, streams.torch("policy"))
    Interaction(agent, env, policy)(setup.env_steps)
    inspection: Inspection = agent.inspect()
    return inspection


def learn_compiled(setup: Setup, rule: str, seeds: int) -> list[Inspection]:
    """All seeds after their budget, side by side."""
    compiled: Any = load_algorithm("tabular_compiled")
    known = {f.name for f in fields(compiled.Settings)}
    shared = {k: v for k, v in vars(setup.settings).items() if k in known and k != "algorithm"}
    settings = compiled.Settings(**shared, rule=rule)
    population = Population(
        compiled.make_variant(settings, setup.model),
        setup.model,
        compiled.make_numbers(settings, setup.env_steps),
        seeds,
        Streams(0).seed("tabular_exact"),
        settings.initial_q,
    )
    population.advance(setup.env_steps)
    q = population.q.mean(dim=2).numpy()  # (seeds, S, A); of two tables, their mean
    visits = population.visits.numpy()
    return [Inspection({}, q[i], epsilon_greedy(q[i], 0.0), visits[i]) for i in range(seeds)]


def yardstick(measure: str, setup: Setup, scale: float | None = None) -> Callable[[Inspection], float]:
    """Tells the relative loss, or error, of what has been learned; see the module docstring.

    Args:
        measure: which.
        setup: the model and the settings.
        scale: what a loss is a share of, by default the best value.
    """
    model, gamma = setup.model, setup.settings.gamma
    seen = np.arange(model.num_states) if setup.observation is None else setup.observation
    backup: Callable[[Floats], Floats] = greedy_value
    if measure == "on_policy":
        backup = partial(epsilon_soft_value, epsilon=setup.settings.epsilon_end)
    elif measure in ("soft", "boltzmann"):
        backup = partial(
            log_sum_exp_value if measure == "soft" else boltzmann_value, temperature=setup.settings.temperature_end
        )

    def residual(inspection: Inspection) -> float:
        q = inspection.q[seen]
        return _weighted(q - action_values(model, backup(q), gamma), q, inspection.visits)

    if measure == "boltzmann":
        return residual
    exact, _ = value_iteration(model, gamma, backup)
    best = float(model.start @ backup(exact))

    def error(inspection: Inspection) -> float:
        return _weighted(inspection.q[seen] - exact, exact, inspection.visits)

    def loss(inspection: Inspection) -> float:
        policy = inspection.policy[seen]
        if measure == "on_policy":
            policy = epsilon_greedy(inspection.q[seen], setup.settings.epsilon_end)
        return (best - float(model.start @ evaluate_policy(model, policy, gamma))) / (scale or abs(best))

    return error if measure == "soft" else loss


def _weighted(error: Floats, values: Floats, visits: np.ndarray) -> float:
    """Mean absolute error of the entries, weighted by how often each was learned from, as a share of their range."""
    return float((np.abs(error) * visits).sum() / visits.sum() / np.ptp(values[visits > 0]))


def cell(contestant: Contestant, env_id: str, seeds: int, stepwise: bool = False, more: tuple[str, ...] = ()) -> dict:
    """One entry of the table."""
    began = time.perf_counter()
    setup = setup_of(contestant, env_id, more)
    rule = None if stepwise else contestant.compiled_rule
    if rule is not None:
        setup = replace(setup, num_envs=1)
        inspections = learn_compiled(setup, rule, seeds)
    else:
        inspections = [learn_stepwise(setup, env_id, seed) for seed in range(seeds)]
    error_of = yardstick(contestant.measure, setup, STAKE if env_id == "Blackjack-v1" else None)
    errors = [error_of(inspection) for inspection in inspections]
    return {
        "measure": contestant.measure,
        "command": shlex.join(["python", "train.py", *contestant.command(env_id), *more]),
        "env_steps": setup.env_steps,
        "path": "compiled" if rule is not None else "stepwise",
        "num_envs": setup.num_envs,
        "settings": {k: v for k, v in vars(setup.settings).items() if k != "algorithm"},
        "time_limit": setup.model.max_episode_steps,
        "seeds": seeds,
        "within_1_percent": sum(e <= TOLERANCE for e in errors),
        "median_error": float(np.median(errors)),
        "largest_error": float(max(errors)),
        "seconds": round(time.perf_counter() - began, 1),
    }


def main(arguments: list[str]) -> int:
    keys = dict(argument.split("=", 1) for argument in arguments)
    seeds = int(keys.get("seeds", 20))
    names = keys["agents"].split(",") if "agents" in keys else list(CONTESTANTS)
    for name in names:
        for env_id in CONTESTANTS[name].worlds:
            if "envs" in keys and env_id not in keys["envs"].split(","):
                continue
            row = cell(CONTESTANTS[name], env_id, seeds, keys.get("path") == "stepwise")
            stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
            stored[f"{name} on {env_id}"] = row
            RESULTS.parent.mkdir(parents=True, exist_ok=True)
            RESULTS.write_text(json.dumps(dict(sorted(stored.items())), indent=1) + "\n")
            print(line(name, env_id, row), flush=True)
    return 0


def line(name: str, env_id: str, row: dict[str, Any]) -> str:
    """An entry as a person reads it."""
    return (
        f"{name:24s}{env_id:18s}{row['measure']:11s}{row['env_steps']:>9,} steps, {row['path']}  "
        f"{row['within_1_percent']:>2}/{row['seeds']} within 1 %  median {row['median_error']:.2%}  "
        f"largest {row['largest_error']:.2%}  {row['seconds']} s"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
