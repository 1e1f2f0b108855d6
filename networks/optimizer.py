"""Optimiser state as plain nested dicts, so that checkpoints need no pickle."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer


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
