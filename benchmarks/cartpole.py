"""CartPole-v1 with an agent's defaults: seeds from `python train.py` to a greedy evaluation over 100 episodes each.

    python -m benchmarks.cartpole                                   # dqn: about six minutes on two cores
    python -m benchmarks.cartpole --agent ppo --peer-seeds 3        # and Stable-Baselines3's, at its Zoo settings
    python -m benchmarks.cartpole --agent ppo --device-env --peer-seeds 3   # the environments as one kernel

The wall-clock of a seed is that of the whole command, start of Python and imports included; `training_s` is the part
between its first and its last environment step, learning included. The processor time is that of the command, all cores
together: it does not change when other programs run beside it.
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

from benchmarks.record import cpu_s, write_result

ROOT = Path(__file__).resolve().parent.parent
SOLVED = 475.0
ON_DEVICE = {"ppo": ["experiment=cartpole_ppo_device"]}
"""What `--device-env` trains with."""


def train_and_evaluate(agent: str, overrides: list[str], seed: int, folder: str) -> dict[str, float]:
    """One seed: the training command, timed, then the evaluation command."""
    train = [
        sys.executable,
        "train.py",
        *overrides,
        f"seed={seed}",
        f"run_dir={folder}",
        "eval.every_env_steps=0",
        "device=cpu",
    ]
    began, used = time.perf_counter(), cpu_s()
    subprocess.run(train, cwd=ROOT, check=True, capture_output=True)
    wall_s, processor_s = time.perf_counter() - began, cpu_s() - used
    evaluate = [sys.executable, "evaluate.py", "run=latest", f"run_dir={folder}", "episodes=100", "mode=greedy"]
    answer = subprocess.run([*evaluate, "format=json"], cwd=ROOT, check=True, capture_output=True, text=True)
    result = json.loads(answer.stdout)
    figures = {
        "seed": seed,
        "mean_reward": result["mean_reward"],
        "wall_s": wall_s,
        "processor_s": processor_s,
        "training_s": training_seconds(folder),
    }
    print(
        f"{agent} seed {seed}: {figures['mean_reward']:.1f}; command {wall_s:.1f} s ({processor_s:.1f} s of "
        f"processor), training {figures['training_s']:.1f} s",
        flush=True,
    )
    return figures


def training_seconds(folder: str) -> float:
    """Time between the first and the last step of the only run in `folder`, from the speeds that it logged."""
    (path,) = Path(folder).glob("**/metrics.jsonl")
    seconds, before = 0.0, 0.0
    for row in map(json.loads, path.read_text().splitlines()):
        if "time/fps" in row:
            seconds += (row["env_steps"] - before) / row["time/fps"]
            before = row["env_steps"]
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agent", default="dqn")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--peer-seeds", type=int, default=0)
    parser.add_argument("--device-env", action="store_true", help="environments as one kernel, for ours only")
    arguments = parser.parse_args()
    agent, peer = arguments.agent, f"sb3_{arguments.agent}"
    name = f"cartpole_{agent}_device" if arguments.device_env else "cartpole" if agent == "dqn" else f"cartpole_{agent}"
    ours = ON_DEVICE[agent] if arguments.device_env else [f"agent={agent}"]
    figures: dict[str, list[dict[str, float]]] = {}
    for contender, overrides, seeds in (
        (agent, ours, arguments.seeds),
        (peer, [f"agent={peer}"], arguments.peer_seeds),
    ):
        rows = []
        for seed in range(seeds):
            with tempfile.TemporaryDirectory() as folder:
                rows.append(train_and_evaluate(contender, overrides, seed, folder))
        if rows:
            figures[contender] = rows
            solved = sum(row["mean_reward"] >= SOLVED for row in rows)
            medians = {k: statistics.median(row[k] for row in rows) for k in ("wall_s", "processor_s", "training_s")}
            print(
                f"{contender}: {solved} of {seeds} seeds at {SOLVED:g} or more; medians: command "
                f"{medians['wall_s']:.1f} s ({medians['processor_s']:.1f} s of processor), training "
                f"{medians['training_s']:.1f} s"
            )
    write_result(name, {"env": "CartPole-v1", "threshold": SOLVED, "runs": figures})


if __name__ == "__main__":
    main()
