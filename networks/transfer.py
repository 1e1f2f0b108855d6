"""Begins with a backbone that another run has trained: its weights are found by name, checked by shape, copied."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from faults import ConfigError
from networks.backbones import MLP, Backbone, Fusion

Donor = tuple[str, Mapping[str, Tensor]]
"""A run: what to call it in an error line, and the tensors of its policy by name (`contract.Donor`)."""


def begin_backbone(
    backbone: Backbone, kind: str, donor: Donor | None, freeze: bool, key: str = "agent.backbone_init"
) -> None:
    """Gives a backbone its first weights, in place, and says whether they may change.

    Args:
        backbone: with weights drawn at random. A `Fusion` whose senses are not the donor's takes the donor's CNN for
            each of its images; only these are frozen then.
        kind: what `agent.backbone` says, for the error line.
        donor: whose backbone to begin with, None to keep the weights as they are.
        freeze: no gradient ever reaches the weights. They then cost no backward pass either.
        key: that named the donor, for the error line.

    Raises:
        ConfigError: one line with both sides, if the donor has no such backbone, or one of other shapes.
    """
    parts: list[nn.Module] = [backbone]
    if isinstance(backbone, Fusion) and donor is not None and misfit(backbone, donor[1]):
        parts = [part for part in backbone.parts.values() if not isinstance(part, MLP)] or parts
    for part in parts:
        if donor is not None:
            origin, tensors = donor
            if reason := misfit(part, tensors):
                raise ConfigError(f"{key}: the backbone of {origin} does not fit the one here ({kind}): {reason}")
            place = place_of(part, tensors)
            part.load_state_dict({name: tensors[f"{place}{name}"] for name in part.state_dict()})
        if freeze:
            part.requires_grad_(False)


def place_of(backbone: nn.Module, tensors: Mapping[str, Tensor]) -> str:
    """What stands before the backbone's own names in the tensors': where most of them fit, then the shortest."""
    own = backbone.state_dict()
    ends = {found[: -len(name)] for name in own for found in tensors if found.endswith(name)}
    places = sorted(place for place in ends if not place or place.endswith("."))

    def fitness(place: str) -> tuple[int, int, int]:
        there = {name: tensors[f"{place}{name}"] for name in own if f"{place}{name}" in tensors}
        return sum(own[name].shape == tensor.shape for name, tensor in there.items()), len(there), -len(place)

    return max(places, key=fitness, default="")


def misfit(backbone: nn.Module, tensors: Mapping[str, Tensor]) -> str:
    """The first difference between a backbone and the one among the tensors; empty if there is none."""
    own, place = backbone.state_dict(), place_of(backbone, tensors)
    if not own:
        return "there is nothing to learn between these observations and the head"
    there = {name[len(place) :]: tensor for name, tensor in tensors.items() if place and name.startswith(place)}
    for name in [*own, *there]:
        sizes = [tuple(side[name].shape) if name in side else None for side in (there, own)]
        if sizes[0] != sizes[1]:
            hint = "; center_pixels must be the same" if name.endswith("pixel_mean") else ""
            texts = ["missing" if size is None else f"of shape {size}" for size in sizes]
            return f"{name} is {texts[0]} there and {texts[1]} here{hint}"
    return ""
