"""Does a pretrained backbone pay? PPO drives by its camera, from scratch and on a backbone that has seen cities before.

    python -m benchmarks.transfer                 # under half an hour on one quiet core
    python -m benchmarks.transfer --most 3        # only so many runs now; the next call continues

A network of nips_cnn's size first learns to name what is in 20,000 images of generated cities (`vision.train
data=driving_scenes`), none of which is the map that the agents drive on. Then PPO learns to drive, five seeds of each:

    scratch      random weights
    fine_tuned   begins with the backbone, and changes it
    frozen       the backbone stays as it is: a linear probe of it

What counts is how many environment steps it takes until a greedy evaluation of 64 episodes reaches the goal in 60 % of
them; a run that never gets there counts as its whole length, and is counted apart. Seeds are pairs: `saved` is what a
seed saves beside its scratch, with a 95 % interval by Student's distribution. All seeds begin with one backbone, so
that no interval knows what another pretraining would have given. The images of the pretraining are environment steps
too, five for each, 100,000 in all: they are stated, not added.

A run that `results/transfer.json` already has is not run again; delete the file to measure everything anew. The
backbone is kept in `runs/transfer`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtrit

from benchmarks.record import RESULTS, cpu_s, stamp, write_result
from training.evaluation import bootstrap_interval
from training.run import find_run

ROOT = Path(__file__).resolve().parent.parent
SUCCESS = 0.6
SEEDS = range(5)
BACKBONE = "runs/transfer"
PRETRAINING = [
    "data=driving_scenes", "backbone=nips_cnn", "epochs=10", "learning_rate=1e-3", "torch_threads=1", "device=cpu",
    "log.tensorboard=false", "checkpoint.every_updates=0", f"run_dir={BACKBONE}",
]  # fmt: skip
TASK = [
    "agent=ppo", "env=Driving/Route-v0", "env.city=village", "env.obs=camera", "env.min_route=1", "env.time_limit=60",
    "env.shaping=1", "num_envs=16", "total_env_steps=65536", "torch_threads=1", "device=cpu",
    "agent.backbone=nips_cnn", "agent.rollout_steps=64", "agent.batch_size=128", "agent.num_epochs=2",
    "agent.learning_rate=5e-4", "agent.learning_rate_end=null", "agent.entropy_coef=0.01",
    "eval.every_env_steps=4096", "eval.episodes=64", "eval.num_envs=64", "eval.mode=greedy",
    "log.every_env_steps=4096", "log.tensorboard=false", "checkpoint.every_env_steps=0",
]  # fmt: skip
WAYS = {
    "scratch": [],
    "fine_tuned": ["agent.backbone_init={backbone}"],
    "frozen": ["agent.backbone_init={backbone}", "agent.backbone_freeze=true"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=1_000, help="stop after so many runs")
    parser.add_argument("--only", nargs="+", choices=WAYS, default=list(WAYS))
    arguments = parser.parse_args()
    file = RESULTS / "transfer.json"
    known: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    pretraining, runs = known.get("pretraining"), known.get("runs", {way: [] for way in WAYS})
    missing = [
        (seed, way) for seed in SEEDS for way in arguments.only if seed not in [run["seed"] for run in runs[way]]
    ]
    for seed, way in missing[: arguments.most]:
        if pretraining is None or not (ROOT / pretraining["run"]).is_dir():
            pretraining = pretrain()
        runs[way].append(drive(seed, [text.format(backbone=pretraining["run"]) for text in WAYS[way]]))
        print(f"{way} seed {seed}: {runs[way][-1]['success']}", flush=True)
        write_result("transfer", {"pretraining": pretraining, "task": TASK, "ways": WAYS, "runs": runs})
    figures = {way: summary(rows) | saved(rows, runs["scratch"]) for way, rows in runs.items() if rows}
    write_result("transfer", {"pretraining": pretraining, "task": TASK, "ways": WAYS, "summary": figures, "runs": runs})
    for way, found in figures.items():
        low, high = found["ci95"]
        print(
            f"{way}: {found['mean_env_steps']:,.0f} steps [{low:,.0f}, {high:,.0f}] to {SUCCESS:.0%} success, "
            f"{found['reached']} of {found['seeds']} seeds got there; {found['median_cpu_s']:.0f} CPU seconds a run"
        )


def pretrain() -> dict[str, Any]:
    """Teaches a backbone what is in the images; says where it is, and how good on cities it has never seen."""
    before = cpu_s()
    subprocess.run([sys.executable, "-m", "vision.train", *PRETRAINING], cwd=ROOT, check=True, capture_output=True)
    used, run = cpu_s() - before, find_run("latest", str(ROOT / BACKBONE))
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    last = next(row for row in reversed(rows) if "eval/accuracy_scene" in row)
    accuracy = {tag.removeprefix("eval/"): value for tag, value in last.items() if tag.startswith("eval/accuracy")}
    return {
        "run": str(run.path.relative_to(ROOT)),
        "command": PRETRAINING,
        "cpu_s": round(used, 1),
        "validation": accuracy,
    }


def drive(seed: int, overrides: list[str]) -> dict[str, Any]:
    """One training run."""
    before = cpu_s()
    with tempfile.TemporaryDirectory() as folder:
        command = [*TASK, *overrides, f"seed={seed}", f"run_dir={folder}"]
        subprocess.run([sys.executable, "train.py", *command], cwd=ROOT, check=True, capture_output=True)
        rows = [json.loads(line) for line in find_run("latest", folder).metrics.read_text().splitlines()]
    success = [[row["env_steps"], round(row["eval/success_rate"], 4)] for row in rows if "eval/success_rate" in row]
    reached = next((env_steps for env_steps, rate in success if rate >= SUCCESS), None)
    return {**stamp(), "seed": seed, "env_steps": reached, "success": success, "cpu_s": round(cpu_s() - before, 1)}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean steps to the goal with a 95 % bootstrap interval over seeds."""
    steps = [steps_of(row) for row in rows]
    used = sorted(row["cpu_s"] for row in rows)
    return {
        "seeds": len(rows),
        "reached": sum(row["env_steps"] is not None for row in rows),
        "mean_env_steps": sum(steps) / len(steps),
        "ci95": list(bootstrap_interval(steps)),
        "mean_final_success": sum(row["success"][-1][1] for row in rows) / len(rows),
        "median_cpu_s": used[len(used) // 2],
    }


def steps_of(row: dict[str, Any]) -> int:
    """Environment steps until a run got there, or its length."""
    steps: int = row["env_steps"] or row["success"][-1][0]
    return steps


def saved(rows: list[dict[str, Any]], scratch: list[dict[str, Any]]) -> dict[str, Any]:
    """Environment steps that each seed saves beside its scratch: mean and 95 % interval of it."""
    base = {row["seed"]: steps_of(row) for row in scratch}
    each = np.array([base[row["seed"]] - steps_of(row) for row in rows if row["seed"] in base], float)
    half = float(stdtrit(len(each) - 1, 0.975) * each.std(ddof=1) / len(each) ** 0.5) if len(each) > 1 else float("inf")
    return {"saved_env_steps": float(each.mean()), "saved_ci95": [each.mean() - half, each.mean() + half]}


if __name__ == "__main__":
    main()
