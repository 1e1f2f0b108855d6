"""The run folder: one per run whatever the clock says, found again, locked, and read as plain data."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from faults import CheckpointError, ConfigError, StorageError
from training.run import Run, create_run, find_run, versions

ROOT = Path(__file__).resolve().parents[2]
CONFIG: dict[str, Any] = {"seed": 3, "agent": {"algorithm": "dqn"}, "env": {"id": "ALE/Pong-v5"}}


def test_runs_of_the_same_second_get_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "strftime", lambda text: "20260101-000000")
    runs = [create_run(str(tmp_path), CONFIG, "dqn") for _ in range(8)]
    assert len({run.path for run in runs}) == 8
    assert runs[0].path == tmp_path / "ALE-Pong-v5" / "dqn" / "seed3-20260101-000000"
    assert runs[7].path.name == "seed3-20260101-000000-8"
    assert find_run("latest", str(tmp_path)) == runs[7]


def test_processes_of_the_same_second_get_folders_of_their_own(tmp_path: Path) -> None:
    code = (
        "import time; time.strftime = lambda text: '20260101-000000'\n"
        "import training.run as r; r.versions = dict\n"
        f"print(r.create_run({str(tmp_path)!r}, {CONFIG!r}, 'dqn').path)"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE) for _ in range(8)]
    paths = {process.communicate()[0] for process in processes}
    assert [process.returncode for process in processes] == [0] * 8
    assert len(paths) == 8


def test_the_latest_run_is_found_by_its_name_not_by_file_times(tmp_path: Path) -> None:
    names = ("seed0-20260101-000000", "seed0-20260101-000000-10", "seed0-20260101-000000-9", "seed9-20251231-235959")
    for name in names:
        (tmp_path / "e" / "a" / name).mkdir(parents=True)
        (tmp_path / "e" / "a" / name / "config.yaml").touch()
    os.utime(tmp_path / "e" / "a" / names[3], (2**31, 2**31))
    (tmp_path / "e" / "a" / "seed0-20270101-000000").mkdir()  # killed before it had a configuration
    assert find_run("latest", str(tmp_path)).path.name == "seed0-20260101-000000-10"


def test_what_a_result_depends_on_is_recorded(tmp_path: Path) -> None:
    run = create_run(str(tmp_path), CONFIG, "dqn")
    recorded = json.loads((run.path / "versions.json").read_text())
    assert recorded == versions()
    assert {"python", "torch", "numpy", "gymnasium", "ale-py", "commit"} <= set(recorded)
    assert (run.path / "command.txt").read_text().startswith("python ")
    assert yaml.safe_load((run.path / "config.yaml").read_text()) == CONFIG


def test_the_configuration_comes_back_complete(tmp_path: Path) -> None:
    config = create_run(str(tmp_path), CONFIG, "dqn").config()
    assert config["seed"] == 3
    assert config["env"] == {"id": "ALE/Pong-v5"}
    assert config["eval"]["mode"] == "greedy"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"env": {"id": "os:CartPole-v1"}}, "would import a module"),
        ({"env": {"id": "${oc.env:HOME}"}}, "interpolation"),
        ({"agent": {"kwargs": {"${x}": 1}}}, "interpolation"),
        ({"agent": [1]}, "not the configuration"),
        ({"env": None}, "not the configuration"),
        ({"seed": "abc"}, "seed: value 'abc'"),
        ({"eval": {"mod": "greedy"}}, "unknown key 'eval.mod'"),
        ({"_target_": "os.system"}, "unknown key '_target_'"),
    ],
)
def test_a_foreign_configuration_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG | change))
    with pytest.raises(CheckpointError, match=words):
        Run(tmp_path).config()


@pytest.mark.parametrize("which", ["/", "", "nowhere", "no\0where", "a\nb", "é", "x" * 5000])
def test_a_run_that_is_not_there_is_refused(tmp_path: Path, which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="there is no run"):
        find_run(which)


def test_the_nearest_run_is_suggested(tmp_path: Path) -> None:
    run = create_run(str(tmp_path), CONFIG, "dqn")
    with pytest.raises(CheckpointError, match=f"Did you mean '{run.path}'"):
        find_run(f"{run.path}x")


def test_a_run_is_locked_for_other_processes(tmp_path: Path) -> None:
    run = create_run(str(tmp_path), CONFIG, "dqn")
    code = f"from pathlib import Path; from training.run import Run; Run(Path({str(run.path)!r})).lock()"
    with run.lock():
        second = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
        assert f"is in use by process {os.getpid()} on " in second.stderr
        with pytest.raises(ConfigError, match=f"process {os.getpid()}"):
            run.lock()
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
    with run.lock():
        pass


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="set run_dir=<folder>"):
        create_run(str(tmp_path / "file" / "runs"), CONFIG, "dqn")
    with pytest.raises(StorageError, match="cannot write into"):
        Run(tmp_path / "gone").lock()


def test_a_resume_is_noted_with_what_it_changed(tmp_path: Path) -> None:
    run = create_run(str(tmp_path), CONFIG, "dqn")
    run.record_resume(run.config() | {"total_env_steps": 77})
    assert run.config()["total_env_steps"] == 77
    assert len((run.path / "command.txt").read_text().splitlines()) == 2
    assert sorted(p.name for p in run.path.iterdir()) == ["checkpoints", "command.txt", "config.yaml", "versions.json"]
