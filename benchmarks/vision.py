"""What backbones learn to see from labels. What backbones see that learned something else: benchmarks/probe.py.

    python -m benchmarks.vision                       # everything: about ten minutes on one quiet core
    python -m benchmarks.vision --only driving

All test images are of games, or of cities, that no training saw. What `results/vision.json` already has is not
run again; delete the file to measure everything anew. `cpu_s` is the processor time of the training command, imports
and the making of the images included: unlike the wall-clock it hardly depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.record import RESULTS, cpu_s, stamp, write_result
from training.run import find_run

ROOT = Path(__file__).resolve().parent.parent
CASES = {
    "pong": ["data=atari_ram", "backbone=nature_cnn"],
    "driving": ["data=driving_scenes", "backbone=resnet"],
}
ROBUSTNESS_IMAGES = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    arguments = parser.parse_args()
    for name in arguments.only:
        if name not in measured():
            with TemporaryDirectory() as folder:
                found = measure(CASES[name], folder)
            write_result("vision", {"cases": measured() | {name: found}})
        print(f"{name}: {summary(measured()[name])}", flush=True)


def measured() -> dict[str, Any]:
    """What the result file has."""
    file = RESULTS / "vision.json"
    cases: dict[str, Any] = json.loads(file.read_text())["cases"] if file.exists() else {}
    return cases


def measure(overrides: list[str], folder: str) -> dict[str, Any]:
    """Trains and evaluates; the figures of the test images, and what they cost."""
    common = ["seed=0", "device=cpu", "log.tensorboard=false"]
    began, cpu_before = time.perf_counter(), cpu_s()
    command("vision.train", *overrides, *common, f"run_dir={folder}")
    wall, cpu = time.perf_counter() - began, cpu_s() - cpu_before
    evaluate = [f"run={find_run('latest', folder).path}", "format=json", "device=cpu"]
    result = json.loads(command("vision.evaluate", *evaluate, f"robustness_images={ROBUSTNESS_IMAGES}"))
    found = {key: result[key] for key in ("data", "num_images", "num_groups", "checkpoint_updates", "robustness")}
    heads = {name: {k: v for k, v in head.items() if k != "confusion"} for name, head in result["heads"].items()}
    shown = " ".join(["python -m vision.train", *overrides])
    return {**stamp(), "command": shown, "wall_s": wall, "cpu_s": cpu, **found, "heads": heads}


def command(module: str, *overrides: str) -> str:
    """What a command of this project prints on standard output."""
    run = subprocess.run(
        [sys.executable, "-m", module, *overrides], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    )
    return run.stdout


def summary(found: dict[str, Any]) -> str:
    """The figures that matter, in a line."""
    parts = []
    for name, head in found["heads"].items():
        share = head["accuracy"] if "accuracy" in head else head["within"]["2"]["all"]
        what = "accuracy" if "accuracy" in head else f"all within 2 {head['unit']}"
        low, high = share["ci95"]
        parts.append(f"{name} {what} {share['value']:.2%} [{low:.2%}, {high:.2%}]")
    return f"{', '.join(parts)}; {found['cpu_s']:.0f} CPU seconds"


if __name__ == "__main__":
    main()
