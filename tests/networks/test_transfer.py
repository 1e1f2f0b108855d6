"""A backbone is found by its names, refused by its shapes, and copied to the bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict
from torch import Tensor, nn

from faults import ConfigError
from networks.backbones import Backbone, Fusion, make_backbone
from networks.transfer import begin_backbone, place_of

IMAGE = Box(0, 255, (3, 42, 42), np.uint8)
SENSES = Dict({"camera": IMAGE, "radar": Box(-1, 1, (5,), np.float32)})


def cnn(center_pixels: bool = False) -> Backbone:
    return make_backbone("small_cnn", IMAGE, [], center_pixels)


def tensors(module: nn.Module, place: str) -> dict[str, Tensor]:
    return {f"{place}{name}": tensor.clone() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("place", ["q_net.0.", "net.backbone.", "actor.body.input_layer."])
def test_weights_are_found_wherever_they_stand(place: str) -> None:
    donor, backbone = cnn(), cnn()
    others = {"q_net.1.q.weight": torch.zeros(2, 256), "linear.weight": torch.zeros(1, 1)}
    begin_backbone(backbone, "small_cnn", ("x", others | tensors(donor, place)), freeze=False)
    image = torch.randint(256, (2, 3, 42, 42), dtype=torch.uint8)
    assert torch.equal(backbone(image), donor(image))
    assert all(p.requires_grad for p in backbone.parameters())


def test_of_two_backbones_the_policys_is_taken() -> None:
    policy, value, own = (make_backbone("mlp", SENSES["radar"], [8, 8]) for _ in range(3))
    both = tensors(value, "net.value_backbone.") | tensors(policy, "net.backbone.")
    assert place_of(own, both) == "net.backbone."
    begin_backbone(own, "mlp", ("x", both), freeze=False)
    assert torch.equal(own.state_dict()["layers.0.weight"], policy.state_dict()["layers.0.weight"])


def test_a_frozen_backbone_gets_no_gradient_and_its_head_does() -> None:
    backbone, head = cnn(), nn.Linear(256, 2)
    begin_backbone(backbone, "small_cnn", None, freeze=True)
    head(backbone(torch.randint(256, (2, 3, 42, 42), dtype=torch.uint8))).sum().backward()
    assert all(p.grad is None for p in backbone.parameters())
    assert head.weight.grad is not None


@pytest.mark.parametrize(
    ("donor", "reason"),
    [
        (make_backbone("small_cnn", Box(0, 255, (1, 42, 42), np.uint8), []), r"\(16, 1, 4, 4\).*\(16, 3, 4, 4\)"),
        (make_backbone("small_cnn", Box(0, 255, (3, 64, 64), np.uint8), []), r"linear\.weight.*\(256, \d+\).*\(256, "),
        (cnn(center_pixels=True), "pixel_mean is of shape .* there and missing here; center_pixels must be"),
        (make_backbone("mlp", IMAGE, [8]), r"first\.weight is missing there and of shape \(16, 3, 4, 4\) here"),
    ],
)
def test_a_backbone_that_does_not_fit_is_refused_with_both_sides(donor: Backbone, reason: str) -> None:
    backbone = cnn()
    before = tensors(backbone, "")
    with pytest.raises(ConfigError, match=f"backbone of runs/a .* the one here \\(small_cnn\\): .*{reason}"):
        begin_backbone(backbone, "small_cnn", ("runs/a (b)", tensors(donor, "net.backbone.")), freeze=True)
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.state_dict().items())


def test_without_weights_of_its_own_there_is_nothing_to_begin_with() -> None:
    with pytest.raises(ConfigError, match="nothing to learn"):
        begin_backbone(make_backbone("mlp", SENSES["radar"], []), "mlp", ("x", {}), freeze=False)


def test_several_senses_take_the_whole_or_the_camera_alone() -> None:
    whole = make_backbone("small_cnn", SENSES, [8])
    fused = make_backbone("small_cnn", SENSES, [8])
    begin_backbone(fused, "small_cnn", ("x", tensors(whole, "q_net.0.")), freeze=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), fused.state_dict().values(), strict=True))
    assert not any(p.requires_grad for p in fused.parameters())

    fused, camera = make_backbone("small_cnn", SENSES, [8]), cnn()
    assert isinstance(fused, Fusion)
    begin_backbone(fused, "small_cnn", ("x", tensors(camera, "net.backbone.")), freeze=True)
    assert torch.equal(fused.parts["camera"].linear.weight, camera.linear.weight)
    assert not any(p.requires_grad for p in fused.parts["camera"].parameters())
    assert all(p.requires_grad for p in fused.parts["radar"].parameters())
    with pytest.raises(ConfigError, match="does not fit"):
        begin_backbone(make_backbone("mlp", SENSES, [8]), "mlp", ("x", tensors(camera, "net.backbone.")), freeze=True)
