"""Whole runs of vision.train and vision.pretrain on a set that is learned within seconds."""

from __future__ import annotations

import json
import signal
from math import log
from pathlib import Path
from typing import Any

import pytest
import torch

from networks.backbones import CNN
from tests.runs import Killed, Line, equal_trees, only_run, single_error
from tests.vision.toy import Toy
from training import checkpoint
from training.process import report
from vision import evaluate, pretrain, train
from vision.command import make_source
from vision.config import TrainConfig, compose_config
from vision.contrastive import Contrastive
from vision.data import SOURCES, source_class
from vision.learner import load_classifier, predict
from vision.loop import learning_rate
from vision.measures import accuracy, share_all_within
from vision.supervised import Supervised

SMALL = (
    "backbone=small_cnn",
    "device=cpu",
    "torch_threads=1",
    "batch_size=16",
    "log.tensorboard=false",
    "log.progress=false",
    "log.every_updates=5",
    "checkpoint.every_updates=7",
)
COMMANDS = {
    "train": (train.main, Supervised, ("data=driving_scenes", "epochs=3", *SMALL)),
    "pretrain": (pretrain.main, Contrastive, ("data=atari_ram", "epochs=3", *SMALL)),
}


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every set is the toy."""
    monkeypatch.setattr("vision.command.make_source", lambda config: Toy())


def run(command: str, *overrides: str) -> int:
    return report(lambda: COMMANDS[command][0](list(overrides)), debug=False)


def newest(folder: Path) -> dict[str, Any]:
    return checkpoint.load(checkpoint.checkpoints(folder / "checkpoints")[0])[0]


def rows(folder: Path) -> list[dict[str, float]]:
    """The rows of metrics.jsonl without what a clock measured."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "time/fps"} for line in lines]


