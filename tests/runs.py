"""Runs train.py and evaluate.py inside the test's own process, as their last lines do."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import evaluate
import train
from training import checkpoint
from training.process import report

SMALL = (
    "log.progress=false",
    "log.tensorboard=false",
    "device=cpu",
    "num_envs=4",
    "total_env_steps=1200",
    "agent.batch_size=16",
    "agent.samples_per_env_step=4",
    "agent.learning_starts_env_steps=200",
    "agent.target_sync_every_env_steps=100",
    "agent.replay_capacity=600",
    "agent.hidden_sizes=[16]",
    "log.every_env_steps=100",
    "eval.every_env_steps=400",
    "eval.episodes=2",
    "eval.num_envs=2",
    "eval.max_episode_steps=60",
    "checkpoint.every_env_steps=150",
)
"""Overrides under which dqn learns a little, fills its replay and meets every kind of event within a second or two."""


class Killed(BaseException):
    """Stands for a process that ends at once: nothing in the code under test catches it."""


def run_train(*overrides: str) -> int:
    return report(lambda: train.main(list(overrides)), debug=False)


def run_evaluate(*overrides: str) -> int:
    return report(lambda: evaluate.main(list(overrides)), debug=False)


def only_run(parent: Path) -> Path:
    (config,) = parent.glob("**/config.yaml")
    return config.parent


def load_newest(run: Path) -> dict[str, Any]:
    state, _ = checkpoint.load(checkpoint.checkpoints(run / "checkpoints")[0])
    return state


def break_at(monkeypatch: pytest.MonkeyPatch, calls: int, how: str) -> None:
    """Breaks training in dqn's call number `calls` of `update`: by a sudden end (`kill`) or by a signal."""
    from agents.dqn import DQN

    original, count = DQN.update, 0

    def update(self: DQN) -> Any:
        nonlocal count
        count += 1
        if count == calls:
            if how == "kill":
                raise Killed
            signal.raise_signal(getattr(signal, how))
        return original(self)

    monkeypatch.setattr(DQN, "update", update)


class Line(NamedTuple):
    """What a refused command leaves on the terminal."""

    code: int
    out: str
    err: str


def single_error(line: Line) -> str:
    """The one error line; fails if there is anything else."""
    lines = line.err.splitlines()
    assert len(lines) == 1, line.err
    assert lines[0].startswith("error: ")
    assert "Traceback" not in line.err
    assert "done:" not in line.out
    assert "training" not in line.out
    return lines[0]


def equal_trees(a: Any, b: Any) -> bool:
    """Whether two trees of state are equal in structure, types, shapes and every bit."""
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal_trees(a[k], b[k]) for k in a)
    if isinstance(a, torch.Tensor):
        same = isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape
        return same and bool(
            torch.equal(
                a.contiguous().flatten().view(torch.uint8),
                b.contiguous().flatten().view(torch.uint8),
            )
        )
    return bool(a == b) and type(a) is type(b)
