"""What backbones see: heads learned from labels, and linear probes of backbones that learned something else.

    python -m benchmarks.vision                       # everything: about half an hour on one quiet core
    python -m benchmarks.vision --only pong_probe_dqn

`pong` and `driving` train a network whole; the probes train linear heads on a backbone that stays as it is: the one of
the shipped Pong agent, one pretrained without labels, and one with random weights, beside the same network trained
whole. All test images are of games, or of cities, that no training saw. What `results/vision.json` already has is not
run again; delete the file to measure everything anew. `cpu_s` is the processor time of the training command, imports
and the making of the images included: unlike the wall-clock it hardly depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from benchmarks.record import RESULTS, write_result

ROOT = Path(__file__).resolve().parent.parent
AS_THE_AGENT = ["data=atari_ram", "data.num_images=8000", "epochs=20", "backbone=nips_cnn", "center_pixels=true"]


class Case(NamedTuple):
    """One training command, and perhaps one before it whose backbone it reads."""

    overrides: list[str]
    pretrain: list[str] | None = None
    robustness_images: int = 0


CASES = {
    "pong": Case(["data=atari_ram", "backbone=nature_cnn"], robustness_images=200),
    "driving": Case(["data=driving_scenes", "backbone=resnet"], robustness_images=200),
    "pong_whole": Case(AS_THE_AGENT),
    "pong_probe_dqn": Case([*AS_THE_AGENT, "backbone_init=pretrained/pong", "backbone_freeze=true"]),
    "pong_probe_random": Case([*AS_THE_AGENT, "backbone_freeze=true"]),
    "pong_probe_pretrained": Case([*AS_THE_AGENT, "backbone_freeze=true"], AS_THE_AGENT),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for name in arguments.only:
        if name not in measured():
            with TemporaryDirectory() as folder:
                found = measure(CASES[name], arguments.seed, folder)
            write_result("vision", {"cases": measured() | {name: found}})
        print(f"{name}: {summary(measured()[name])}", flush=True)


def measured() -> dict[str, Any]:
    """What the result file has."""
    file = RESULTS / "vision.json"
    cases: dict[str, Any] = json.loads(file.read_text())["cases"] if file.exists() else {}
    return cases


def measure(case: Case, seed: int, folder: str) -> dict[str, Any]:
    """Trains and evaluates; the figures of the test images, and what they cost."""
    common = [f"seed={seed}", "device=cpu", "log.tensorboard=false"]
    began, cpu_before = time.perf_counter(), cpu_s()
    overrides = list(case.overrides)
    if case.pretrain is not None:
        command("vision.pretrain", *case.pretrain, *common, f"run_dir={folder}/first")
        overrides.append(f"backbone_init={only_run(folder + '/first')}")
    command("vision.train", *overrides, *common, f"run_dir={folder}/runs")
    wall, cpu = time.perf_counter() - began, cpu_s() - cpu_before
    run = only_run(f"{folder}/runs")
    evaluate = [f"run={run}", "format=json", "device=cpu", f"robustness_images={case.robustness_images}"]
    result = json.loads(command("vision.evaluate", *evaluate))
    found = {key: result[key] for key in ("data", "num_images", "num_groups", "checkpoint_updates", "robustness")}
    heads = {name: {k: v for k, v in head.items() if k != "confusion"} for name, head in result["heads"].items()}
    shown = " ".join(["python -m vision.train", *case.overrides])
    return {"command": shown, "wall_s": wall, "cpu_s": cpu, **found, "heads": heads}


def command(module: str, *overrides: str) -> str:
    """What a command of this project prints on standard output."""
    run = subprocess.run(
        [sys.executable, "-m", module, *overrides], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    )
    return run.stdout


def only_run(parent: str) -> Path:
    """The run folder under `parent`."""
    (config,) = Path(parent).glob("*/*/*/config.yaml")
    return config.parent


def cpu_s() -> float:
    """Processor time of the commands that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


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
