"""Pendulum-v1 with DDPG, TD3 and SAC: from `python train.py` to a greedy evaluation over 100 episodes, seed by seed.

    python -m benchmarks.pendulum                         # five seeds of each, about ten minutes on one quiet core
    python -m benchmarks.pendulum --peers                 # and Stable-Baselines3's, with the same budget, beside them

A seed that `results/pendulum.json` already has is not run again, so that an interrupted benchmark continues; delete the
file to measure everything anew. `cpu_s` is the processor time of the whole training command, imports included: unlike
the wall-clock it hardly depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS, cpu_s, stamp, write_result

ROOT = Path(__file__).resolve().parent.parent
SOLVED = -200.0
OURS = ("ddpg", "td3", "sac")
PEERS = ("sb3_ddpg", "sb3_td3", "sb3_sac")


def train_and_evaluate(agent: str, seed: int, folder: str) -> dict[str, Any]:
    """One seed: the training command, timed, then the evaluation command."""
    command = [f"agent={agent}", "env=Pendulum-v1", f"seed={seed}", f"run_dir={folder}", "device=cpu"]
    quiet = ["eval.every_env_steps=0", "checkpoint.every_env_steps=0", "log.tensorboard=false"]
    began, cpu_before = time.perf_counter(), cpu_s()
    subprocess.run([sys.executable, "train.py", *command, *quiet], cwd=ROOT, check=True, capture_output=True)
    wall, cpu = time.perf_counter() - began, cpu_s() - cpu_before
    evaluate = [sys.executable, "evaluate.py", "run=latest", f"run_dir={folder}", "episodes=100", "mode=greedy"]
    answer = subprocess.run([*evaluate, "format=json"], cwd=ROOT, check=True, capture_output=True, text=True)
    result = json.loads(answer.stdout)
    figures = {
        **stamp(),
        "seed": seed,
        "mean_reward": result["mean_reward"],
        "env_steps": result["checkpoint_env_steps"],
        "wall_s": wall,
        "cpu_s": cpu,
    }
    print(f"{agent} seed {seed}: {figures['mean_reward']:.1f} in {cpu:.0f} CPU seconds", flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--agents", nargs="+", choices=OURS + PEERS, help="only these")
    parser.add_argument("--most", type=int, help="stop after so many runs")
    arguments = parser.parse_args()
    file = RESULTS / "pendulum.json"
    runs: dict[str, list[dict[str, Any]]] = json.loads(file.read_text())["runs"] if file.exists() else {}
    agents = arguments.agents or (OURS + PEERS if arguments.peers else OURS)
    missing = [
        (agent, seed)
        for seed in range(arguments.seeds)
        for agent in agents
        if seed not in [row["seed"] for row in runs.get(agent, [])]
    ]
    for agent, seed in missing[: arguments.most]:
        with tempfile.TemporaryDirectory() as folder:
            runs.setdefault(agent, []).append(train_and_evaluate(agent, seed, folder))
        write_result("pendulum", {"env": "Pendulum-v1", "threshold": SOLVED, "runs": runs})
    for agent, rows in runs.items():
        returns = [row["mean_reward"] for row in rows]
        print(
            f"{agent}: {sum(r >= SOLVED for r in returns)} of {len(rows)} seeds at {SOLVED:g} or more, worst "
            f"{min(returns):.1f}; median {statistics.median(row['cpu_s'] for row in rows):.0f} CPU seconds"
        )


if __name__ == "__main__":
    main()
