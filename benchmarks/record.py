"""What every result file carries: the command, the commit, the versions, the machine."""

from __future__ import annotations

import json
import os
import platform
import resource
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from training.run import versions

RESULTS = Path(__file__).resolve().parent / "results"


def write_result(name: str, figures: dict[str, Any]) -> Path:
    """Writes `results/<name>.json`."""
    about = {
        "command": shlex.join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        **stamp(),
        "versions": versions(),
    }
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(about | figures, indent=1) + "\n")
    return path


def stamp() -> dict[str, Any]:
    """What every case of a result carries that is measured in several calls: date, commit, machine."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": versions().get("commit"),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
    }


def cpu_s() -> float:
    """Processor time of the commands that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def cpu_model() -> str:
    """The processor's name, as the system tells it, with the family and model that tell its generations apart."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        pairs = (line.partition(":")[::2] for line in info.read_text().splitlines())
        found = {key.strip(): value.strip() for key, value in pairs}
        if "model name" in found:
            return f"{found['model name']} (family {found.get('cpu family')}, model {found.get('model')})"
    return platform.processor() or platform.machine()
