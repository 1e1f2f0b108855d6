"""Takes the learning curve and the evaluation of a finished run into `results/`, from which the README is made.

python train.py experiment=pong seed=1
python evaluate.py run=latest episodes=20
python -m benchmarks.curve pong runs/ALE-Pong-v5/dqn/seed1-...
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.record import write_result
from training.run import find_run


def learning_curve(path: Path) -> dict[str, list[list[float]]]:
    """(env steps, seconds, value) rows of the training and evaluation returns in a run's metrics.jsonl.

    Seconds are summed from `time/fps`: the wall-clock of the loop, with learning, evaluation and checkpoints.
    """
    curve: dict[str, list[list[float]]] = {"rollout/ep_rew_mean": [], "eval/mean_reward": []}
    seconds, steps = 0.0, 0
    for line in path.read_text().splitlines():
        row = json.loads(line)
        if "time/fps" in row:
            seconds += (row["env_steps"] - steps) / row["time/fps"]
            steps = row["env_steps"]
        for tag, rows in curve.items():
            if tag in row:
                rows.append([row["env_steps"], round(seconds, 1), row[tag]])
    return curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the file in results/")
    parser.add_argument("run", help="a run folder, or latest")
    arguments = parser.parse_args()
    run = find_run(arguments.run)
    evaluations = sorted((run.path / "eval").glob("*.json"))
    result: dict[str, Any] = json.loads(evaluations[-1].read_text()) if evaluations else {}
    result.pop("run", None)
    figures = {
        "train_command": (run.path / "command.txt").read_text().strip(),
        "train_versions": json.loads((run.path / "versions.json").read_text()),
        "config": run.config(),
        "curve": learning_curve(run.metrics),
        "evaluation": result,
    }
    print(f"written to {write_result(arguments.name, figures).name}")


if __name__ == "__main__":
    main()
