"""Tabular agents on continuous observations, cut into tiles or bins: seeds of the shipped defaults, played greedily.

    python -m benchmarks.tabular_boxes                       # five seeds of each row
    python -m benchmarks.tabular_boxes only=CartPole seeds=3

Settings and budgets are those of `python train.py` with the command of the row; the greedy policy then plays
100 episodes. MountainCar-v0 counts as solved at -110 (Gymnasium's threshold), CartPole-v1 at 475.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import Any

import torch

from agents import load_algorithm
from benchmarks.record import RESULTS, write_result
from contract import Mode, Streams, Task
from envs import settings as env_settings
from envs.make import make_env
from training.config import TrainConfig, compose_config, typed
from training.evaluation import evaluate
from training.loop import Interaction

ROWS = (
    "agent=sarsa_lambda env=MountainCar-v0",
    "agent=q_learning env=MountainCar-v0",
    "agent=q_learning env=CartPole-v1",
    "agent=q_learning env=CartPole-v1 env.discretize=bins env.bins=[1,4,12,8] total_env_steps=150_000",
    "agent=q_learning env=MountainCar-v0 env.discretize=bins env.bins=[20] total_env_steps=200_000",
)
EPISODES = 100


def play(command: str, seed: int) -> dict[str, Any]:
    """Trains one seed as train.py would, and lets its greedy policy play."""
    plain = compose_config([*command.split(), f"seed={seed}"], env_settings)
    config = typed(TrainConfig, plain)
    env_config = typed(env_settings.settings_class(plain["env"]["id"]), plain["env"], "env")
    streams, algorithm = Streams(seed), load_algorithm(plain["agent"]["algorithm"])
    settings = typed(algorithm.Settings, plain["agent"], "agent")
    env = make_env(env_config, config.num_envs, streams, "train")
    agent = algorithm.make_agent(settings, Task(env.spec, config.total_env_steps, torch.device("cpu"), streams))
    policy = agent.policy(Mode("train"), config.num_envs, streams.torch("policy"))
    began = time.perf_counter()
    Interaction(agent, env, policy)(config.total_env_steps)
    wall_s = time.perf_counter() - began
    env.close()
    env = make_env(env_config, 20, streams, "evaluate")
    episodes = evaluate(agent.policy(Mode("greedy"), 20, streams.torch("evaluate/policy")), env, EPISODES)
    env.close()
    mean = statistics.fmean(episode.episode_return for episode in episodes)
    return {"seed": seed, "env_steps": config.total_env_steps, "mean_reward": mean, "wall_s": round(wall_s, 1)}


def main(arguments: list[str]) -> None:
    torch.set_num_threads(1)
    env_settings.register_environments()
    keys = dict(argument.split("=", 1) for argument in arguments)
    for command in ROWS:
        if keys.get("only", "") not in command:
            continue
        rows = [play(command, seed) for seed in range(int(keys.get("seeds", 5)))]
        means = sorted(row["mean_reward"] for row in rows)
        print(f"{command}: median {statistics.median(means):.1f}, {means[0]:.1f} to {means[-1]:.1f}", flush=True)
        path = RESULTS / "tabular_boxes.json"
        before = json.loads(path.read_text())["runs"] if path.exists() else {}
        write_result("tabular_boxes", {"episodes": EPISODES, "runs": before | {command: rows}})


if __name__ == "__main__":
    main(sys.argv[1:])
