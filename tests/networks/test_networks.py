"""Shapes, parameter counts by hand, gradients, and the shortcuts of the forward pass against the plain form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete
from torch import nn

from faults import ConfigError
from networks.backbones import CNN, make_backbone
from networks.heads import DuelingQHead, QHead
from networks.optimizer import load_optimizer_state, optimizer_state

PIXELS = Box(0, 255, (4, 84, 84), np.uint8)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("name", "out_dim", "count"),
    [
        # each filter: inputs * kernel**2 weights and a bias; the last layer reads 7 * 7 * 64 or 9 * 9 * 32 numbers
        ("nature_cnn", 512, 257 * 32 + 513 * 64 + 577 * 64 + 3137 * 512),
        ("nips_cnn", 256, 257 * 16 + 257 * 32 + 2593 * 256),
    ],
)
def test_cnn_sizes(name: str, out_dim: int, count: int) -> None:
    backbone = make_backbone(name, PIXELS, [])
    assert (backbone.out_dim, parameters(backbone)) == (out_dim, count)
    features = backbone(torch.zeros(3, 4, 84, 84, dtype=torch.uint8))
    assert features.shape == (3, out_dim)
    assert features.dtype == torch.float32


def test_auto_is_a_cnn_for_images_and_an_mlp_otherwise() -> None:
    assert isinstance(make_backbone("auto", PIXELS, [8]), CNN)
    assert make_backbone("auto", Box(-1, 1, (3,), np.float32), [8, 5]).out_dim == 5


def test_discrete_observations_become_one_hot() -> None:
    single = make_backbone("mlp", Discrete(4), []).eval()
    assert single(torch.tensor([2, 0])).tolist() == [[0, 0, 1, 0], [1, 0, 0, 0]]
    several = make_backbone("mlp", MultiDiscrete([2, 3]), [])
    assert several(torch.tensor([[1, 2], [0, 0]])).tolist() == [[0, 1, 0, 0, 1], [1, 0, 1, 0, 0]]


def test_class_codes_enter_one_hot_however_many_there_are() -> None:
    torch.manual_seed(0)
    window = Box(0, 20, (2, 3), np.uint8)
    plain = make_backbone("mlp", window, [])
    codes = torch.randint(21, (5, 2, 3), dtype=torch.uint8)
    one_hot = F.one_hot(codes.long(), 21).flatten(1).float()
    assert torch.equal(plain(codes), one_hot)
    for norm in (False, True):
        net = make_backbone("auto", window, [7, 4], layer_norm=norm)
        first, second = net.layers
        x = F.linear(one_hot, first.weight.T, first.bias)
        x = F.relu(F.layer_norm(x, (7,)) if norm else x)
        x = F.linear(x, second.weight, second.bias)
        torch.testing.assert_close(net(codes), F.relu(F.layer_norm(x, (4,)) if norm else x))
    assert first.weight.abs().max() <= 6**-0.5  # six cells: as a linear layer with six inputs


@pytest.mark.parametrize(("high", "out_dim"), [(1, 6), (31, 96), (255, 3)])
def test_few_values_are_codes_and_many_are_brightness(high: int, out_dim: int) -> None:
    assert make_backbone("mlp", Box(0, high, (3,), np.uint8), []).out_dim == out_dim


def test_several_senses_have_a_backbone_each() -> None:
    torch.manual_seed(0)
    parts = {
        "camera": Box(0, 255, (3, 84, 84), np.uint8),
        "map": Box(0, 20, (9, 9), np.uint8),
        "radar": Box(-1, 1, (5,), np.float32),
    }
    space = Dict(parts)
    for name, camera_dim in (("auto", 512), ("nips_cnn", 256), ("mlp", 8)):
        net = make_backbone(name, space, [16, 8], layer_norm=True)
        assert net.out_dim == camera_dim + 8 + 8
        space.seed(0)
        obs = {key: torch.from_numpy(np.stack([space.sample()[key] for _ in range(3)])) for key in parts}
        features = net(obs)
        for key, columns in zip(parts, features.split([camera_dim, 8, 8], dim=1), strict=True):
            torch.testing.assert_close(columns, net.parts[key](obs[key]))
        features.sum().backward()
        assert all(p.grad is not None for p in net.parameters())
    with pytest.raises(ConfigError, match="not several senses"):
        make_backbone("auto", space, [8], center_pixels=True)


def test_layer_norm_of_a_cnn_is_per_pixel() -> None:
    torch.manual_seed(0)
    net = make_backbone("nips_cnn", PIXELS, [], layer_norm=True)
    assert parameters(net) == parameters(make_backbone("nips_cnn", PIXELS, [])) + 2 * (16 + 32 + 256)
    image = torch.randint(256, (3, 4, 84, 84), dtype=torch.uint8)
    x = image.float() / 255
    for layer, channels in zip([net.first, *net.rest], (16, 32), strict=True):
        x = F.conv2d(x, layer.weight, layer.bias, layer.stride)
        mean, var = x.mean(dim=1, keepdim=True), x.var(dim=1, keepdim=True, correction=0)
        assert x.shape[1] == channels
        x = F.relu((x - mean) / (var + 1e-5).sqrt())
    x = F.linear(x.permute(0, 2, 3, 1).flatten(1), net.linear.weight, net.linear.bias)
    torch.testing.assert_close(net(image), F.relu(F.layer_norm(x, (256,))), atol=1e-4, rtol=1e-4)


def test_bytes_in_vectors_are_scaled() -> None:
    ram = make_backbone("mlp", Box(0, 255, (2,), np.uint8), [])
    torch.testing.assert_close(ram(torch.tensor([[0, 255]], dtype=torch.uint8)), torch.tensor([[0.0, 1.0]]))


@pytest.mark.parametrize("center", [False, True])
def test_the_folded_forward_equals_the_plain_one(center: bool) -> None:
    torch.manual_seed(0)
    net = make_backbone("nips_cnn", PIXELS, [], center_pixels=center)
    assert isinstance(net, CNN)
    mean = torch.rand(4, 84, 84) * 255
    if center:
        net.center(mean)
    image = torch.randint(256, (5, 4, 84, 84), dtype=torch.uint8)
    x = (image.double() - mean) / 64 if center else image.double() / 255
    plain = net.double()
    x = F.relu(F.conv2d(x, plain.first.weight, plain.first.bias, stride=4))
    x = F.relu(F.conv2d(x, plain.rest[0].weight, plain.rest[0].bias, stride=2))
    expected = F.relu(F.linear(x.permute(0, 2, 3, 1).flatten(1), plain.linear.weight, plain.linear.bias))
    torch.testing.assert_close(net.float()(image), expected.float(), atol=1e-4, rtol=1e-4)


def test_bfloat16_is_close_and_keeps_float32_outside() -> None:
    torch.manual_seed(0)
    exact = make_backbone("nips_cnn", PIXELS, [])
    fast = make_backbone("nips_cnn", PIXELS, [], bfloat16=True)
    fast.load_state_dict(exact.state_dict())
    image = torch.randint(256, (3, 4, 84, 84), dtype=torch.uint8)
    features = fast(image)
    assert features.dtype == torch.float32
    assert not torch.equal(features, exact(image))
    torch.testing.assert_close(features, exact(image), atol=0.01, rtol=0.05)
    features.sum().backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in fast.parameters())  # type: ignore[union-attr]


def test_memory_layout_does_not_change_the_features() -> None:
    net = make_backbone("nature_cnn", PIXELS, [])
    image = torch.randint(256, (2, 4, 84, 84), dtype=torch.uint8)
    torch.testing.assert_close(net(image), net(image.contiguous(memory_format=torch.channels_last)))


@pytest.mark.parametrize("head", [QHead, DuelingQHead])
def test_gradients_reach_every_parameter(head: type[nn.Module]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(make_backbone("nature_cnn", PIXELS, []), head(512, 6))
    net(torch.randint(256, (4, 4, 84, 84), dtype=torch.uint8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_dueling_ignores_a_constant_added_to_the_advantages() -> None:
    head, features = DuelingQHead(8, 3), torch.rand(5, 8)
    before = head(features)
    head.advantage.bias.data += 7.0
    torch.testing.assert_close(head(features), before)
    torch.testing.assert_close(before.mean(dim=1, keepdim=True), head.value(features))


def test_what_a_backbone_cannot_read_is_one_line() -> None:
    with pytest.raises(ConfigError, match="nature_cnn reads images"):
        make_backbone("nature_cnn", Box(-1, 1, (3,), np.float32), [])
    with pytest.raises(ConfigError, match="20x20 pixels is too small"):
        make_backbone("nature_cnn", Box(0, 255, (1, 20, 20), np.uint8), [])
    with pytest.raises(ConfigError, match="center_pixels needs a CNN"):
        make_backbone("mlp", PIXELS, [8], center_pixels=True)


def test_optimizer_state_survives_in_the_layout_of_the_parameters() -> None:
    torch.manual_seed(0)
    net = make_backbone("nips_cnn", PIXELS, [])
    twin = make_backbone("nips_cnn", PIXELS, [])
    twin.load_state_dict(net.state_dict())
    first, second = (torch.optim.Adam(n.parameters(), 1e-3, fused=True) for n in (net, twin))
    image = torch.randint(256, (2, 4, 84, 84), dtype=torch.uint8)

    def step(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        module(image).sum().backward()
        optimizer.step()

    step(net, first)
    step(twin, second)
    saved = {i: {k: v.contiguous().clone() for k, v in s.items()} for i, s in optimizer_state(first).items()}
    resumed = torch.optim.Adam(twin.parameters(), 1e-3, fused=True)
    load_optimizer_state(resumed, saved)
    step(net, first)
    step(twin, resumed)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), twin.parameters(), strict=True))
