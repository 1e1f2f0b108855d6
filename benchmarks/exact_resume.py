"""Exact resume: a run killed with SIGKILL at random moments and resumed ends bit for bit as one that was left alone.

    python -m benchmarks.exact_resume                  # CartPole, FrozenLake and Pong, 5,000 steps, 20 kills each
    python -m benchmarks.exact_resume --envs CartPole-v1 --kills 5

For each environment it trains once without interruption, then again with kills, and compares SHA-256 digests of the
last checkpoint's weights, optimiser, replay, random streams and counters, and of metrics.jsonl without `time/fps`.
`starts` counts the processes that lived long enough to train. The table goes to standard output and to
benchmarks/results/exact_resume.json; the exit code is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from contract import State
from training import checkpoint
from training.run import versions

ROOT = Path(__file__).resolve().parent.parent
SMALL = [
    "num_envs=4",
    "agent.batch_size=32",
    "agent.samples_per_env_step=8",
    "agent.learning_starts_env_steps=500",
    "agent.hidden_sizes=[64,64]",
    "agent.replay_capacity=2000",
    "eval.episodes=2",
    "eval.num_envs=2",
    "eval.max_episode_steps=200",
    "log.every_env_steps=200",
]
PONG = [
    "agent.backbone=small_cnn",
    "env.image_size=42",
    "agent.replay_capacity=4000",
    "agent.samples_per_env_step=2",
    "env.num_threads=1",
    "torch_threads=1",
]
SETTINGS = {"CartPole-v1": SMALL, "FrozenLake-v1": SMALL, "ALE/Pong-v5": SMALL + PONG}


def digest(node: Any) -> str:
    """SHA-256 of a tree of state: types, shapes and bytes of every leaf, in the order of the keys."""
    found = hashlib.sha256()

    def walk(path: str, value: Any) -> None:
        if isinstance(value, dict):
            for key in sorted(value):
                walk(f"{path}/{key}", value[key])
        elif isinstance(value, torch.Tensor):
            found.update(f"{path} {value.dtype} {tuple(value.shape)}\n".encode())
            found.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        else:
            found.update(f"{path} {json.dumps(value, sort_keys=True)}\n".encode())

    walk("", node)
    return found.hexdigest()


def digests(run: Path) -> dict[str, str]:
    """One digest per part of the newest checkpoint of a run, and one of its metrics."""
    newest = checkpoint.checkpoints(run / "checkpoints")[0]
    state, _ = checkpoint.load(newest)
    agent: State = dict(state["agent"])
    optimizer, replay = agent.pop("optimizer", {}), dict(agent.pop("replay", {}))
    streams = {"replay": replay.pop("generator", None), "advance": state["advance"]}
    return {
        "weights": digest({"policy": state["policy"], "rest": agent}),
        "optimiser": digest(optimizer),
        "replay": digest(replay),
        "streams": digest(streams),
        "counters": digest({"loop": state["loop"], "tally": state["tally"]}),
        "metrics": digest({"rows": metrics_rows(run)}),
    }


def metrics_rows(run: Path) -> list[dict[str, float]]:
    """The rows of metrics.jsonl without what a clock measured."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "time/fps"} for row in rows]


def command(*overrides: str) -> list[str]:
    return [sys.executable, str(ROOT / "train.py"), "log.progress=false", *overrides]


def only_run(parent: Path) -> Path | None:
    """The run folder under `parent`, if there is one yet."""
    found = sorted(config.parent for config in parent.glob("*/*/*/config.yaml"))
    return found[0] if found else None


def done_env_steps(run: Path | None) -> int:
    kept = [] if run is None else checkpoint.checkpoints(run / "checkpoints")
    return checkpoint.env_steps_of(kept[0]) if kept else 0


def train_with_kills(overrides: list[str], parent: Path, kills: int, total_env_steps: int, seed: int) -> Path:
    """Trains with SIGKILL at `kills` random moments, resuming after each; returns the run folder.

    A kill comes a random time (up to 0.3 s) after training has passed a random step; one in five comes while the
    process still starts.
    """
    rng = random.Random(seed)
    targets = sorted(rng.randrange(total_env_steps * 9 // 10) for _ in range(kills))
    for target in targets:
        process = start(overrides, parent)
        if rng.random() < 0.2:
            time.sleep(rng.uniform(0.5, 4.0))
        else:
            while done_env_steps(only_run(parent)) < target and process.poll() is None:
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    process = start(overrides, parent)
    _, errors = process.communicate()
    run = only_run(parent)
    if process.returncode or run is None:
        raise SystemExit(f"error: training ended with exit code {process.returncode}: {errors}")
    return run


def start(overrides: list[str], parent: Path) -> subprocess.Popen[str]:
    """Starts a run, or resumes the one that is there."""
    run = only_run(parent)
    arguments = (
        command(f"run_dir={parent}", *overrides) if run is None else command(f"resume={run}", "log.progress=false")
    )
    return subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def compare(env_id: str, kills: int, total_env_steps: int, every_env_steps: int, seed: int) -> dict[str, Any]:
    """Both trainings of one environment; returns the row of the table."""
    overrides = [
        f"env={env_id}",
        "device=cpu",
        f"total_env_steps={total_env_steps}",
        f"checkpoint.every_env_steps={every_env_steps}",
        f"eval.every_env_steps={total_env_steps // 4}",
        *SETTINGS.get(env_id, SMALL),
    ]
    with tempfile.TemporaryDirectory() as folder:
        straight = train_with_kills(overrides, Path(folder) / "straight", 0, total_env_steps, seed)
        killed = train_with_kills(overrides, Path(folder) / "killed", kills, total_env_steps, seed)
        expected, got = digests(straight), digests(killed)
        lines = len((killed / "command.txt").read_text().splitlines())
    equal = {part: expected[part] == got[part] for part in expected}
    return {"env": env_id, "env_steps": total_env_steps, "kills": kills, "starts": lines, "equal": equal, "sha256": got}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--envs", nargs="+", default=list(SETTINGS))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--env-steps", type=int, default=5_000)
    parser.add_argument("--checkpoint-every-env-steps", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "exact_resume.json")
    a = parser.parse_args()
    began_s = time.monotonic()
    rows = [compare(env, a.kills, a.env_steps, a.checkpoint_every_env_steps, a.seed) for env in a.envs]
    parts = list(rows[0]["equal"])
    table = Table("environment", "steps", "kills", "starts", *parts, title="identical after SIGKILL and resume")
    for row in rows:
        marks = ["yes" if row["equal"][part] else "NO" for part in parts]
        table.add_row(row["env"], f"{row['env_steps']:,}", str(row["kills"]), str(row["starts"]), *marks)
    Console(width=120).print(table)
    a.out.parent.mkdir(parents=True, exist_ok=True)
    about = {
        "command": shlex.join(["python", "-m", "benchmarks.exact_resume", *sys.argv[1:]]),
        "versions": versions(),
        "seconds": round(time.monotonic() - began_s, 1),
    }
    a.out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    return 0 if all(all(row["equal"].values()) for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
