"""Two sweeps on CartPole-v1 on one machine: 2 agents x 3 seeds through Ray, and 10 trials chosen by Optuna.

pip install -r requirements-sweeps.txt
python -m benchmarks.sweeps                 # a few minutes on one core; writes results/sweeps.json

A sweep that the file already has is not run again; delete the file to measure anew.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from benchmarks.record import RESULTS, write_result

ROOT = Path(__file__).resolve().parent.parent
SWEEPS = {
    "ray": [
        "hydra/launcher=ray",
        "agent=dqn,ppo",
        "seed=0,1,2",
        "env=CartPole-v1",
        "total_env_steps=20_000",
        "eval.every_env_steps=5_000",
        "device=cpu",
    ],
    "optuna": [
        "sweep=optuna",
        "hydra.sweeper.n_trials=10",
        "agent=dqn",
        "agent.learning_rate=tag(log,interval(1e-4,1e-2))",
        "agent.target_sync_every_env_steps=choice(250,500,1000)",
        "env=CartPole-v1",
        "total_env_steps=6_000",
        "eval.every_env_steps=2_000",
        "device=cpu",
    ],
}
QUIET = ["log.tensorboard=false", "log.progress=false"]
PLUGINS = ("hydra-core", "hydra-ray-launcher", "ray", "hydra-optuna-sweeper", "optuna")


def sweep(overrides: list[str], folder: Path) -> dict[str, Any]:
    """Runs one sweep; returns its command and what each run came to."""
    shown = ["train.py", "-m", *overrides]
    places = [f"run_dir={folder / 'runs'}", f"hydra.sweep.dir={folder / 'sweep'}"]
    ended = subprocess.run(
        [sys.executable, *shown, *QUIET, *places], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if ended.returncode:
        raise SystemExit(ended.stdout + ended.stderr)
    runs = [outcome(path.parent) for path in sorted(folder.glob("runs/*/*/*/config.yaml"))]
    best = folder / "sweep/optimization_results.yaml"
    chosen = yaml.safe_load(best.read_text()) if best.exists() else {}
    return {"command": shlex.join(["python", *shown]), "runs": runs, **chosen}


def outcome(run: Path) -> dict[str, Any]:
    """What a run was told, and how its evaluations went."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    scores = [row["eval/mean_reward"] for row in rows if "eval/mean_reward" in row]
    return {
        "agent": run.parent.name,
        "seed": config["seed"],
        "learning_rate": config["agent"]["learning_rate"],
        "best_mean_reward": max(scores),
        "last_mean_reward": scores[-1],
        "env_steps": rows[-1]["env_steps"],
    }


def main() -> None:
    file = RESULTS / "sweeps.json"
    results = json.loads(file.read_text())["sweeps"] if file.exists() else {}
    versions = {name: metadata.version(name) for name in PLUGINS}
    for name in SWEEPS.keys() - results.keys():
        with tempfile.TemporaryDirectory() as folder:
            results[name] = sweep(SWEEPS[name], Path(folder))
        best = max(run["best_mean_reward"] for run in results[name]["runs"])
        print(f"{name}: {len(results[name]['runs'])} runs, the best evaluation {best:g}", flush=True)
        write_result("sweeps", {"plugins": versions, "sweeps": results})


if __name__ == "__main__":
    main()