def break_at(monkeypatch: pytest.MonkeyPatch, learner: Any, calls: int, how: str) -> None:
    """Breaks training in call number `calls` of the loss: by a sudden end (`kill`) or by a signal."""
    original, count = learner.loss, 0

    def loss(self: Any, index: Any, generator: Any) -> Any:
        nonlocal count
        count += 1
        if count == calls:
            if how == "kill":
                raise Killed
            signal.raise_signal(getattr(signal, how))
        return original(self, index, generator)

    monkeypatch.setattr(learner, "loss", loss)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One uninterrupted run of each command."""
    runs = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vision.command.make_source", lambda config: Toy())
        for command, (_, _, overrides) in COMMANDS.items():
            parent = tmp_path_factory.mktemp(command)
            assert run(command, *overrides, f"run_dir={parent}") == 0
            runs[command] = only_run(parent)
    return runs


@pytest.mark.parametrize("command", COMMANDS)
def test_places_cannot_be_read_from_an_mlp(command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = ("backbone=mlp", "center_pixels=false", f"run_dir={tmp_path}")
    line = line_of(capsys, COMMANDS[command][0], *COMMANDS[command][2], *options)
    assert (line.code, "an mlp has no feature map" in single_error(line)) == (2, True)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("breaks", [[(4, "kill")], [(16, "kill")], [(9, "SIGINT"), (11, "kill"), (2, "SIGTERM")]])
def test_an_interrupted_run_ends_bit_for_bit_as_one_left_alone(
    command: str, breaks: list[tuple[int, str]], straight: dict[str, Path], tmp_path: Path
) -> None:
    _, learner, overrides = COMMANDS[command]
    for k, (calls, how) in enumerate([*breaks, (0, "never")]):
        arguments = [*overrides, f"run_dir={tmp_path}"] if k == 0 else [f"resume={only_run(tmp_path)}"]
        with pytest.MonkeyPatch.context() as patch:
            break_at(patch, learner, calls, how)
            if how == "kill":
                with pytest.raises(Killed):
                    run(command, *arguments)
            else:
                assert run(command, *arguments) == {"SIGINT": 130, "SIGTERM": 143, "never": 0}[how]
    found, expected = newest(only_run(tmp_path)), newest(straight[command])
    assert all(equal_trees(found[group], expected[group]) for group in ("policy", "learner", "loop", "means"))
    assert rows(only_run(tmp_path)) == rows(straight[command])


def test_the_straight_runs_learned_something(straight: dict[str, Path]) -> None:
    """Otherwise the comparisons above would say nothing."""
    for command, folder in straight.items():
        found = [row["eval/loss"] for row in rows(folder) if "eval/loss" in row]
        assert len(found) == 3, command
        assert found[-1] < 0.98 * found[0], command
        assert newest(folder)["learner"]["optimizer"]["0"]["exp_avg"].abs().sum() > 0


def test_a_finished_run_says_so(straight: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(path.name for path in (straight["train"] / "checkpoints").iterdir())
    assert run("train", f"resume={straight['train']}") == 0
    assert "is finished: 36 of 36 updates are done" in capsys.readouterr().out
    assert sorted(path.name for path in (straight["train"] / "checkpoints").iterdir()) == before


def test_a_tiny_set_is_learned_to_the_last_label(tmp_path: Path) -> None:
    assert run("train", *COMMANDS["train"][2], "epochs=16", "learning_rate=3e-3", f"run_dir={tmp_path}") == 0
    classifier, updates = load_classifier(only_run(tmp_path))
    assert updates == 16 * 12
    data = Toy().load(0)
    outputs = predict(classifier, data.images)
    assert accuracy(outputs["row"].argmax(-1), data.targets["row"], data.group).value == 1
    assert accuracy(outputs["cells"].argmax(-1), data.targets["cells"], data.group).value == 1
    assert share_all_within(outputs["centre"], data.targets["centre"], 0.5, data.group).value > 0.95


@pytest.mark.parametrize(
    "overrides",
    [
        ("optimizer=sgd", "learning_rate=0.05", "weight_decay=5e-4", "warmup_epochs=1"),
        ("optimizer=adamw", "label_smoothing=0.1", "huber_delta=null"),
        ("adversary=fgsm",),
        ("adversary=pgd", "adversary_steps=2"),
        ("optimizer=sgd", "momentum=0", "bfloat16=true"),
    ],
)
def test_every_way_to_train_learns_and_resumes(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        break_at(patch, Supervised, 20, "SIGINT")
        assert run("train", *COMMANDS["train"][2], *overrides, f"run_dir={tmp_path}") == 130
    folder = only_run(tmp_path)
    assert run("train", f"resume={folder}") == 0
    found = [row["eval/loss"] for row in rows(folder) if "eval/loss" in row]
    assert found[-1] < found[0]


def test_adversarial_training_is_harder_to_fool(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An attack of 70 of 255 leaves squares of at least 130 on a ground of at most 109: nothing need be lost."""
    error = {}
    for adversary in ("none", "fgsm"):
        parent = tmp_path / adversary
        options = ("epochs=8", "learning_rate=3e-3", f"adversary={adversary}", "adversary_epsilon=70")
        assert run("train", *COMMANDS["train"][2], *options, f"run_dir={parent}") == 0
        capsys.readouterr()
        result = evaluated(only_run(parent), capsys, "epsilon=[40]", "noise=[]", "blur=[]", "brightness=[]")
        (attacked,) = [row for row in result["robustness"] if row["change"] == "pgd"]
        error[adversary] = sum(attacked["mean_absolute_error"]["centre"].values())
    assert error["fgsm"] < 0.75 * error["none"]


