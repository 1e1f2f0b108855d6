"""Optimiser state as plain nested dicts, so that checkpoints need no pickle; and a guarded step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from faults import NonFiniteError


def optimizer_state(optimizer: Optimizer) -> dict[str, Any]:
    """Per-parameter state (`exp_avg`, `step`...) by the parameter's index. Settings such as the learning rate are not
    part of it: they belong to the configuration and to schedules."""
    return {str(index): dict(state) for index, state in optimizer.state_dict()["state"].items()}


def load_optimizer_state(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Restores `optimizer_state`, in the memory layout of each parameter: fused kernels walk raw memory."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = {
        int(index): {
            name: torch.empty_like(parameters[int(index)]).copy_(value) if value.dim() else value.clone()
            for name, value in values.items()
        }
        for index, values in saved.items()
    }
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def descend(optimizer: Optimizer, loss: Tensor, update: int, what: str) -> Tensor:
    """One step against the gradient of `loss` in the optimiser's own parameters; returns the gradient's norm ().

    Raises:
        NonFiniteError: before the step, if loss or gradient is not finite: afterwards every weight would be NaN.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = torch.autograd.grad(loss, parameters)
    norm = nn.utils.get_total_norm(gradients)
    if not torch.isfinite(loss + norm):
        raise NonFiniteError(
            f"update {update} has {what} loss {float(loss.detach()):.3g} and gradient norm {float(norm):.3g}; "
            "try a smaller learning rate"
        )
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()
    return norm
