"""Several learners under torchrun: equal to one process with the same samples, interrupted and resumed exactly, and
ended in one line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor

import learners
from contract import Streams
from envs.make import make_env
from envs.settings import GymnasiumSettings
from faults import ConfigError
from memory.replay import ReplaySettings
from rules.policy_gradient import normalized
from tests.learners.script import CASES, draw_the_same_for_any_number, learn
from tests.runs import SMALL, equal_trees, load_newest, only_run, run_train
from training import checkpoint
from training.loop import newest_of_all
from training.run import Run

ROOT = Path(__file__).resolve().parent.parent.parent
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")


def torchrun(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environ = os.environ | {"PYTHONPATH": f"{ROOT}:{folder}", "OMP_NUM_THREADS": "1"}
    return subprocess.run([*TORCHRUN, *command], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two learners leave behind when they do what script.py says."""
    folder = tmp_path_factory.mktemp("together")
    ended = torchrun(folder, str(ROOT / "tests/learners/script.py"), str(folder))
    assert ended.returncode == 0, ended.stderr
    (folder / "stdout").write_text(ended.stdout)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_two_learners_equal_one_process_with_the_same_samples(
    together: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_the_same_for_any_number(monkeypatch)
    alone, updates = learn(name)
    first, second = (safetensors.torch.load_file(together / f"{name}-{rank}.safetensors") for rank in range(2))
    with safetensors.safe_open(together / f"{name}-0.safetensors", "pt") as file:
        assert float(file.metadata()["updates"]) == updates >= 50
    assert first.keys() == alone.keys()
    for key, value in alone.items():
        assert torch.equal(first[key], second[key]), key
        torch.testing.assert_close(first[key], value, rtol=0, atol=1e-5)


def test_learners_agree_on_a_signal_and_resume_bit_for_bit(together: Path) -> None:
    told = [json.loads((together / f"{rank}.json").read_text()) for rank in range(2)]
    assert [t["codes"] for t in told] == [[0, 130, 0]] * 2  # only the second one had the signal
    assert [t["gathered"] for t in told] == [[1, "from 0"]] * 2
    straight, interrupted = (Run(only_run(together / name)) for name in ("straight", "interrupted"))
    for rank in range(2):
        assert equal_trees(*(without_log(load_newest(run.of_learner(rank).path)) for run in (straight, interrupted)))


def without_log(state: dict[str, object]) -> dict[str, object]:
    """The state but for the size of a file that holds times."""
    return {name: part for name, part in state.items() if name != "log"}


def test_one_learner_speaks_and_logs_for_all(together: Path) -> None:
    lines = (together / "stdout").read_text().splitlines()
    assert sum(line.startswith("training dqn on CartPole-v1") for line in lines) == 2  # straight, interrupted
    run = Run(only_run(together / "straight"))
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert [row["env_steps"] for row in rows if "eval/mean_reward" in row] == [400, 800, 1200]
    updates = [row["train/n_updates"] for row in rows if "train/n_updates" in row]
    assert updates[-1] <= (1200 - 200) * 4 / 16 < updates[-1] + 25  # as one process counts, with all learners' steps
    assert not (run.of_learner(1).path / "eval").exists()
    states = [load_newest(run.of_learner(rank).path) for rank in range(2)]
    assert equal_trees(states[0]["policy"], states[1]["policy"])
    assert states[0]["agent"]["optimizer"]["0"]["step"] == states[1]["agent"]["optimizer"]["0"]["step"] == 250
    replays = [state["agent"]["replay"] for state in states]
    assert len(replays[0]["reward"]) == 150
    assert not torch.equal(replays[0]["observations"]["obs"], replays[1]["observations"]["obs"])


def test_learners_have_the_environments_of_one_process_and_streams_of_their_own() -> None:
    settings, streams = GymnasiumSettings("CartPole-v1"), Streams(3)
    alone, second = make_env(settings, 4, streams, "train"), make_env(settings, 2, streams, "train", first=2)
    assert torch.equal(cast(Tensor, alone.reset())[2:], cast(Tensor, second.reset()))
    assert [second.seed_of(i) for i in range(2)] == [alone.seed_of(i) for i in (2, 3)]
    drawn = {name: [Streams(3, rank).seed(name) for rank in range(3)] for name in ("network", "policy", "replay")}
    assert len(set(drawn["network"])) == 1
    assert len(set(drawn["policy"] + drawn["replay"])) == 6


def test_a_failing_learner_ends_all_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "breaking_envs.py").write_text(
        """
import os
import gymnasium as gym
from gymnasium.envs.classic_control import CartPoleEnv

class Breaking(CartPoleEnv):
    steps = 0

    def step(self, action):
        Breaking.steps += 1
        if Breaking.steps > 500 and os.environ["RANK"] == "1":
            raise OSError("the plug is out")
        return super().step(action)

gym.register("Breaking-v0", Breaking, max_episode_steps=50)
"""
    )
    overrides = ["import=breaking_envs", "env=Breaking-v0", *SMALL, f"run_dir={tmp_path}/runs", "total_env_steps=1e6"]
    ended = torchrun(tmp_path, "train.py", *overrides)
    run = only_run(tmp_path / "runs")
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert ended.returncode != 0
    assert len(errors) == 1
    assert "the plug is out" in errors[0]
    assert f"the last checkpoint is {run / 'learners/1/checkpoints/step_'}" in errors[0]
    assert len(list((run / "checkpoints").glob("step_*"))) == 2


