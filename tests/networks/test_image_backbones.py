"""Image backbones: sizes by hand, plain forms of the same functions, and that nothing but the weights matters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium.spaces import Box
from torch import Tensor, nn

from faults import ConfigError
from networks.actor_critic import NetworkSettings, make_actor_critic
from networks.backbones import IMAGE_BACKBONES, ImageBackbone, cost, make_backbone
from networks.resnet import ResNet

NAMES = list(IMAGE_BACKBONES)


def build(name: str, shape: Sequence[int], **options: bool) -> ImageBackbone:
    torch.manual_seed(0)
    backbone = make_backbone(name, Box(0, 255, tuple(shape), np.uint8), [], **options)
    assert isinstance(backbone, ImageBackbone)
    return backbone


def images(count: int, *shape: int) -> Tensor:
    return torch.randint(256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


# A filter of k x k on c planes has c k k weights; LeNet, the convnet and IMPALA add a bias, a ResNet's normalisation
# adds two numbers per filter. A unit has a weight for each input and a bias.
IMPALA_STAGES = 37 * 16 + 4 * 145 * 16 + 145 * 32 + 4 * 289 * 32 + 289 * 32 + 4 * 289 * 32
RESNET_STAGES = (
    6 * 16 * (9 * 16 + 2)
    + (32 * (9 * 16 + 2) + 5 * 32 * (9 * 32 + 2) + 32 * (16 + 2))
    + (64 * (9 * 32 + 2) + 5 * 64 * (9 * 64 + 2) + 64 * (32 + 2))
    + 6 * 64 * (9 * 64 + 2)
)
HAND_COUNTS = [
    ("lenet", (1, 28, 28), 84, 26 * 6 + 151 * 16 + 401 * 120 + 121 * 84),  # the paper's map of 5 x 5 before 120
    ("lenet", (3, 32, 32), 84, 76 * 6 + 151 * 16 + (16 * 36 + 1) * 120 + 121 * 84),
    ("convnet", (3, 32, 32), 256, 28 * 64 + 577 * 128 + (128 * 64 + 1) * 256),
    ("impala_cnn", (4, 84, 84), 256, IMPALA_STAGES + (32 * 11 * 11 + 1) * 256),
    ("resnet", (3, 32, 32), 64, 16 * (27 + 2) + RESNET_STAGES),
    ("resnet", (3, 84, 84), 64, 16 * (3 * 49 + 2) + RESNET_STAGES),  # its first convolution is 7 x 7
    ("resnet18", (3, 224, 224), 512, 11_689_512 - 513_000),  # as published, without its thousand classes
]


@pytest.mark.parametrize(("name", "shape", "out_dim", "count"), HAND_COUNTS)
def test_parameters_are_as_many_as_a_hand_counts(name: str, shape: tuple[int, ...], out_dim: int, count: int) -> None:
    with torch.device("meta"):
        backbone = build(name, shape)
    assert backbone.out_dim == out_dim
    assert cost(backbone, shape).parameters == count


@pytest.mark.parametrize(
    ("name", "shape", "count"),
    [
        ("lenet", (1, 28, 28), 28 * 28 * 6 * 25 + 10 * 10 * 16 * 150 + 400 * 120 + 120 * 84),
        (
            "nature_cnn",
            (4, 84, 84),
            20 * 20 * 32 * 256 + 9 * 9 * 64 * 512 + 7 * 7 * 64 * 576 + 3136 * 512,
        ),
        (
            "resnet18",  # He et al. 2016, table 1, says 1.8 billion
            (3, 224, 224),
            112**2 * 64 * 147
            + 56**2 * 4 * 64 * 576
            + 28**2 * (128 * 576 + 3 * 128 * 1152 + 128 * 64)
            + 14**2 * (256 * 1152 + 3 * 256 * 2304 + 256 * 128)
            + 7**2 * (512 * 2304 + 3 * 512 * 4608 + 512 * 256),
        ),
        (
            "resnet",
            (3, 84, 84),
            28**2 * (16 * 147 + 6 * 16 * 144)
            + 14**2 * (32 * 144 + 5 * 32 * 288 + 32 * 16)
            + 7**2 * (64 * 288 + 5 * 64 * 576 + 64 * 32 + 6 * 64 * 576),
        ),
    ],
)
def test_multiply_adds_are_as_many_as_a_hand_counts(name: str, shape: tuple[int, ...], count: int) -> None:
    assert cost(build(name, shape), shape).multiply_adds == count


@pytest.mark.parametrize("name", NAMES)
def test_any_size_and_number_of_channels(name: str) -> None:
    for shape in ((3, 42, 42), (1, 64, 64), (4, 84, 84), (3, 96, 128), (3, 224, 224)):
        with torch.device("meta"):
            backbone = build(name, shape)
            seen = torch.zeros(2, *shape, dtype=torch.uint8)
            found = backbone.feature_map(seen)
            assert found.dim() == 4
            assert found.shape[0] == 2
            assert backbone(seen).shape == (2, backbone.out_dim)


def test_a_resnet_sees_the_driving_grid_cell_by_cell() -> None:
    backbone = build("resnet", (3, 84, 84))
    assert backbone.feature_map(images(1, 3, 84, 84)).shape == (1, 64, 7, 7)


@pytest.mark.parametrize("name", NAMES)
def test_features_follow_from_the_feature_map_and_gradients_reach_every_parameter(name: str) -> None:
    backbone = build(name, (3, 42, 42))
    seen = images(4, 3, 42, 42)
    features = backbone(seen)
    assert features.dtype == torch.float32
    torch.testing.assert_close(backbone.read(backbone.feature_map(seen)), features)
    torch.testing.assert_close(backbone(seen.float()), features)
    torch.testing.assert_close(backbone(seen.contiguous(memory_format=torch.channels_last)), features)
    features.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in backbone.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_depends_on_the_weights_and_the_one_image(name: str) -> None:
    """No running statistics: not in training mode, not of the other images, and acting leaves nothing behind."""
    backbone = build(name, (3, 42, 42)).train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    seen = images(5, 3, 42, 42)
    together = backbone(seen)
    torch.testing.assert_close(torch.cat([backbone(image[None]) for image in seen]), together, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(backbone.eval()(seen), together)
    after = backbone.state_dict()
    assert before.keys() == after.keys() == dict(backbone.named_parameters()).keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_lenet_against_its_plain_form() -> None:
    net = build("lenet", (1, 28, 28))
    seen = images(3, 1, 28, 28)
    (c1, c3), (c5, f6) = net.convolutions, net.linears

    def squash(x: Tensor) -> Tensor:
        return 1.7159 * torch.tanh(2 * x / 3)

    x = F.avg_pool2d(squash(F.conv2d(F.pad(seen.float() / 255, (2, 2, 2, 2)), c1.weight, c1.bias)), 2)
    x = F.avg_pool2d(squash(F.conv2d(x, c3.weight, c3.bias)), 2)
    assert x.shape == (3, 16, 5, 5)
    x = squash(F.linear(x.permute(0, 2, 3, 1).flatten(1), c5.weight, c5.bias))
    torch.testing.assert_close(net(seen), squash(F.linear(x, f6.weight, f6.bias)))


def test_impala_against_its_plain_form() -> None:
    net = build("impala_cnn", (3, 42, 42))
    seen = images(2, 3, 42, 42)
    x = seen.float() / 255
    for layer, units in zip(net.convolutions, net.units, strict=True):
        x = F.max_pool2d(F.conv2d(x, layer.weight, layer.bias, padding=1), kernel_size=3, stride=2, padding=1)
        for unit in units:
            y = F.conv2d(F.relu(x), unit.conv1.weight, unit.conv1.bias, padding=1)
            x = x + F.conv2d(F.relu(y), unit.conv2.weight, unit.conv2.bias, padding=1)
    x = F.relu(x).permute(0, 2, 3, 1).flatten(1)
    torch.testing.assert_close(net(seen), F.relu(F.linear(x, net.linear.weight, net.linear.bias)))


def test_a_resnet_against_its_plain_form() -> None:
    torch.manual_seed(0)
    net = ResNet((3, 32, 32), (1, 1))
    seen = images(2, 3, 32, 32)

    def norm(x: Tensor, layer: nn.GroupNorm) -> Tensor:
        grouped = x.reshape(len(x), -1, 8, *x.shape[2:])  # groups of 8 channels
        mean, var = grouped.mean(dim=(2, 3, 4), keepdim=True), grouped.var(dim=(2, 3, 4), keepdim=True, correction=0)
        return ((grouped - mean) / (var + 1e-5).sqrt()).reshape(x.shape)

    x = F.relu(norm(F.conv2d(seen.float() / 255, net.first.weight, padding=1), net.norm))
    for k, block in enumerate(net.blocks):
        y = F.relu(norm(F.conv2d(x, block.conv1.weight, stride=k + 1, padding=1), block.norm1))
        y = norm(F.conv2d(y, block.conv2.weight, padding=1), block.norm2)
        short = norm(F.conv2d(x, block.shortcut[0].weight, stride=2), block.shortcut[1]) if k else x
        x = F.relu(short + y)
    assert x.shape == (2, 32, 16, 16)
    torch.testing.assert_close(net(seen), x.mean(dim=(2, 3)), atol=1e-4, rtol=1e-4)


def test_initial_weights_are_those_of_the_papers() -> None:
    lenet = build("lenet", (1, 28, 28)).linears[0].weight
    assert lenet.abs().max() <= 2.4 / 400
    assert lenet.abs().max() > 2.3 / 400
    for name, gain in (("resnet18", 2.0), ("convnet", 2.0)):
        for layer in build(name, (3, 42, 42)).modules():
            if isinstance(layer, nn.Conv2d | nn.Linear) and layer.weight.numel() > 30_000:
                assert layer.weight.var().item() == pytest.approx(gain / layer.weight[0].numel(), rel=0.05)
    impala = build("impala_cnn", (3, 84, 84)).linear.weight
    assert impala.abs().max() <= 2 / impala.shape[1] ** 0.5
    # a normal distribution cut at two standard deviations has 0.774 of its variance
    assert impala.var().item() == pytest.approx(0.774 / impala.shape[1], rel=0.02)


@pytest.mark.parametrize("name", ["convnet", "resnet", "impala_cnn"])
def test_agents_take_every_backbone(name: str) -> None:
    """An actor-critic network draws its own initial weights; what has no bias keeps none."""
    from gymnasium.spaces import Discrete

    net = make_actor_critic(NetworkSettings(backbone=name), Box(0, 255, (3, 42, 42), np.uint8), Discrete(3))
    logits, value, _ = net(images(2, 3, 42, 42), net.initial_state(2), torch.ones(2, dtype=torch.bool))
    assert logits.shape == (2, 3)
    assert value.shape == (2,)


def test_bfloat16_is_close() -> None:
    exact, fast = (build("resnet", (3, 42, 42), bfloat16=b) for b in (False, True))
    seen = images(2, 3, 42, 42)
    assert fast(seen).dtype == torch.float32
    assert not torch.equal(fast(seen), exact(seen))
    torch.testing.assert_close(fast(seen), exact(seen), atol=0.05, rtol=0.1)


def test_what_a_backbone_cannot_do_is_one_line() -> None:
    for name, size in (("lenet", 4), ("resnet", 6), ("resnet18", 6), ("nature_cnn", 30)):
        with pytest.raises(ConfigError, match=f"{size}x{size} pixels is too small"):
            build(name, (3, size, size))
    with pytest.raises(ConfigError, match="center_pixels is known to nature_cnn"):
        build("resnet", (3, 42, 42), center_pixels=True)
    with pytest.raises(ConfigError, match="layer_norm=false"):
        build("impala_cnn", (3, 42, 42), layer_norm=True)
