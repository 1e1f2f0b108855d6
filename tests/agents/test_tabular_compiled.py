"""Compiled tabular learners behind the contract."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from agents import tabular_compiled
from agents.tabular_compiled import Settings, curve_figures
from contract import EnvSpec, Mode, Streams, Task
from envs.tables import TableVecEnv
from faults import CheckpointError, ConfigError, NonFiniteError
from memory.population import Finished
from tests.agents.tabular import lake
from tests.runs import only_run, run_evaluate, run_train

START = torch.ones(1, dtype=torch.bool)


def build(num_seeds: int = 6, seed: int = 0, total: int = 60_000, **settings):
    """An agent on FrozenLake, and its way to advance."""
    env = TableVecEnv(lake(slippery=True), 1, np.random.default_rng(0))
    spec = EnvSpec("lake", env.spec.observation_space, env.spec.action_space, num_seeds, model=env.spec.model)
    task = Task(spec, total, torch.device("cpu"), Streams(seed))
    agent = tabular_compiled.make_agent(Settings(**settings), task)
    return agent, agent.advance(env, lambda n, s: env)


def test_a_restored_run_continues_bit_for_bit():
    agent, advance = build(rule="sarsa", step_size_schedule="visits")
    advance(3_000)
    saved = agent.state_dict()
    twin, twin_advance = build(seed=9, rule="sarsa", step_size_schedule="visits")
    twin_advance(500)
    twin.load_state_dict(saved)
    first, second = advance(3_000), twin_advance(3_000)
    assert first == second
    assert torch.equal(
        torch.from_numpy(agent.state_dict()["policy"]["q"]), torch.from_numpy(twin.state_dict()["policy"]["q"])
    )


def test_every_learner_takes_its_share_of_the_steps():
    agent, advance = build(num_seeds=6)
    assert advance(10).env_steps == 12
    assert advance(1).env_steps == 6
    assert agent.state_dict()["population"]["time"].tolist() == [3] * 6
    assert advance.stride_env_steps >= 1_000_000


def test_learners_reach_the_optimum():
    agent, advance = build(
        num_seeds=8, total=3_200_000, initial_q=1.0, step_size=0.3, step_size_schedule="linear", step_size_end=0.002
    )
    before = agent.inspect().metrics
    advance(3_200_000)
    after = agent.inspect()
    assert before["eval/policy_regret"] > 0.3
    assert after.metrics["eval/policy_regret"] < 0.01 * 0.542  # 1 % of V* at the start
    assert after.visits.sum() == 3_200_000


def test_environment_i_is_played_by_learner_i():
    agent, _ = build(num_seeds=3)
    q = np.zeros((3, 16, 1, 4))
    for learner, action in enumerate((2, 0, 3)):
        q[learner, :, 0, action] = 1.0
    agent.load_policy_state_dict({"q": q, "visits": np.zeros((16, 4), np.int64), "steps": 0})
    policy = agent.policy(Mode("greedy"), 7, torch.Generator().manual_seed(0))
    acted = policy.act(torch.full((7,), 5), torch.ones(7, dtype=torch.bool))
    assert acted.action.tolist() == [2, 0, 3, 2, 0, 3, 2]


def test_an_agent_that_only_acts_takes_tables_of_any_number_of_learners():
    falling = {"rule": "softmax_soft", "temperature_start": 1.0, "temperature_end": 0.01}
    settings = {"temperature_decay_env_steps": 1_000, **falling}
    trained, advance = build(num_seeds=5, **settings)
    advance(5_000)
    spec = EnvSpec(
        "lake", *(getattr(trained._task.spec, k) for k in ("observation_space", "action_space")), 2, model=lake()
    )
    acting = tabular_compiled.make_agent(Settings(**settings), Task(spec, 1, torch.device("cpu"), Streams(0)))
    acting.load_policy_state_dict(trained.policy_state_dict())
    assert np.array_equal(acting.policy_state_dict()["q"], trained.policy_state_dict()["q"])
    assert acting.inspect().visits.sum() == 5_000
    own = [agent.policy(Mode("sample"), 2, torch.Generator()) for agent in (trained, acting)]
    assert np.array_equal(*(policy.probabilities(np.array([0, 5])) for policy in own))
    assert acting.policy_state_dict()["steps"] == 1_000
    with pytest.raises(CheckpointError, match="tables are"):
        build(num_seeds=4)[0].load_policy_state_dict(trained.policy_state_dict())


def test_figures_of_a_curve():
    finished = Finished(np.array([2, 0, 1, 4]), np.array([1.0, np.nan, 3.0, 8.0]), np.array([10.0, np.nan, 20.0, 60.0]))
    figures = curve_figures(finished)
    assert figures["rollout/ep_rew_mean"] == 4.0
    assert figures["rollout/ep_len_mean"] == 30.0
    assert figures["rollout/ep_rew_p05"] == pytest.approx(1.2)  # a tenth of the way from 1 to 3
    assert figures["rollout/ep_rew_p95"] == pytest.approx(7.5)  # nine tenths of the way from 3 to 8
    half_width = 1.96 * np.sqrt((9 + 1 + 16) / 2) / np.sqrt(3)
    assert figures["rollout/ep_rew_ci95_high"] == pytest.approx(4 + half_width)
    assert curve_figures(Finished(np.zeros(2), np.full(2, np.nan), np.full(2, np.nan))) == {}


def test_faults_are_one_line():
    agent, advance = build(num_seeds=1)
    agent._q.fill_(1e308)
    agent._population.q[0, 0, 0, 0] = float("inf")
    with pytest.raises(NonFiniteError, match="not finite"):
        advance(1)
    without = EnvSpec("Fog-v0", agent._task.spec.observation_space, agent._task.spec.action_space, 1)
    with pytest.raises(ConfigError, match="Fog-v0 has none"):
        tabular_compiled.make_agent(Settings(), Task(without, 1, torch.device("cpu"), Streams(0)))
    with pytest.raises(ConfigError, match="lower num_envs"):
        build(num_seeds=10_000_000)
    with pytest.raises(ConfigError, match=r"agent\.rule"):
        Settings(rule="monte_carlo")


def test_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """2,000 learners, but a single environment to read the model from, in strides as long as the log allows."""
    from envs import make

    built, original = [], make.make_env

    def count(settings, num_envs, streams, name, first=0):
        built.append((name, num_envs))
        return original(settings, num_envs, streams, name, first)

    monkeypatch.setattr(make, "make_env", count)
    keys = ["total_env_steps=400_000", "num_envs=2000", "log.every_env_steps=200_000", "eval.every_env_steps=400_000"]
    common = ["device=cpu", "log.tensorboard=false", "eval.episodes=4", f"run_dir={tmp_path}"]
    assert run_train("agent=tabular_compiled", "agent.rule=sarsa", "env=FrozenLake-v1", *keys, *common) == 0
    assert built[0] == ("train", 1)
    run = only_run(tmp_path)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["env_steps"] for row in rows] == [200_000, 400_000, 400_000]
    assert rows[0]["rollout/ep_rew_ci95_low"] < rows[0]["rollout/ep_rew_mean"] < rows[0]["rollout/ep_rew_ci95_high"]
    assert rows[1]["rollout/episodes"] > rows[0]["rollout/episodes"] > 10_000
    assert {"eval/mean_reward", "eval/value_error", "eval/policy_regret"} < set(rows[2])
    assert run_evaluate(f"run={run}", "episodes=8", "format=json") == 0
