"""Learning to drive: PQN and PPO beside the planner, random play and Stable-Baselines3's PPO; PQN on device CartPole.

    python -m benchmarks.driving                                    # everything, about ten minutes on two quiet cores
    python -m benchmarks.driving route traffic lane_keep events     # some parts; the others keep their last figures
    python -m benchmarks.driving route_ppo cartpole sb3

PQN is trained by `python train.py experiment=driving_<part>`, PPO by the command in its row; both then play greedily in
cities that no training run has seen. Wall-clock is that of the whole training command, imports, evaluations and
checkpoints included.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import PPO

from agents import load_algorithm
from benchmarks.record import RESULTS, stamp, write_result
from contract import Agent, Episode, Mode, Streams, Task
from envs import settings as env_settings
from envs.make import make_env
from evaluate import EvaluateConfig, load_agent
from training.config import typed
from training.evaluation import bootstrap_interval, evaluate
from training.run import Run, find_run

ROOT = Path(__file__).resolve().parent.parent
IDS = {
    "route": "Driving/Route-v0",
    "traffic": "Driving/Traffic-v0",
    "lane_keep": "Driving/LaneKeep-v0",
    "events": "Driving/Events-v0",
}
EPISODES, EVAL_ENVS = 1000, 250
PPO_STEPS = {"route": 1_000_000, "traffic": 4_000_000}
CARTPOLE_SEEDS = 5
SB3_STEPS = 100_000


def train(folder: str, *overrides: str) -> tuple[Run, float]:
    """One training command; returns the run and its wall-clock in seconds."""
    command = [sys.executable, "train.py", *overrides, f"run_dir={folder}", "log.progress=false"]
    began = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return find_run("latest", folder), time.perf_counter() - began


def play(agent: Agent, settings: env_settings.EnvSettings, mode: str = "greedy") -> list[Episode]:
    """Whole episodes in the cities of the evaluation."""
    streams = Streams(0)
    env = make_env(settings, EVAL_ENVS, streams, "evaluate")
    policy = agent.policy(Mode.parse(mode), EVAL_ENVS, streams.torch("evaluate/policy"))
    episodes = evaluate(policy, env, EPISODES)
    env.close()
    return episodes


def figures(episodes: Sequence[Episode]) -> dict[str, Any]:
    """Means over episodes with their 95 % intervals."""
    values = {
        "success": [float(bool(e.success)) for e in episodes],
        "collision": [e.extras["collision"] for e in episodes],
        "spl": [e.extras["spl"] for e in episodes],
        "length": [float(e.length_env_steps) for e in episodes],
        **{name: [e.extras[name] for e in episodes] for name in ("red_light", "wrong_way", "off_lane")},
    }
    means = {name: [float(np.mean(v)), *bootstrap_interval(v)] for name, v in values.items()}
    return {"episodes": len(episodes)} | {name: [round(x, 4) for x in row] for name, row in means.items()}


def unlearned(name: str, settings: env_settings.EnvSettings) -> Agent:
    """The planner, or random actions."""
    algorithm = load_algorithm(name)
    env = make_env(settings, 1, Streams(0), "evaluate")
    agent: Agent = algorithm.make_agent(algorithm.Settings(), Task(env.spec, 1, torch.device("cpu"), Streams(0)))
    return agent


def curve(run: Run) -> list[list[float]]:
    """(env steps, seconds, success, collisions) of the training episodes, from metrics.jsonl."""
    rows, seconds, steps = [], 0.0, 0
    for line in run.metrics.read_text().splitlines():
        row = json.loads(line)
        if "time/fps" in row:
            seconds += (row["env_steps"] - steps) / row["time/fps"]
            steps = row["env_steps"]
            if "rollout/success_rate" in row:
                rows.append([steps, round(seconds, 1), row["rollout/success_rate"], row["rollout/collision"]])
    return rows


def learned(agent_name: str, part: str, overrides: list[str]) -> tuple[dict[str, Any], env_settings.EnvSettings]:
    """One training run and its greedy score, and the environment it played."""
    with tempfile.TemporaryDirectory() as folder:
        run, wall_s = train(folder, *overrides)
        trained = run.config()
        settings = typed(env_settings.settings_class(IDS[part]), trained["env"], "env")
        spec = make_env(settings, EVAL_ENVS, Streams(0), "evaluate").spec
        agent, env_steps = load_agent(trained, run, EvaluateConfig(run=str(run.path)), spec)
        result = {
            "command": "python train.py " + " ".join(overrides),
            "env": IDS[part],
            "env_steps": env_steps,
            "wall_s": round(wall_s, 1),
            "config": {"env": trained["env"], "agent": trained["agent"]},
            "curve": curve(run),
            agent_name: figures(play(agent, settings)),
        }
    return result, settings


def pqn(part: str) -> dict[str, Any]:
    """PQN, the planner and random actions on one environment."""
    result, settings = learned("pqn", part, [f"experiment=driving_{part}", "seed=0"])
    for name in ("planner", "random"):
        result[name] = figures(play(unlearned(name, settings), settings))
    return result


def ppo(part: str) -> dict[str, Any]:
    """PPO on one environment, for as many steps as PQN."""
    overrides = ["agent=ppo", f"env={IDS[part]}", "env.shaping=2.0", f"total_env_steps={PPO_STEPS[part]}", "seed=0"]
    return learned("ppo", part, overrides)[0]


def cartpole() -> dict[str, Any]:
    """PQN on device CartPole: whole command, loop alone, greedy score."""
    rows = []
    for seed in range(CARTPOLE_SEEDS):
        with tempfile.TemporaryDirectory() as folder:
            run, wall_s = train(folder, "agent=pqn", "env=CartPole-v1", f"seed={seed}")
            logged = [json.loads(line) for line in run.metrics.read_text().splitlines()]
            ends = [0, *(row["env_steps"] for row in logged)]
            loop_s = sum((b - a) / row["time/fps"] for a, b, row in zip(ends, ends[1:], logged, strict=False))
            answer = subprocess.run(
                [sys.executable, "evaluate.py", f"run={run.path}", "episodes=100", "mode=greedy", "format=json"],
                cwd=ROOT,
                check=True,
                capture_output=True,
                text=True,
            )
        mean = json.loads(answer.stdout)["mean_reward"]
        rows.append({"seed": seed, "mean_reward": mean, "wall_s": round(wall_s, 1), "training_s": round(loop_s, 1)})
        print(rows[-1], flush=True)
    return {"command": "python train.py agent=pqn env=CartPole-v1", "runs": rows}


def sb3() -> dict[str, Any]:
    """Stable-Baselines3's PPO, at its own defaults, on what plain `gym.make` gives; then in the same cities as ours."""
    began = time.perf_counter()
    model = PPO("MlpPolicy", gym.make("Driving/Route-v0", shaping=2.0), seed=0, device="cpu").learn(SB3_STEPS)
    wall_s = time.perf_counter() - began
    settings = env_settings.DrivingSettings("Driving/Route-v0")
    env = make_env(settings, EVAL_ENVS, Streams(0), "evaluate")
    episodes: list[Episode] = []
    obs, quota = env.reset(), EPISODES // EVAL_ENVS
    played = [0] * EVAL_ENVS
    while min(played) < quota:
        action, _ = model.predict(obs.numpy(), deterministic=True)  # type: ignore[union-attr]
        step = env.step(torch.as_tensor(action))
        obs = step.obs
        for episode in step.episodes:
            if played[episode.env_index] < quota:
                played[episode.env_index] += 1
                episodes.append(episode)
    return {"env_steps": SB3_STEPS, "wall_s": round(wall_s, 1), "ppo": figures(episodes)}


def main() -> None:
    torch.set_num_threads(1)
    env_settings.register_environments()
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        **{part: partial(pqn, part) for part in IDS},
        **{f"{part}_ppo": partial(ppo, part) for part in PPO_STEPS},
        "cartpole": cartpole,
        "sb3": sb3,
    }
    parts = sys.argv[1:] or list(measures)
    for part in parts:
        if part not in measures:
            raise SystemExit(f"error: unknown part '{part}'; known: {', '.join(measures)}")
    file = RESULTS / "driving.json"
    for part in parts:
        result = measures[part]()
        shown = {k: v for k, v in result.items() if k not in ("curve", "config")}
        print(part, json.dumps(shown), flush=True)
        others = json.loads(file.read_text())["parts"] if file.exists() else {}
        write_result("driving", {"parts": others | {part: stamp() | result}})


if __name__ == "__main__":
    main()
