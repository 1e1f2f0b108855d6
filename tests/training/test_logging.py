"""Metrics: right means, nothing lost or doubled on resume, and a failing disk never stops a run."""

import errno
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from contract import Episode
from tests.runs import SMALL, Killed, break_at, only_run, run_train
from training import checkpoint
from training.logging import Tally, Writer

ROOT = Path(__file__).resolve().parents[2]


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def curves(path: Path) -> dict[str, list[tuple[int, float]]]:
    board = EventAccumulator(str(path), size_guidance={"scalars": 0})
    board.Reload()
    return {tag: [(e.step, e.value) for e in board.Scalars(tag)] for tag in board.Tags()["scalars"]}


def test_a_row_holds_means_since_the_last_row() -> None:
    tally = Tally()
    tally.add([Episode(0, 10.0, 5), Episode(1, 20.0, 7, success=True)], [{"train/loss": torch.tensor(1.0)}, {}])
    tally.add([], [{"train/loss": 4.0, "train/q": 2.0}])
    assert tally.row() == {
        "rollout/ep_rew_mean": 15.0,
        "rollout/ep_len_mean": 6.0,
        "rollout/success_rate": 1.0,
        "rollout/episodes": 2.0,
        "train/loss": 2.5,
        "train/q": 2.0,
    }
    assert "train/loss" not in tally.row()


def test_returns_are_means_over_the_last_hundred_episodes() -> None:
    tally = Tally()
    tally.add([Episode(0, float(k), 1) for k in range(250)], [])
    assert tally.row()["rollout/ep_rew_mean"] == sum(range(150, 250)) / 100
    assert tally.row()["rollout/episodes"] == 250


def test_a_tally_in_the_middle_of_a_row_survives_a_checkpoint(tmp_path: Path) -> None:
    tally, copy = Tally(), Tally()
    tally.add([Episode(0, 1.0, 2, success=False, extras={"x": 3.0})], [{"train/loss": 0.1}, {"train/loss": 0.2}])
    tally.add([], [{"train/explained_variance": float("nan")}])
    checkpoint.save(tmp_path, "step_000000001", {"tally": tally.state_dict()}, {})
    copy.load_state_dict(checkpoint.load(tmp_path / "step_000000001")[0]["tally"])
    for each in (tally, copy):
        each.add([], [{"train/loss": 0.7}])
    expected, got = tally.row(), copy.row()
    assert math.isnan(expected.pop("train/explained_variance"))
    assert math.isnan(got.pop("train/explained_variance"))
    assert expected == got


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    with Writer(tmp_path, tensorboard=True) as writer:
        writer.write(1, {"a": float("nan"), "b": float("inf"), "c": 1.0})
    assert rows(tmp_path) == [{"env_steps": 1, "a": None, "b": None, "c": 1.0}]
    assert curves(tmp_path)["c"] == [(1, 1.0)]


def test_a_resume_drops_what_was_written_after_the_checkpoint(tmp_path: Path) -> None:
    writer = Writer(tmp_path, tensorboard=False)
    writer.write(10, {"a": 1.0})
    saved = writer.state_dict(10)
    assert saved == {"metrics_bytes": (tmp_path / "metrics.jsonl").stat().st_size, "env_steps": 10}
    writer.write(20, {"a": 2.0})
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"env_steps": 30, "a')  # torn by a kill
    resumed = Writer(tmp_path, False, saved)
    assert resumed.state_dict(10) == saved  # also before anything new is written
    resumed.write(20, {"a": 3.0})
    resumed.close()
    assert [row["a"] for row in rows(tmp_path)] == [1.0, 3.0]


class FullDisk:
    """A file that takes half of a row and no more."""

    def __init__(self, file: Any, good_rows: int) -> None:
        self._file, self._left = file, good_rows

    def write(self, content: bytes) -> int:
        self._left -= 1
        if self._left < 0:
            self._file.write(content[: len(content) // 2])
            self._file.flush()
            raise OSError(errno.ENOSPC, "No space left on device")
        return int(self._file.write(content))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def test_a_full_disk_warns_once_and_keeps_the_last_whole_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = Writer(tmp_path, tensorboard=True)
    writer._file = FullDisk(writer._file, good_rows=1)
    for step in range(4):
        writer.write(step, {"a": float(step)})
    saved = writer.state_dict(4)
    writer.close()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: metrics can no longer be written")
    resumed = Writer(tmp_path, False, saved)
    resumed.write(5, {"a": 5.0})
    resumed.close()
    assert [row["a"] for row in rows(tmp_path)] == [0.0, 5.0]


def test_a_disk_that_fails_tensorboard_warns_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.summary.writer.record_writer import RecordWriter

    def full(self: object, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RecordWriter, "write", full)
    writer = Writer(tmp_path, tensorboard=True)
    for step in range(50):
        writer.write(step, {"a": 1.0})
        writer.state_dict(step)
    writer.close()
    (line,) = capsys.readouterr().err.splitlines()
    assert "No space left on device" in line


def test_training_goes_on_when_metrics_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    create = Writer.__init__

    def faulty(self: Writer, *args: Any) -> None:
        create(self, *args)
        self._file = FullDisk(self._file, good_rows=2)

    monkeypatch.setattr(Writer, "__init__", faulty)
    assert run_train(*SMALL, f"run_dir={tmp_path}", "total_env_steps=500") == 0
    assert capsys.readouterr().err.count("warning: ") == 1
    assert checkpoint.env_steps_of(checkpoint.checkpoints(only_run(tmp_path) / "checkpoints")[0]) == 500


def test_curves_of_an_interrupted_run_are_those_of_an_uninterrupted_one(tmp_path: Path) -> None:
    overrides = [*SMALL, "log.tensorboard=true", "total_env_steps=800"]
    assert run_train(*overrides, f"run_dir={tmp_path / 'straight'}") == 0
    with pytest.MonkeyPatch.context() as patch:
        break_at(patch, 160, "kill")  # after step 600 was logged but not saved: 450 is the newest checkpoint
        with pytest.raises(Killed):
            run_train(*overrides, f"run_dir={tmp_path / 'killed'}", "checkpoint.every_env_steps=450")
    run = only_run(tmp_path / "killed")
    # A process of its own: TensorBoard orders files by second and process.
    resume = [sys.executable, str(ROOT / "train.py"), f"resume={run}"]
    assert subprocess.run(resume, check=False, capture_output=True).returncode == 0
    straight, killed = curves(only_run(tmp_path / "straight")), curves(run)
    assert straight.keys() == killed.keys()
    assert {"rollout/ep_rew_mean", "rollout/ep_len_mean", "time/fps", "train/loss", "eval/mean_reward"} <= set(killed)
    for tag, points in killed.items():
        steps = [step for step, _ in points]
        assert steps == sorted(set(steps)), tag
        assert steps == [step for step, _ in straight[tag]]
        if tag != "time/fps":
            assert points == straight[tag]
