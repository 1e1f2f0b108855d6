"""Backbones pass from run to run: from agents to classifiers, from pretraining, and stay as they are if they should."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from tests.runs import Killed, equal_trees, only_run, single_error
from tests.vision.test_train import COMMANDS, break_at, line_of, newest, run
from tests.vision.toy import Toy
from training import checkpoint
from vision import train
from vision.supervised import Supervised

PONG = "pretrained/pong"
AS_PONG = ("backbone=nips_cnn", "center_pixels=true", f"backbone_init={PONG}", "epochs=1")


def pong_weights() -> dict[str, Tensor]:
    """The backbone of the shipped agent, read without any of our code."""
    (path,) = Path(PONG).glob("checkpoints/*/policy.safetensors")
    return {
        name.removeprefix("q_net/0."): tensor
        for name, tensor in safetensors.torch.load_file(path).items()
        if name.startswith("q_net/0.")
    }


def backbone_of(folder: Path) -> dict[str, Tensor]:
    policy = newest(folder)["policy"]
    return {name.removeprefix("backbone."): t for name, t in policy.items() if name.startswith("backbone.")}


@pytest.fixture
def _frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Toys in the shape of what the agent saw."""
    monkeypatch.setattr("vision.command.make_source", lambda config: Toy(num_films=10, size=84, channels=4))


@pytest.fixture
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vision.command.make_source", lambda config: Toy())


@pytest.mark.usefixtures("_frames")
def test_a_frozen_backbone_stays_the_agents(tmp_path: Path) -> None:
    overrides = (*COMMANDS["train"][2], *AS_PONG, f"run_dir={tmp_path}", "backbone_freeze=true")
    assert run("train", *overrides) == 0
    found, pong = backbone_of(only_run(tmp_path)), pong_weights()
    assert equal_trees(found, pong)
    assert set(newest(only_run(tmp_path))["learner"]["optimizer"]) == {"0", "1", "2", "3", "4", "5"}  # three heads


@pytest.mark.usefixtures("_frames")
def test_fine_tuning_begins_with_the_agents_weights(tmp_path: Path) -> None:
    small, large = ("learning_rate=1e-7",), ("learning_rate=1e-3",)
    apart = []
    for k, rate in enumerate((small, large)):
        assert run("train", *COMMANDS["train"][2], *AS_PONG, *rate, f"run_dir={tmp_path / str(k)}") == 0
        found, pong = backbone_of(only_run(tmp_path / str(k))), pong_weights()
        assert torch.equal(found["pixel_mean"], pong["pixel_mean"])
        apart.append(float((found["first.weight"] - pong["first.weight"]).abs().max()))
    assert 0 < apart[0] < 1e-6
    assert apart[1] > 1e-4


@pytest.mark.usefixtures("_toys")
def test_a_run_keeps_a_copy_of_what_it_began_with(tmp_path: Path) -> None:
    """The donor may go; a run that was killed before its first checkpoint begins with the same weights again."""
    donor = tmp_path / "donor"
    assert run("pretrain", *COMMANDS["pretrain"][2], "center_pixels=false", f"run_dir={donor}") == 0
    overrides = (*COMMANDS["train"][2], f"backbone_init={only_run(donor)}")
    assert run("train", *overrides, f"run_dir={tmp_path / 'straight'}") == 0
    with pytest.MonkeyPatch.context() as patch:
        break_at(patch, Supervised, 3, "kill")
        with pytest.raises(Killed):
            run("train", *overrides, f"run_dir={tmp_path / 'killed'}")
    shutil.rmtree(donor)
    killed, straight = only_run(tmp_path / "killed"), only_run(tmp_path / "straight")
    assert not checkpoint.checkpoints(killed / "checkpoints")
    assert run("train", f"resume={killed}") == 0
    assert equal_trees(newest(killed)["policy"], newest(straight)["policy"])


@pytest.mark.usefixtures("_frames")
@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("backbone=nature_cnn", f"backbone_init={PONG}"), "does not fit the one here (nature_cnn)"),
        (("backbone=nips_cnn", f"backbone_init={PONG}"), "center_pixels must be the same"),
        (("backbone=nips_cnn", "backbone_init=nowhere"), "backbone_init: there is no run at 'nowhere'"),
    ],
)
def test_a_backbone_that_does_not_fit_is_one_line(
    overrides: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = line_of(capsys, train.main, *COMMANDS["train"][2], *overrides, f"run_dir={tmp_path}")
    assert line.code == 2
    assert said in single_error(line)
    assert not list(tmp_path.iterdir())
