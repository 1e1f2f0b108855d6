"""Losses against numbers by hand, heads against what they say they read."""

import math

import pytest
import torch

from faults import ConfigError
from networks.backbones import CNN
from tests.vision.toy import HEADS, Toy
from vision.config import TrainConfig
from vision.data import MISSING, Amounts, Classes
from vision.learner import (
    Classifier,
    amount_loss,
    cell_means,
    class_loss,
    losses,
    make_classifier,
    mean_image,
    predict,
)

NAN = float("nan")


def test_cross_entropy_by_hand_leaves_out_what_has_no_label() -> None:
    logits = torch.tensor([[math.log(1), math.log(3)], [math.log(2), math.log(2)], [50.0, -50.0]])
    target = torch.tensor([1, 0, MISSING])
    expected = -(math.log(3 / 4) + math.log(1 / 2)) / 2
    assert float(class_loss(logits, target)) == pytest.approx(expected)
    assert float(class_loss(logits[:, None], target[:, None])) == pytest.approx(expected)  # one label per cell
    assert float(class_loss(logits, torch.full((3,), MISSING))) == 0


def test_smoothed_labels_by_hand() -> None:
    """Of four classes with smoothing 0.2 the right one has 0.85, the others 0.05 each."""
    logits = torch.log(torch.tensor([[0.1, 0.2, 0.3, 0.4]]))
    expected = -(0.85 * math.log(0.4) + 0.05 * (math.log(0.1) + math.log(0.2) + math.log(0.3)))
    assert float(class_loss(logits, torch.tensor([3]), smoothing=0.2)) == pytest.approx(expected)


def test_amounts_by_hand() -> None:
    target = torch.tensor([[1.0, NAN], [2.0, 30.0]])
    predicted = torch.tensor([[2.0, 5.0], [2.0, 20.0]])  # off by 1, nothing, 0 and 10: in scales 0.1, 0, 1
    assert float(amount_loss(predicted, target, scale=10.0)) == pytest.approx((0.005 + 0 + 0.5) / 3)
    huber = (0.1**2 / (2 * 0.2) + 0 + (1 - 0.1)) / 3
    assert float(amount_loss(predicted, target, scale=10.0, delta=0.2)) == pytest.approx(huber)
    assert float(amount_loss(predicted, torch.full((2, 2), NAN), scale=10.0)) == 0


def test_missing_amounts_give_no_gradient() -> None:
    predicted = torch.tensor([[1.0, 2.0]], requires_grad=True)
    amount_loss(predicted, torch.tensor([[NAN, 5.0]]), 1.0, 0.1).backward()
    assert predicted.grad is not None
    assert predicted.grad.tolist() == [[0.0, -1.0]]


def test_cells_are_means_over_what_they_cover() -> None:
    assert torch.equal(cell_means(6, 3), torch.tensor([[3, 3, 0, 0, 0, 0], [0, 0, 3, 3, 0, 0], [0, 0, 0, 0, 3, 3]]) / 6)
    five = torch.tensor([[3, 2, 0, 0, 0], [0, 1, 3, 1, 0], [0, 0, 0, 2, 3]]) / 5  # 5 points in 3 cells of 5/3
    assert torch.allclose(cell_means(5, 3), five)
    assert torch.equal(cell_means(1, 2), torch.ones(2, 1))
    for size, cells in ((7, 7), (11, 7), (4, 9)):
        assert torch.allclose(cell_means(size, cells).sum(dim=1), torch.ones(cells))


def classifier(backbone: str = "small_cnn") -> Classifier:
    return make_classifier(TrainConfig({"source": "toy"}, backbone=backbone), (1, 24, 24), HEADS, seed=3)


def test_outputs_have_the_shapes_of_their_heads() -> None:
    data = Toy(2).load(0)
    outputs = predict(classifier(), data.images, batch_size=5)
    assert {name: tuple(output.shape) for name, output in outputs.items()} == {
        "row": (16, 3),
        "cells": (16, 3, 3, 2),
        "centre": (16, 2),
    }


def test_weights_are_a_function_of_the_seed() -> None:
    one, same = classifier().state_dict(), classifier().state_dict()
    other = make_classifier(TrainConfig({"source": "toy"}, backbone="small_cnn"), (1, 24, 24), HEADS, 4).state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["heads.row.weight"], other["heads.row.weight"])


def test_a_cell_sees_its_own_part_of_the_image() -> None:
    """With a backbone of one layer and no overlap, changing one cell's pixels changes that cell's logits alone."""
    backbone = CNN((1, 12, 12), [(4, 2, 2)], 8)
    net = Classifier(backbone, (1, 12, 12), {"cells": Classes(("a", "b"), (3, 3))})
    image = torch.zeros(1, 1, 12, 12, dtype=torch.uint8)
    changed = image.clone()
    changed[0, 0, 4:8, 8:12] = 255
    moved = (net(changed)["cells"] - net(image)["cells"]).abs().sum(dim=-1)[0] > 0
    assert moved.nonzero().tolist() == [[1, 2]]


def test_a_map_coarser_than_the_grid_is_refused() -> None:
    """Cells side by side would see the same: a CNN whose map is one place cannot name nine."""
    with pytest.raises(ConfigError, match="feature map of 1x1 places is coarser than the 3x3 cells"):
        Classifier(CNN((1, 12, 12), [(4, 4, 2), (4, 4, 2)], 8), (1, 12, 12), HEADS)


def test_amounts_come_in_their_unit() -> None:
    backbone = CNN((1, 24, 24), [(4, 8, 8)], 8)
    plain = Classifier(backbone, (1, 24, 24), {"n": Amounts(("n",), "cars", 1.0)})
    scaled = Classifier(backbone, (1, 24, 24), {"n": Amounts(("n",), "cars", 20.0)})
    scaled.heads.load_state_dict(plain.heads.state_dict())
    images = Toy(1).load(0).images
    assert torch.allclose(scaled(images)["n"], 20 * plain(images)["n"])


def test_the_sum_of_losses_takes_each_head_as_it_is_meant() -> None:
    data = Toy(3).load(1)
    outputs = predict(classifier(), data.images)
    found = losses(outputs, data.targets, HEADS, 0.1, 0.5)
    assert found["row"] == class_loss(outputs["row"], data.targets["row"], 0.1)
    assert found["cells"] == class_loss(outputs["cells"], data.targets["cells"], 0.1)
    assert found["centre"] == amount_loss(outputs["centre"], data.targets["centre"], 12.0, 0.5)


def test_the_mean_image_is_exact() -> None:
    images = torch.randint(0, 256, (2500, 1, 3, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(mean_image(images), (images.double().mean(dim=0)).float())
