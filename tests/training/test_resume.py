"""An interrupted run that is resumed ends bit for bit as one that was left alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.exact_resume import digests, metrics_rows, train_with_kills
from tests.runs import SMALL, Killed, break_at, load_newest, only_run, run_train
from training import checkpoint

ROOT = Path(__file__).resolve().parents[2]
PONG = (
    "env=ALE/Pong-v5",
    *SMALL,
    "num_envs=2",
    "total_env_steps=300",
    "agent.backbone=small_cnn",
    "env.image_size=42",
    "env.num_threads=1",
    "torch_threads=1",
    "agent.replay_capacity=160",
    "agent.learning_starts_env_steps=60",
    "agent.batch_size=4",
    "agent.samples_per_env_step=1",
    "checkpoint.every_env_steps=70",
    "eval.every_env_steps=150",
    "eval.max_episode_steps=20",
    "log.every_env_steps=60",
)
CARTPOLE = ("env=CartPole-v1", *SMALL)
LAKE = ("env=FrozenLake-v1", *SMALL)


def interrupted(overrides: tuple[str, ...], parent: Path, breaks: list[tuple[int, str]]) -> Path:
    """Trains, broken off in the given ways one after the other, and to the end; returns the run folder."""
    for k, (calls, how) in enumerate([*breaks, (0, "never")]):
        arguments = [*overrides, f"run_dir={parent}"] if k == 0 else [f"resume={only_run(parent)}"]
        with pytest.MonkeyPatch.context() as patch:
            break_at(patch, calls, how)
            if how == "kill":
                with pytest.raises(Killed):
                    run_train(*arguments)
            else:
                assert run_train(*arguments) == {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 143, "never": 0}[how]
    return only_run(parent)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One uninterrupted run of each environment."""
    runs = {}
    for name, overrides in {"cartpole": CARTPOLE, "lake": LAKE, "pong": PONG}.items():
        parent = tmp_path_factory.mktemp(name)
        assert run_train(*overrides, f"run_dir={parent}") == 0
        runs[name] = only_run(parent)
    return runs


@pytest.mark.parametrize(
    "breaks",
    [
        [(10, "kill")],  # before the first checkpoint
        [(120, "kill")],
        [(299, "kill")],
        [(77, "SIGTERM")],
        [(130, "SIGINT"), (20, "SIGHUP"), (31, "kill"), (1, "kill"), (40, "SIGTERM")],
    ],
)
def test_cartpole_resumes_bit_for_bit(straight: dict[str, Path], tmp_path: Path, breaks: list[tuple[int, str]]) -> None:
    run = interrupted(CARTPOLE, tmp_path, breaks)
    assert digests(run) == digests(straight["cartpole"])
    assert (run / "command.txt").read_text().count("\n") == len(breaks) + 1


@pytest.mark.parametrize("breaks", [[(123, "kill")], [(77, "SIGTERM"), (99, "kill")]])
def test_frozenlake_resumes_bit_for_bit(
    straight: dict[str, Path], tmp_path: Path, breaks: list[tuple[int, str]]
) -> None:
    assert digests(interrupted(LAKE, tmp_path, breaks)) == digests(straight["lake"])


@pytest.mark.parametrize("breaks", [[(110, "kill")], [(53, "SIGTERM"), (44, "kill"), (9, "SIGINT")]])
def test_pong_with_sticky_actions_resumes_bit_for_bit(
    straight: dict[str, Path], tmp_path: Path, breaks: list[tuple[int, str]]
) -> None:
    assert digests(interrupted(PONG, tmp_path, breaks)) == digests(straight["pong"])


def test_the_straight_runs_learned_and_filled_their_replay(straight: dict[str, Path]) -> None:
    """Otherwise the comparisons above would say nothing."""
    for name, filled in {"cartpole": 150, "lake": 150, "pong": 84}.items():
        state = load_newest(straight[name])
        assert state["agent"]["counters"]["updates"] > 50, name
        assert len(state["agent"]["replay"]["action"]) == filled, name
        assert state["agent"]["replay"]["added"] > filled, name
        assert any("train/loss" in row for row in metrics_rows(straight[name]))
        assert any("eval/mean_reward" in row for row in metrics_rows(straight[name]))


def test_the_digest_notices_one_changed_bit(straight: dict[str, Path], tmp_path: Path) -> None:
    assert run_train(*CARTPOLE, "seed=1", f"run_dir={tmp_path}") == 0
    other, first = digests(only_run(tmp_path)), digests(straight["cartpole"])
    assert all(other[part] != first[part] for part in ("weights", "optimiser", "replay", "streams", "metrics"))


