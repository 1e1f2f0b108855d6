"""Saliency maps: against hand-made answers, against captum, and against weights that know nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam, Occlusion, Saliency
from torch import Tensor, nn

from training.saliency import grad_cam, gradient, occlusion

GREY = 127.0


class Net(nn.Module):
    """A small CNN with a feature map, and one linear layer on what is pooled of it."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.cnn = Features()
        self.head = nn.Linear(6, 3)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.cnn(image))

    def score(self, image: Tensor) -> Tensor:
        return self(image)[:, 1]


class Features(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 4, 3, 2), nn.Conv2d(4, 6, 3)

    def feature_map(self, image: Tensor) -> Tensor:
        return self.last(self.first(image.float() / 255).relu())

    def read(self, feature_map: Tensor) -> Tensor:
        return feature_map.relu().mean((2, 3))

    def forward(self, image: Tensor) -> Tensor:
        return self.read(self.feature_map(image))


@pytest.fixture
def images() -> Tensor:
    return torch.randint(256, (3, 2, 20, 18), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def test_the_gradient_of_a_linear_model_is_its_weights() -> None:
    weight = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, -0.25]])
    x = torch.randn(4, 3)
    assert torch.equal(gradient(lambda v: v @ weight[0], x), weight[0].abs().expand(4, 3))
    planes = torch.randn(2, 5, 6)
    heat = gradient(lambda v: (v * planes).sum((1, 2, 3)), torch.randn(1, 2, 5, 6))
    assert torch.allclose(heat[0], planes.abs().amax(0))


def test_occlusion_finds_the_one_patch_that_matters() -> None:
    image = torch.full((1, 1, 12, 12), 10, dtype=torch.uint8)
    image[0, 0, 4:8, 8:12] = 90
    heat = occlusion(lambda v: v[:, 0, 4:8, 8:12].mean((1, 2)), image, torch.tensor(10.0), patch=4, stride=4)
    expected = torch.zeros(12, 12)
    expected[4:8, 8:12] = 90 - 10
    assert torch.equal(heat[0], expected)


def test_patches_reach_the_border() -> None:
    image = torch.zeros(1, 1, 7, 7)
    image[0, 0, 6, 6] = 49
    heat = occlusion(lambda v: v[:, 0, 6, 6], image, torch.tensor(1.0), patch=3, stride=2)
    assert heat[0, 6, 6] == 49 - 1
    assert heat[0, :4, :4].abs().sum() == 0


def test_grad_cam_shows_the_channel_that_counts() -> None:
    class Two(nn.Module):
        def feature_map(self, image: Tensor) -> Tensor:
            return nn.functional.avg_pool2d(image, 4)

        def read(self, feature_map: Tensor) -> Tensor:
            return feature_map.mean((2, 3))

        def forward(self, image: Tensor) -> Tensor:
            return self.read(self.feature_map(image))

    image = torch.zeros(1, 2, 8, 8)
    image[0, 0, :4, :4] = 8.0  # speaks for the score, 3 / 4 of each place
    image[0, 1, 4:, 4:] = 8.0  # speaks against it
    two = Two()
    heat = grad_cam(two, lambda v: two(v) @ torch.tensor([3.0, -1.0]), image)
    assert heat[0, 0, 0] == 8 * 3 / 4
    assert heat[0, 7, 7] == 0


def test_the_same_maps_as_captums(images: Tensor) -> None:
    net, x = Net(), images.float()
    theirs = Saliency(net).attribute(x.clone().requires_grad_(), target=1)
    assert torch.allclose(gradient(net.score, images), theirs.amax(1), rtol=1e-5, atol=1e-9)

    cam = LayerGradCam(net, net.cnn.last).attribute(x, target=1, relu_attributions=True)
    cam = LayerGradCam.interpolate(cam.detach(), (20, 18), interpolate_mode="bilinear")
    assert cam.abs().sum() > 0
    assert torch.allclose(grad_cam(net.cnn, net.score, images), cam[:, 0], rtol=1e-4, atol=1e-9)

    one = x[:1]
    shown = Occlusion(net).attribute(one, (2, 4, 4), strides=(2, 2, 2), target=1, baselines=GREY)[:, 0]
    assert torch.allclose(occlusion(net.score, one, torch.tensor(GREY), 4, 2), shown, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("method", ["gradient", "grad_cam", "occlusion"])
def test_random_weights_change_the_map(method: str, images: Tensor) -> None:
    """Adebayo et al. 2018: a map that stays when weights are drawn anew shows the image, not the network."""

    def heat(net: Net) -> Tensor:
        if method == "gradient":
            return gradient(net.score, images)
        if method == "grad_cam":
            return grad_cam(net.cnn, net.score, images)
        return occlusion(net.score, images, torch.tensor(GREY), 4, 2)

    def correlation(a: Tensor, b: Tensor) -> float:
        pairs = [(x.flatten(), y.flatten()) for x, y in zip(a, b, strict=True) if x.std() > 0 and y.std() > 0]
        return float(np.mean([np.corrcoef(x, y)[0, 1] for x, y in pairs])) if pairs else 0.0

    net = Net()
    own = heat(net)
    others = [heat(Net(seed)) for seed in range(1, 6)]
    assert torch.equal(own, heat(net))
    assert np.mean([correlation(own, other) for other in others]) < 0.6
    nn.init.normal_(net.head.weight, std=1.0)  # the last layer alone
    assert not torch.allclose(own, heat(net))


def test_explaining_leaves_no_trace(images: Tensor) -> None:
    net = Net()
    before = net(images)
    grad_cam(net.cnn, net.score, images)
    gradient(net.score, images)
    assert torch.equal(before, net(images))
    assert all(p.grad is None for p in net.parameters())