def evaluated(folder: Path, capsys: pytest.CaptureFixture[str], *overrides: str) -> dict[str, Any]:
    arguments = [f"run={folder}", "format=json", *overrides]
    assert report(lambda: evaluate.main(arguments), debug=False) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_evaluation_is_that_of_the_test_images(
    straight: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    result = evaluated(straight["train"], capsys, f"out={tmp_path}", "robustness_images=20", "epsilon=[4]")
    assert (result["num_images"], result["num_groups"], result["checkpoint_updates"]) == (24, 3, 36)
    row = result["heads"]["row"]
    counts = torch.tensor(row["confusion"])
    assert row["accuracy"]["cases"] == int(counts.sum())
    assert row["accuracy"]["value"] == pytest.approx(float(counts.diagonal().sum() / counts.sum()))
    assert [c["cases"] for c in row["classes"]] == counts.sum(dim=1).tolist()
    assert set(result["heads"]["centre"]["within"]) == {"0.5", "1", "2"}
    changes = [(r["change"], r["strength"]) for r in result["robustness"]]
    assert changes[0] == ("none", 0)
    assert changes[-2:] == [("fgsm", 4), ("pgd", 4)]
    losses = {r["change"]: r["accuracy"]["cells"]["value"] for r in result["robustness"]}
    assert losses["pgd"] <= losses["none"]
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".png", ".png"]


def test_evaluating_another_part_or_checkpoint(straight: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    options = ("robustness_images=0", "checkpoint=best", "part=training")
    assert evaluated(straight["train"], capsys, *options)["num_images"] == 192
    assert report(lambda: evaluate.main([f"run={straight['train']}", "robustness_images=10"]), debug=False) == 0
    shown = capsys.readouterr().out
    assert "row: accuracy" in shown
    assert "protocol: 24 test images in 3 groups" in shown


def test_the_schedule_by_hand() -> None:
    assert [learning_rate(k, 12, 4, 0.8) for k in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8])
    assert learning_rate(8, 12, 4, 0.8) == pytest.approx(0.4)
    assert learning_rate(6, 12, 4, 0.8) == pytest.approx(0.4 * (1 + 2**-0.5))
    assert learning_rate(11, 12, 0, 1.0) < 0.02


def test_pretraining_beats_chance(tmp_path: Path) -> None:
    overrides = ("epochs=8", "learning_rate=3e-3", f"run_dir={tmp_path}")
    assert run("pretrain", *COMMANDS["pretrain"][2], *overrides) == 0
    last = rows(only_run(tmp_path))[-1]
    assert last["eval/loss"] < 0.85 * 2 * log(16)
    assert last["eval/accuracy_global"] > 1.5 / 16
    assert last["eval/accuracy_local"] > 2.5 / 16


def test_still_images_are_their_own_partners(tmp_path: Path) -> None:
    """Pretraining on what is no film: two changed versions of an image find each other."""
    overrides = ("data=driving_scenes", "distance=0", "augment.shift=2", "augment.colour=0.2", "epochs=2")
    assert run("pretrain", *COMMANDS["pretrain"][2], *overrides, f"run_dir={tmp_path}", "center_pixels=false") == 0
    assert newest(only_run(tmp_path))["loop"]["updates"] == 2 * 192 // 16