def two_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learners, "count", lambda: 2)


def test_a_share_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ReplaySettings(batch_size=64, replay_capacity=1000, learning_starts_env_steps=101)
    assert learners.share(whole) == whole
    two_of_them(monkeypatch)
    part = learners.share(whole)
    assert (part.batch_size, part.replay_capacity, part.learning_starts_env_steps) == (32, 500, 51)
    assert (part.gamma, part.n_step, part.samples_per_env_step) == (whole.gamma, whole.n_step, 8.0)
    assert [part.updates_due(n // 2) for n in (102, 110, 202, 1000)] == [
        whole.updates_due(n) for n in (102, 110, 202, 1000)
    ]
    with pytest.raises(ConfigError, match=r"agent\.batch_size must be a multiple of the 2 learners, got 63"):
        learners.share(ReplaySettings(batch_size=63))


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["num_envs=5"], "num_envs must be a multiple of the 2 learners, got 5"),
        (["agent.batch_size=15"], "agent.batch_size must be a multiple of the 2 learners, got 15"),
        (["agent=a3c"], "agent=a3c cannot share its work among learners"),
        (["agent=q_learning", "env=FrozenLake-v1"], "agent=q_learning cannot share its work among learners"),
        (["agent=sb3_ppo"], "agent=sb3_ppo cannot share its work among learners"),
    ],
)
def test_what_learners_cannot_do_is_refused(
    overrides: list[str], line: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    two_of_them(monkeypatch)
    assert run_train(f"run_dir={tmp_path}", *overrides) == 2
    assert line in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_run_is_resumed_by_as_many_learners_as_began_it(
    together: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run_train("resume=latest", f"run_dir={together / 'straight'}", "total_env_steps=2000") == 2
    assert (
        "was begun with 2 learners, not 1; continue with: torchrun --nproc-per-node 2 train.py"
        in capfd.readouterr().err
    )


def test_learners_resume_from_the_newest_checkpoint_that_all_have(
    together: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path / "run")
    shutil.copytree(only_run(together / "straight"), run.path)
    names = [path.name for path in checkpoint.checkpoints(run.checkpoints)]
    newest, older = (int(name.removeprefix("step_")) for name in names)
    found = newest_of_all(run)
    assert found is not None
    assert found[0].name == f"step_{newest:09d}"
    monkeypatch.setattr(learners, "largest", lambda number: max(number, -older))  # killed before another had saved
    found = newest_of_all(run)
    assert found is not None
    assert found[1]["loop"]["env_steps"] == older
    assert [path.name for path in checkpoint.checkpoints(run.checkpoints)] == names[1:]
    monkeypatch.setattr(learners, "largest", lambda number: 0)  # another has none
    assert newest_of_all(run) is None


def test_advantages_are_normalized_over_the_rows_of_all_learners() -> None:
    rows, valid = torch.tensor([1.0, 5.0, -2.0, 7.0, 100.0, 3.0]), torch.tensor([True, True, True, True, False, True])
    expected = normalized(rows, valid)
    others = [float(valid[4:].sum()), float(rows[4:][valid[4:]].sum())]
    mean = float(rows[valid].mean())
    others.append(float((rows[4:][valid[4:]] - mean).square().sum()))

    def total(x: Tensor) -> Tensor:
        return x + others.pop(0)

    assert normalized(rows[:4], valid[:4], total).tolist() == pytest.approx(expected[:4].tolist())
    assert not others
