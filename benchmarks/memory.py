"""What memory is worth where it is needed: PPO with and without a recurrent core on `experiment=driving_memory`, beside
PQN, which has no memory, the planner, which knows the map, and random actions.

    python -m benchmarks.memory                  # five seeds of each that learns: about ten minutes on one core

Every seed is trained by `python train.py` and evaluated by `python evaluate.py` over 100 episodes. The intervals are
over seeds: 95 % by bootstrap of the mean. A seed that `results/driving_memory.json` already has is not run again;
delete the file to measure everything anew.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS, write_result
from training.evaluation import bootstrap_interval

ROOT = Path(__file__).resolve().parent.parent
TASK = [
    "env=Driving/Route-v0", "env.city=memory", "env.guidance=signs", "env.top_speed=1", "env.time_limit=60",
    "env.shaping=1.0", "eval.every_env_steps=0", "checkpoint.every_env_steps=0",
]  # fmt: skip
"""What `experiment=driving_memory` sets of the environment."""
CONTENDERS = {
    "ppo, lstm": ["experiment=driving_memory", "agent.core=lstm"],
    "ppo": ["experiment=driving_memory", "agent.core=none"],
    "pqn": ["agent=pqn", *TASK, "total_env_steps=250_000", "num_envs=128"],
    "planner": ["agent=planner", *TASK, "total_env_steps=128"],
    "random": ["agent=random", *TASK, "total_env_steps=128"],
}
UNTRAINED = ("planner", "random")
FIGURES = ("success_rate", "mean_spl", "mean_reward")


def train_and_evaluate(name: str, seed: int) -> dict[str, Any]:
    """Success, SPL and return of one seed."""
    with tempfile.TemporaryDirectory() as folder:
        train = ["train.py", *CONTENDERS[name], f"seed={seed}", f"run_dir={folder}", "device=cpu"]
        evaluate = ["evaluate.py", "run=latest", f"run_dir={folder}", "episodes=100", "mode=greedy", "format=json"]
        subprocess.run([sys.executable, *train], cwd=ROOT, check=True, capture_output=True)
        answer = subprocess.run([sys.executable, *evaluate], cwd=ROOT, check=True, capture_output=True, text=True)
    result = json.loads(answer.stdout)
    row = {"seed": seed, **{figure: result[figure] for figure in FIGURES}}
    print(f"{name} seed {seed}: success {row['success_rate']:.2f}, SPL {row['mean_spl']:.2f}", flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=list(CONTENDERS), choices=CONTENDERS)
    arguments = parser.parse_args()
    file = RESULTS / "driving_memory.json"
    runs: dict[str, list[dict[str, Any]]] = json.loads(file.read_text())["runs"] if file.exists() else {}
    for name in arguments.only:
        rows = runs.setdefault(name, [])
        for seed in range(1 if name in UNTRAINED else arguments.seeds):
            if seed not in [row["seed"] for row in rows]:
                rows.append(train_and_evaluate(name, seed))
    summary = {
        name: {figure: [mean(rows, figure), *bootstrap_interval([row[figure] for row in rows])] for figure in FIGURES}
        for name, rows in runs.items()
    }
    for name, found in summary.items():
        print(f"{name}: {found}")
    write_result("driving_memory", {"contenders": CONTENDERS, "summary": summary, "runs": runs})


def mean(rows: list[dict[str, Any]], figure: str) -> float:
    return sum(row[figure] for row in rows) / len(rows)


if __name__ == "__main__":
    main()
