"""What memory is worth where it is needed: PPO with and without a recurrent core on `experiment=driving_memory`.

    python -m benchmarks.memory                  # five seeds of each: about six minutes on one core

Every seed is trained by `python train.py` and evaluated by `python evaluate.py` over 100 episodes. The intervals are
over seeds: 95 % by bootstrap of the mean.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.record import write_result
from training.evaluation import bootstrap_interval

ROOT = Path(__file__).resolve().parent.parent


def train_and_evaluate(core: str, seed: int) -> dict[str, Any]:
    """Success, SPL and return of one seed."""
    with tempfile.TemporaryDirectory() as folder:
        train = ["train.py", "experiment=driving_memory", f"agent.core={core}", f"seed={seed}", f"run_dir={folder}"]
        evaluate = ["evaluate.py", "run=latest", f"run_dir={folder}", "episodes=100", "mode=greedy", "format=json"]
        subprocess.run([sys.executable, *train], cwd=ROOT, check=True, capture_output=True)
        answer = subprocess.run([sys.executable, *evaluate], cwd=ROOT, check=True, capture_output=True, text=True)
    result = json.loads(answer.stdout)
    row = {"seed": seed, **{name: result[name] for name in ("success_rate", "mean_spl", "mean_reward")}}
    print(f"core={core} seed {seed}: success {row['success_rate']:.2f}, SPL {row['mean_spl']:.2f}", flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cores", nargs="+", default=["lstm", "none"], choices=["none", "lstm", "gru"])
    arguments = parser.parse_args()
    rows = {core: [train_and_evaluate(core, seed) for seed in range(arguments.seeds)] for core in arguments.cores}
    summary = {}
    for core, seeds in rows.items():
        success = [row["success_rate"] for row in seeds]
        summary[core] = {"success_rate": sum(success) / len(success), "ci95": list(bootstrap_interval(success))}
        print(f"core={core}: success {summary[core]['success_rate']:.3f}, 95 % interval {summary[core]['ci95']}")
    write_result("driving_memory", {"experiment": "driving_memory", "summary": summary, "runs": rows})


if __name__ == "__main__":
    main()
