"""What a classifier looks at, and its file: on squares that are learned within seconds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import Tensor

from faults import ConfigError
from networks.backbones import BACKBONES
from tests.runs import Line, only_run, single_error
from tests.vision.toy import HEADS, Toy
from training.config import SALIENCY_METHODS
from training.export import quantise, write_onnx
from training.process import report
from training.saliency import grad_cam, gradient
from vision import evaluate, train
from vision.config import TrainConfig
from vision.data import Classes
from vision.export import InOrder, export_classifier
from vision.inside import explained_heads, said_of, saliency
from vision.learner import Classifier, load_classifier, make_classifier, predict

QUIET = ("device=cpu", "torch_threads=1", "log.tensorboard=false", "log.progress=false")
IMAGE_BACKBONES = [name for name in BACKBONES if name not in ("auto", "mlp")]


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vision.command.make_source", lambda config: Toy())


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vision.command.make_source", lambda config: Toy())
        command = [
            "data=driving_scenes",
            "backbone=small_cnn",
            "batch_size=16",
            "epochs=6",
            f"run_dir={folder}",
            *QUIET,
        ]
        assert report(lambda: train.main(command), debug=False) == 0
    return only_run(folder)


def brightness(heat: Tensor, images: Tensor) -> tuple[float, float]:
    """Mean saliency within the square and outside of it."""
    square = images[:, 0] >= 200
    return float(heat[square].mean()), float(heat[~square].mean())


def test_an_occlusion_finds_the_square(learned: Path) -> None:
    classifier, _ = load_classifier(learned)
    data = Toy().load(5)
    images, cover = data.images[:30], data.images.float().mean(0)
    for name in ("row", "centre"):
        within, outside = brightness(saliency(classifier, name, images, "occlusion", cover), images)
        assert within > 4 * outside


@pytest.mark.parametrize("method", SALIENCY_METHODS)
def test_a_classifier_that_knows_nothing_has_another_map(learned: Path, method: str) -> None:
    """Adebayo et al. 2018, arXiv:1810.03292: the test of randomised weights."""
    classifier, _ = load_classifier(learned)
    images, cover = Toy().load(5).images[:20], torch.full((1, 24, 24), 20.0)
    torch.manual_seed(0)
    own = saliency(classifier, "row", images, method, cover)
    for weight in classifier.parameters():
        if weight.dim() > 1:
            weight.data = weight.data.flatten()[torch.randperm(weight.numel())].view_as(weight)
    other = saliency(classifier, "row", images, method, cover)
    assert float((own - other).norm() / own.norm()) > 0.3


def test_heads_that_are_explained_and_what_they_say() -> None:
    config = TrainConfig({"source": "toy"}, backbone="small_cnn")
    classifier = make_classifier(config, (1, 24, 24), HEADS, 0)
    assert explained_heads(classifier) == ["row", "centre"]
    logits, missing = torch.tensor([0.0, 3.0, 1.0]), torch.tensor(-1)
    assert said_of(HEADS["row"], logits, torch.tensor(1))[0] == "middle"
    assert said_of(HEADS["row"], logits, torch.tensor(2))[0] == "middle (bottom)"
    assert said_of(HEADS["row"], logits, missing)[0] == "middle"


@pytest.mark.parametrize("name", IMAGE_BACKBONES)
def test_every_backbone_is_explained_and_exported(name: str, tmp_path: Path) -> None:
    size = 84 if name in ("resnet18", "nature_cnn") else 42
    data = Toy(num_films=2, size=size, channels=3).load(0)
    config = TrainConfig({"source": "toy"}, backbone=name)
    classifier: Classifier = make_classifier(config, data.images.shape[1:], HEADS, 0).eval()
    score = lambda x: classifier.heads["row"](classifier.backbone(x))[:, 0]  # noqa: E731
    images = data.images[:2]
    assert gradient(score, images).std() > 0
    assert grad_cam(classifier.backbone, score, images).shape == images.shape[:1] + images.shape[2:]
    _, found = export_classifier(classifier, predict(classifier, data.images, 8), data, tmp_path)
    assert {head: agreement.other_choice for head, agreement in found.items()} == dict.fromkeys(HEADS, 0)
    assert max(agreement.largest_difference for agreement in found.values()) < 1e-4


def test_the_commands_write_a_picture_and_a_file(
    learned: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = [f"run={learned}", f"out={tmp_path}", "torch_threads=1", "format=json"]
    assert report(lambda: evaluate.main([*command, "explain=true", "explain_images=3"]), debug=False) == 0
    (picture,) = tmp_path.glob("*-gradient.png")
    shown = np.asarray(Image.open(picture).convert("RGB"))
    assert shown.shape[0] > shown.shape[1]  # three rows of an image and two maps
    assert shown.std() > 20

    capfd.readouterr()
    assert report(lambda: evaluate.main([*command, "export=onnx_int8"]), debug=False) == 0
    result = json.loads(capfd.readouterr().out)
    assert result == json.loads((tmp_path / "classifier.json").read_text())
    accuracy = [result["figures"][kind]["row"]["accuracy"]["value"] for kind in ("float32", "int8")]
    assert min(accuracy) > 0.9
    assert abs(accuracy[0] - accuracy[1]) <= 0.02
    assert result["heads"]["row"]["names"] == ["top", "middle", "bottom"]

    data = Toy().load(7)
    session = onnxruntime.InferenceSession(tmp_path / "classifier.onnx")
    row, cells, centre = session.run(["row", "cells", "centre"], {"images": data.images.numpy()})
    assert cells.shape == (240, 3, 3, 2)
    known = data.targets["row"] >= 0
    assert (row.argmax(1) == data.targets["row"].numpy())[known].mean() > 0.9
    assert np.nanmedian(np.abs(centre - data.targets["centre"].numpy())) < 4


def test_grad_cam_of_what_has_no_feature_map_is_refused(tmp_path: Path) -> None:
    classifier = make_classifier(TrainConfig(data={"source": "toy"}, backbone="mlp"), (3, 8, 8), {}, seed=0)
    config = evaluate.EvaluateConfig(run="x", explain="grad_cam")
    with pytest.raises(ConfigError, match="grad_cam needs a convolutional backbone"):
        evaluate.explain(classifier, Toy().load(7), config, tmp_path)


def test_eight_bits_of_a_network_without_hidden_products_are_refused(tmp_path: Path) -> None:
    classifier = make_classifier(
        TrainConfig(data={"source": "toy"}, backbone="resnet"), (3, 32, 32), {"row": Classes(("a", "b"))}, seed=0
    )
    data = {"images": np.zeros((2, 3, 32, 32), np.uint8)}
    write_onnx(InOrder(classifier, ["row"]), data, ["row"], tmp_path / "net.onnx")
    with pytest.raises(ConfigError, match="finds nothing to quantise"):
        quantise(tmp_path / "net.onnx", tmp_path / "small.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def test_mistakes_are_one_line(learned: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for asked, line in (
        (["explain=saliency"], "explain must be one of gradient"),
        (["export=tflite"], "export must be"),
        (["export=onnx", "device=cuda"], "set device=cpu"),
    ):
        capfd.readouterr()
        code = report(lambda asked=asked: evaluate.main([f"run={learned}", *asked]), debug=False)
        captured = capfd.readouterr()
        assert code == 2
        assert line in single_error(Line(code, captured.out, captured.err))
