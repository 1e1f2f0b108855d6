"""CartPole-v1 with the default DQN: ten seeds from `python train.py` to a greedy evaluation over 100 episodes each.

    python -m benchmarks.cartpole                         # about six minutes on two cores
    python -m benchmarks.cartpole --peer-seeds 3          # and Stable-Baselines3's DQN at its Zoo settings beside it

The wall-clock of a seed is that of the whole command, start of Python and imports included.
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

from benchmarks.record import write_result

ROOT = Path(__file__).resolve().parent.parent
SOLVED = 475.0


def train_and_evaluate(agent: str, seed: int, folder: str) -> dict[str, float]:
    """One seed: the training command, timed, then the evaluation command."""
    train = [
        sys.executable,
        "train.py",
        f"agent={agent}",
        f"seed={seed}",
        f"run_dir={folder}",
        "eval.every_env_steps=0",
    ]
    began = time.perf_counter()
    subprocess.run(train, cwd=ROOT, check=True, capture_output=True)
    wall_s = time.perf_counter() - began
    evaluate = [sys.executable, "evaluate.py", "run=latest", f"run_dir={folder}", "episodes=100", "mode=greedy"]
    answer = subprocess.run([*evaluate, "format=json"], cwd=ROOT, check=True, capture_output=True, text=True)
    result = json.loads(answer.stdout)
    figures = {"seed": seed, "mean_reward": result["mean_reward"], "wall_s": wall_s}
    print(f"{agent} seed {seed}: {figures['mean_reward']:.1f} in {wall_s:.1f} s", flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--peer-seeds", type=int, default=0)
    arguments = parser.parse_args()
    figures: dict[str, list[dict[str, float]]] = {}
    for agent, seeds in (("dqn", arguments.seeds), ("sb3_dqn", arguments.peer_seeds)):
        rows = []
        for seed in range(seeds):
            with tempfile.TemporaryDirectory() as folder:
                rows.append(train_and_evaluate(agent, seed, folder))
        if rows:
            figures[agent] = rows
            solved = sum(row["mean_reward"] >= SOLVED for row in rows)
            print(
                f"{agent}: {solved} of {seeds} seeds at {SOLVED:g} or more; "
                f"median wall-clock {statistics.median(row['wall_s'] for row in rows):.1f} s"
            )
    write_result("cartpole", {"env": "CartPole-v1", "threshold": SOLVED, "runs": figures})


if __name__ == "__main__":
    main()