def test_tensorboard_shows_curves_the_confusion_and_examples(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert run("train", *COMMANDS["train"][2], "epochs=1", "log.tensorboard=true", f"run_dir={tmp_path}") == 0
    board = EventAccumulator(str(only_run(tmp_path)))
    board.Reload()
    assert set(board.Tags()["images"]) == {"confusion/row", "confusion/cells", "examples"}
    assert {"train/loss", "train/learning_rate", "train/accuracy_row", "eval/accuracy_row", "eval/error_centre"} <= set(
        board.Tags()["scalars"]
    )
    assert [event.step for event in board.Scalars("eval/loss")] == [12]


# --- configuration and errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", SOURCES)
def test_every_set_composes(data: str) -> None:
    from training.config import typed

    config = typed(TrainConfig, compose_config("train", [f"data={data}"]))
    options = {key: value for key, value in config.data.items() if key != "source"}
    assert config.data["source"] == data
    typed(source_class(data), options, "data")


def line_of(capsys: pytest.CaptureFixture[str], command: Any, *arguments: str) -> Line:
    capsys.readouterr()
    code = report(lambda: command(list(arguments)), debug=False)
    out, err = capsys.readouterr()
    return Line(code, out, err)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["data=cifar"], "unknown data 'cifar'. Did you mean 'cifar10'"),
        (["learing_rate=1"], "unknown key 'learing_rate'. Did you mean 'learning_rate'"),
        (["+x=1"], "unknown key 'x'."),
        (["log.every=1"], "unknown key 'log.every'. Did you mean 'log.every_updates'"),
        (["epochs=0"], "epochs must be in [1, 1e+06], got 0"),
        (["epochs=1,2"], "is a sweep"),
        (["split=[0.5,0.5]"], "split has three parts"),
        (["backbone=vgg"], "backbone must be one of"),
        (["warmup_epochs=30"], "warmup_epochs must be in [0, 5], got 30"),
        (["--multirun"], "cannot read '--multirun'"),
        (["device=gpu"], "device must be auto, cpu"),
        (["data=[cifar10,mnist]"], "unknown data '['cifar10', 'mnist']'"),
        (["split=[0.5,0.1,0.1]"], "the parts of a data split must add up to 1, not 0.7"),
        (["data=atari_ram", "backbone=resnet"], "not to resnet: set center_pixels=false"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = line_of(capsys, train.main, *arguments)
    assert line.code == 2
    assert said in single_error(line)


def test_labels_of_places_forbid_moving_the_image(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    line = line_of(capsys, train.main, *COMMANDS["train"][2], "augment.flip=true", f"run_dir={tmp_path}")
    assert (line.code, "move what the labels 'cells' say the place of" in single_error(line)) == (2, True)


def test_a_set_that_is_not_there_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("vision.command.make_source", make_source)
    line = line_of(capsys, train.main, "data=cifar10", f"data.root={tmp_path}", f"run_dir={tmp_path / 'runs'}")
    assert (line.code, "set data.download=true" in single_error(line)) == (9, True)
    assert not (tmp_path / "runs").exists()


def test_pretraining_on_still_images_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    line = line_of(capsys, pretrain.main, "data=driving_scenes")
    assert (line.code, "are no film" in single_error(line)) == (2, True)


def test_what_is_fixed_stays_fixed_on_a_resume(straight: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    line = line_of(capsys, train.main, f"resume={straight['train']}", "learning_rate=1")
    assert (line.code, "'learning_rate' is fixed" in single_error(line)) == (2, True)


def test_only_runs_of_the_same_command_are_resumed(
    straight: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for command, folder in ((train.main, straight["pretrain"]), (pretrain.main, "pretrained/pong")):
        line = line_of(capsys, command, f"resume={folder}")
        assert (line.code, "is no run of python -m vision." in single_error(line)) == (4, True)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["run=nowhere"], 4, "there is no run at 'nowhere'"),
        (["run=pretrained/pong"], 4, "it trains an agent, not a classifier"),
        (["part=exam"], 2, "part must be one of"),
        (["noise=[-1]"], 2, "noise must be at least 0"),
        (["nose=[1]"], 2, "unknown key 'nose'. Did you mean 'noise'"),
        (["run"], 2, "cannot read 'run'"),
    ],
)
def test_an_evaluation_that_cannot_be_is_one_line(
    arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = line_of(capsys, evaluate.main, *arguments)
    assert line.code == code
    assert said in single_error(line)


def test_a_pretrained_backbone_has_nothing_to_evaluate(
    straight: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    line = line_of(capsys, evaluate.main, f"run={straight['pretrain']}")
    assert (line.code, "without heads" in single_error(line)) == (4, True)
    classifier, _ = load_classifier(straight["pretrain"])
    assert isinstance(classifier.backbone, CNN)
    assert not classifier.outputs
