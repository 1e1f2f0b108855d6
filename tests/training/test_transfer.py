"""A run that begins with another run's backbone keeps what it was given."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.runs import SMALL, Killed, Line, break_at, equal_trees, load_newest, only_run, run_train, single_error
from training import checkpoint


@pytest.fixture(scope="module")
def donor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("donor")
    assert run_train("agent=dqn", "env=CartPole-v1", *SMALL, "total_env_steps=300", f"run_dir={folder}") == 0
    return only_run(folder)


def begin(parent: Path, donor: Path) -> int:
    overrides = [*SMALL, "total_env_steps=900", "seed=5", f"run_dir={parent}", f"agent.backbone_init={donor}"]
    return run_train("agent=dqn", "env=CartPole-v1", "agent.backbone_freeze=true", *overrides)


@pytest.mark.parametrize("calls", [10, 150])  # before the first checkpoint, and after some
def test_a_killed_run_ends_as_one_that_was_left_alone_although_the_donor_is_gone(
    donor: Path, calls: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(donor, tmp_path / "donor")
    assert begin(tmp_path / "whole", tmp_path / "donor") == 0
    with monkeypatch.context() as patch:
        break_at(patch, calls, "kill")
        with pytest.raises(Killed):
            begin(tmp_path / "killed", tmp_path / "donor")
    shutil.rmtree(tmp_path / "donor")
    killed = only_run(tmp_path / "killed")
    assert run_train(f"resume={killed}") == 0
    one, two = load_newest(only_run(tmp_path / "whole")), load_newest(killed)
    assert equal_trees(one["policy"], two["policy"])
    assert equal_trees(one["agent"], two["agent"])

    given = load_newest(donor)["policy"]["q_net"]["0.layers.0.weight"]
    assert torch.equal(two["policy"]["q_net"]["0.layers.0.weight"], given)
    _, manifest = checkpoint.load(killed / "checkpoints" / "backbone_init")
    assert manifest["origin"].startswith(str(tmp_path / "donor" / "checkpoints" / "step_000000300"))


def test_what_cannot_be_a_donor_is_one_line(donor: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty"
    shutil.copytree(donor, empty, ignore=lambda *_: ["checkpoints"])
    for which, reason in [
        (tmp_path / "nowhere", "agent.backbone_init: there is no run at"),
        (empty, "has no checkpoint yet"),
    ]:
        code = begin(tmp_path / "runs", which)
        captured = capfd.readouterr()
        assert code == 2
        assert reason in single_error(Line(code, captured.out, captured.err))
    assert not (tmp_path / "runs").exists()