def test_the_same_seed_gives_the_same_run(straight: dict[str, Path], tmp_path: Path) -> None:
    assert run_train(*CARTPOLE, f"run_dir={tmp_path}") == 0
    assert digests(only_run(tmp_path)) == digests(straight["cartpole"])


def test_evaluating_more_often_changes_no_weight(straight: dict[str, Path], tmp_path: Path) -> None:
    assert run_train(*CARTPOLE, f"run_dir={tmp_path}", "eval.every_env_steps=90", "eval.episodes=3") == 0
    changed, first = digests(only_run(tmp_path)), digests(straight["cartpole"])
    assert all(changed[part] == first[part] for part in ("weights", "optimiser", "replay", "streams"))
    assert changed["metrics"] != first["metrics"]


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    straight: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        break_at(patch, 200, "kill")
        with pytest.raises(Killed):
            run_train(*CARTPOLE, f"run_dir={tmp_path}", "checkpoint.keep=3")
    run = only_run(tmp_path)
    newest = checkpoint.checkpoints(run / "checkpoints")[0]
    weights = newest / "policy.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    capsys.readouterr()
    assert run_train(f"resume={run}") == 0
    warning = capsys.readouterr().err.splitlines()
    assert len(warning) == 1
    assert "truncated" in warning[0]
    assert digests(run) == digests(straight["cartpole"])
    assert [p.name for p in (run / "checkpoints").glob("damaged-*")]


def test_a_run_whose_checkpoints_are_all_damaged_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_train(*CARTPOLE, f"run_dir={tmp_path}", "total_env_steps=300") == 0
    run = only_run(tmp_path)
    before = (run / "metrics.jsonl").read_bytes()
    for path in checkpoint.checkpoints(run / "checkpoints"):
        (path / "manifest.json").write_bytes(b"")
    capsys.readouterr()
    assert run_train(f"resume={run}") == 4
    assert capsys.readouterr().err.count("\n") == 1
    assert (run / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(("how", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 143)])
def test_a_signal_saves_and_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str, code: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        break_at(patch, 100, how)
        assert run_train(*CARTPOLE, f"run_dir={tmp_path}") == code
    run = only_run(tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    assert f"python train.py resume={run}" in line
    assert checkpoint.env_steps_of(checkpoint.checkpoints(run / "checkpoints")[0]) >= 400


def test_a_finished_run_says_so(straight: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: p.read_bytes() for p in straight["lake"].rglob("*") if p.is_file()}
    assert run_train(f"resume={straight['lake']}") == 0
    shown = capsys.readouterr()
    assert "is finished: 1,200 of 1,200 steps" in shown.out
    assert shown.out.count("\n") == 1
    assert shown.err == ""
    assert {p: p.read_bytes() for p in straight["lake"].rglob("*") if p.is_file()} == before


def test_a_resume_may_prolong_the_run(tmp_path: Path) -> None:
    assert run_train(*CARTPOLE, f"run_dir={tmp_path}", "total_env_steps=300") == 0
    run = only_run(tmp_path)
    assert run_train(f"resume={run}", "total_env_steps=500", "log.every_env_steps=50", "checkpoint.keep=5") == 0
    assert checkpoint.env_steps_of(checkpoint.checkpoints(run / "checkpoints")[0]) == 500
    assert max(row["env_steps"] for row in metrics_rows(run)) == 500
    assert "total_env_steps: 500" in (run / "config.yaml").read_text()


@pytest.mark.parametrize(
    "override",
    ["seed=1", "agent.gamma=0.9", "agent=random", "env=FrozenLake-v1", "num_envs=2", "device=cpu", "torch_threads=2"],
)
def test_a_resume_refuses_what_would_make_it_another_run(
    straight: dict[str, Path], capsys: pytest.CaptureFixture[str], override: str
) -> None:
    assert run_train(f"resume={straight['lake']}", override) == 2
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1
    assert f"'{override.partition('=')[0]}' is fixed once a run has begun" in shown.err
    assert shown.out == ""


def test_sigkill_at_random_moments_on_cartpole(straight: dict[str, Path], tmp_path: Path) -> None:
    killed = train_with_kills([*CARTPOLE], tmp_path, kills=3, total_env_steps=1200, seed=0)
    assert digests(killed) == digests(straight["cartpole"])


@pytest.mark.slow
def test_the_command_that_checks_exact_resume(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    command = [sys.executable, "-m", "benchmarks.exact_resume", "--kills", "3", "--env-steps", "1500"]
    result = subprocess.run([*command, "--out", str(out)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    rows = json.loads(out.read_text())["rows"]
    assert [row["env"] for row in rows] == ["CartPole-v1", "FrozenLake-v1", "ALE/Pong-v5"]
    assert all(all(row["equal"].values()) for row in rows)
